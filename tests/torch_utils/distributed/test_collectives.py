"""Two real processes with gloo, and the same functions without any."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from tests.tiny import differing, orbit_labels, pictures, tiny_config
from torch_utils.distributed import collectives as distributed
from torch_utils.distributed.reduction import GradientAverage, make_buckets
from torch_utils.stats import Statistics
from training.data.dataset import to_float
from training.gan.trainer import Trainer

pytestmark = pytest.mark.waits

PROCESSES = 2


def gradients_of(process: int) -> list[torch.Tensor | None]:
    """Of three parameters: the first has gradients in both processes, the second in one, the third
    in none.
    """
    return [
        torch.full((2, 3), float(process + 1)),
        torch.full((4,), 8.0) if process else None,
        None,
    ]


def average(bucket_bytes: int = 16, micro_batches: int = 1) -> list[torch.Tensor | None]:
    """Gradients that arrive in `micro_batches` backward passes, averaged in buckets of a parameter
    or two.
    """
    parameters = [
        nn.Parameter(torch.zeros(2, 3)),
        nn.Parameter(torch.zeros(4)),
        nn.Parameter(torch.zeros(5)),
    ]
    averaging = GradientAverage(parameters, bucket_bytes)
    for update in range(2):
        for parameter in parameters:
            parameter.requires_grad_(True)
            parameter.grad = None
        averaging.begin()
        for micro_batch in range(micro_batches):
            if micro_batch == micro_batches - 1:
                averaging.expect_last()
            pairs = zip(parameters, gradients_of(distributed.rank()), strict=True)
            losses = [
                (parameter * gradient).sum() / micro_batches
                for parameter, gradient in pairs
                if gradient is not None
            ]
            torch.stack(losses).sum().backward()
        for parameter in parameters:
            # as in training, where nothing requires gradients any more when they are averaged
            parameter.requires_grad_(False)
        counts = averaging.finish(torch.tensor([1.0, float(update)]))
        assert counts.tolist() == [distributed.world_size(), update * distributed.world_size()]
    assert GradientAverage([]).finish(torch.tensor([1.0])).tolist() == [distributed.world_size()]
    return [parameter.grad for parameter in parameters]


def collect() -> dict[str, dict[str, float]]:
    statistics = Statistics()
    statistics.report("x", torch.arange(3.0) + 10 * distributed.rank())
    statistics.report("y", float(distributed.rank()))
    return statistics.collect()


def copy() -> dict[str, torch.Tensor]:
    torch.manual_seed(distributed.rank())
    module = nn.BatchNorm1d(3)
    module.running_mean = torch.randn(3)
    nn.init.normal_(module.weight)
    distributed.copy_from_first(module)
    return module.state_dict()


def train() -> dict[str, Any]:
    """Two steps of a batch of four, with half of it in each process."""
    images, labels = to_float(torch.from_numpy(pictures(16)).permute(0, 3, 1, 2)), orbit_labels(16)
    options = (
        "augment.mode=ada",
        "augment.p=0.5",
        "augment.interval=1",
        "discriminator.mbstd_group_size=2",
    )
    trainer = Trainer(tiny_config(*options), labels, torch.device("cpu"))
    means = []
    mapping = trainer.G.mapping

    def noted(z: torch.Tensor, c: torch.Tensor, update_w_avg: bool = False) -> torch.Tensor:
        ws = mapping(z, c, update_w_avg=update_w_avg)
        if update_w_avg:
            means.append(ws[:, 0].detach().mean(dim=0))
        return ws

    trainer.G.mapping = noted  # type: ignore[assignment, method-assign]
    for step in range(2):
        mine = slice(4 * step + distributed.rank(), 4 * step + 4, PROCESSES)
        trainer.step(images[mine], labels[mine])
    state = trainer.state_dict()
    return {"state": state, "means": means}


def worker(process: int, address: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=process, world_size=PROCESSES)
    found = {
        "place": (distributed.is_distributed(), distributed.rank(), distributed.world_size()),
        "sum": distributed.sum_over_processes(torch.tensor([1.0, float(process)])),
        "average": average(),
        "average in one bucket of two passes": average(1000, 2),
        "statistics": collect(),
        "copy": copy(),
        "train": train(),
    }
    torch.save(found, Path(folder) / f"{process}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(
        worker, args=(f"tcp://127.0.0.1:{port}", str(folder)), nprocs=PROCESSES
    )
    return [torch.load(folder / f"{process}.pt") for process in range(PROCESSES)]


def test_every_process_knows_its_place(found: list[dict[str, Any]]) -> None:
    assert [one["place"] for one in found] == [(True, 0, 2), (True, 1, 2)]


def test_sums(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["sum"].tolist() == [2, 1]


def test_gradients_are_averaged_and_missing_ones_count_as_zero(found: list[dict[str, Any]]) -> None:
    for one, kind in itertools.product(found, ("average", "average in one bucket of two passes")):
        both, half, none = one[kind]
        assert torch.equal(both, torch.full((2, 3), 1.5))
        assert torch.equal(half, torch.full((4,), 4.0))
        assert none is None


def test_statistics_are_those_of_all_processes(found: list[dict[str, Any]]) -> None:
    values = torch.tensor([0.0, 1, 2, 10, 11, 12])
    for one in found:
        assert one["statistics"]["x"] == {
            "count": 6,
            "mean": 6,
            "std": pytest.approx(float(values.std(correction=0))),
        }
        assert one["statistics"]["y"]["mean"] == 0.5


def test_modules_start_as_copies_of_the_first(found: list[dict[str, Any]]) -> None:
    first, second = (one["copy"] for one in found)
    assert not differing(first, second)
    torch.manual_seed(0)
    assert torch.equal(first["running_mean"], torch.randn(3))


def test_training_keeps_all_processes_alike(found: list[dict[str, Any]]) -> None:
    first, second = (one["train"]["state"] for one in found)
    assert first["progress"]["images"] == 8
    assert not differing(first, second)


def test_the_mean_latent_is_that_of_all_processes(found: list[dict[str, Any]]) -> None:
    means = [
        torch.stack(both).mean(dim=0)
        for both in zip(*(one["train"]["means"] for one in found), strict=True)
    ]
    expected = 0.998 * (0.002 * means[0]) + 0.002 * means[1]
    torch.testing.assert_close(found[0]["train"]["state"]["G"]["backbone.mapping.w_avg"], expected)
    assert not torch.equal(found[0]["train"]["means"][0], found[1]["train"]["means"][0])


def test_one_process_needs_no_group() -> None:
    assert (distributed.is_distributed(), distributed.rank(), distributed.world_size()) == (
        False,
        0,
        1,
    )
    value = torch.tensor([3.0])
    assert distributed.sum_over_processes(value) is value
    kept = average()
    for gradient, expected in zip(kept, gradients_of(0), strict=True):
        assert (gradient is None) == (expected is None)
        if gradient is not None and expected is not None:
            assert torch.equal(gradient, expected)
    state = copy()
    torch.manual_seed(0)
    assert torch.equal(state["running_mean"], torch.randn(3))


def test_buckets_are_filled_from_the_last_layer_on() -> None:
    parameters = [nn.Parameter(torch.zeros(size)) for size in (3, 1, 9, 2, 2)]
    assert [[p.numel() for p in bucket] for bucket in make_buckets(parameters, 16)] == [
        [2, 2],
        [9],
        [1, 3],
    ]
    assert make_buckets([], 16) == []
