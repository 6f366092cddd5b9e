"""Two processes, or micro-batches, give the gradients of one process that handles the whole batch
at once: all phases, all random draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.tiny import orbit_labels, pictures, tiny_config
from torch_utils.distributed.collectives import gather_batch, rank, world_size
from torch_utils.distributed.processes import run_processes
from torch_utils.sample_random import SampleStreams, rand, randint, randn, samples_draw_from
from training.config.settings import Config
from training.data.dataset import to_float
from training.gan.batches import RankShard, RngStream, camera_std, draw_cameras
from training.gan.trainer import Trainer
from training.networks.discriminator import append_minibatch_std

CPU = torch.device("cpu")
BATCH, STEPS = 8, 3
OPTIONS = (
    "augment.mode=ada",
    "augment.p=0.7",
    "augment.interval=2",
    "augment.kimg=0.1",
    "training.swap_start=0.5",
    "training.swap_final=0.5",
    "training.d_reg_interval=2",
    "training.g_reg_interval=2",
    "discriminator.c_noise=0.3",
)


def configure(*assignments: str) -> Config:
    return tiny_config(f"training.batch={BATCH}", *OPTIONS, *assignments)


def train(device: torch.device, config: Config) -> dict[str, list[list[Tensor | None]]]:
    """Gradients that each optimiser step of some training steps used; p and the mean latent in the
    end.
    """
    trainer = Trainer(config, orbit_labels(16), device)
    with torch.no_grad():
        for name, parameter in trainer.G.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.3)  # else noise would not show
    taken: dict[str, list[list[Tensor | None]]] = {"G": [], "D": []}
    for name, optimizer in (("G", trainer.G_optimizer), ("D", trainer.D_optimizer)):

        def note(
            *_: Any,
            name: str = name,
            parameters: Sequence[Tensor] = optimizer.param_groups[0]["params"],
        ) -> None:
            taken[name].append([None if p.grad is None else p.grad.clone() for p in parameters])

        optimizer.register_step_pre_hook(note)
    images, labels = to_float(torch.from_numpy(pictures(16)).permute(0, 3, 1, 2)), orbit_labels(16)
    for step in range(STEPS):
        mine = [(BATCH * step + place) % 16 for place in range(rank(), BATCH, world_size())]
        trainer.step(images[mine], labels[mine])
    taken["p"] = [[trainer.augment.p.clone()], [trainer.G.backbone.mapping.w_avg.clone()]]
    return taken


def train_and_write(device: torch.device, config: Config, path: Path) -> None:
    taken = train(device, config)
    if rank() == 0:
        torch.save(taken, path)


def check_same(
    found: dict[str, list[list[Tensor | None]]], expected: dict[str, list[list[Tensor | None]]]
) -> None:
    """Equal but for the rounding of sums, which training passes on from step to step."""
    assert len(expected["G"]) == STEPS + 2
    assert len(expected["D"]) == STEPS + 2
    for name in expected:
        assert len(found[name]) == len(expected[name])
        for step, (gradients, others) in enumerate(zip(found[name], expected[name], strict=True)):
            scale = max(float(g.abs().max()) for g in others if g is not None)
            for mine, other in zip(gradients, others, strict=True):
                assert (mine is None) == (other is None)
                if mine is not None and other is not None:
                    torch.testing.assert_close(
                        mine, other, rtol=1e-3, atol=2e-5 * scale, msg=f"{name}, step {step}"
                    )


@pytest.fixture(scope="module")
def whole() -> dict[str, list[list[Tensor | None]]]:
    return train(CPU, configure())


PENALTIES = ("training.gamma_fakes=3",)


@pytest.mark.parametrize("options", [(), PENALTIES], ids=["published", "penalties"])
@pytest.mark.parametrize("shared", [False, True])
def test_micro_batches_change_nothing(
    whole: dict[str, Any], shared: bool, options: tuple[str, ...]
) -> None:
    options += (f"training.shared_fakes={str(shared).lower()}",)
    expected = train(CPU, configure(*options)) if shared or len(options) > 1 else whole
    check_same(train(CPU, configure("training.batch_gpu=4", *options)), expected)


@pytest.mark.parametrize(
    ("group", "micro", "others"), [(4, "null", ()), (2, "2", ()), (4, "null", PENALTIES)]
)
def test_two_processes_change_nothing(
    whole: dict[str, Any], tmp_path: Path, group: int, micro: str, others: tuple[str, ...]
) -> None:
    options = (f"discriminator.mbstd_group_size={group}", *others)
    expected = whole if group == 4 and not others else train(CPU, configure(*options))
    run_processes(
        2,
        "cpu",
        train_and_write,
        configure(*options, f"training.batch_gpu={micro}"),
        tmp_path / "found.pt",
        hint="",
    )
    check_same(torch.load(tmp_path / "found.pt"), expected)


def test_the_comparison_notices_other_random_numbers(whole: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        check_same(train(CPU, configure("training.seed=1")), whole)


# --------------------------------------------------------------------------------------------------
# Dealing


@given(st.sampled_from([1, 2, 4]), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_groups_of_the_minibatch_statistics_are_those_of_the_whole_batch(
    group: int, groups: int, parts: int, processes: int
) -> None:
    micro = group * groups
    batch = micro * parts * processes
    config = tiny_config(
        f"training.batch={batch}",
        f"training.batch_gpu={micro}",
        f"discriminator.mbstd_group_size={group}",
    )
    features = torch.randn(batch, 2, 4, 4, generator=torch.Generator().manual_seed(batch))
    expected = append_minibatch_std(features, group)
    seen = []
    for process in range(processes):
        shard = RankShard(config, process, processes)
        assert shard.positions.tolist() == list(range(process, batch, processes))
        assert len(shard.micro_batches) == parts
        for part in shard.micro_batches:
            chosen = shard.positions[part]
            seen += chosen.tolist()
            torch.testing.assert_close(
                append_minibatch_std(features[chosen], group), expected[chosen]
            )
    assert sorted(seen) == list(range(batch))


def test_a_batch_handled_at_once_keeps_its_order() -> None:
    (part,) = RankShard(configure()).micro_batches
    assert part.tolist() == list(range(BATCH))


def test_swapped_cameras_and_deviations_are_those_of_the_whole_batch() -> None:
    labels = orbit_labels(16)
    c, swapped_c = draw_cameras(labels, 4, BATCH, seed=3, images=80)
    assert torch.equal(swapped_c, c.roll(1, dims=1))
    torch.testing.assert_close(camera_std(c[0])[0], c[0].std(dim=0))
    others = draw_cameras(labels, 4, BATCH, seed=3, images=88)[0]
    assert not torch.equal(c, others)


def gather(device: torch.device, path: Path) -> None:
    whole = torch.arange(12.0).view(6, 2)
    torch.save(gather_batch(whole[rank() :: world_size()].to(device)), path / str(rank()))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_batch_is_gathered_in_its_order(tmp_path: Path, processes: int) -> None:
    run_processes(processes, "cpu", gather, tmp_path, hint="")
    for process in range(processes):
        assert torch.equal(torch.load(tmp_path / str(process)), torch.arange(12.0).view(6, 2))


# --------------------------------------------------------------------------------------------------
# Streams

DRAWS: tuple[Callable[..., Tensor], ...] = (rand, randn, lambda *shape: randint(1000, *shape))


@pytest.mark.parametrize("draw", DRAWS)
def test_samples_draw_the_same_in_any_company(draw: Callable[..., Tensor]) -> None:
    def drawn(seeds: list[int]) -> Tensor:
        with samples_draw_from(SampleStreams(seeds)):
            first = draw(2 * len(seeds), 3)
            return torch.cat([*first.chunk(2), draw(len(seeds), 3)], dim=1)

    together = drawn([5, 6, 7])
    assert torch.equal(drawn([7, 5]), together[[2, 0]])
    assert len(together.unique()) == together.numel()


def test_outside_of_streams_numbers_are_those_of_torch() -> None:
    torch.manual_seed(0)
    found = rand(3, 2), randn(3, 2, dtype=torch.float64)
    torch.manual_seed(0)
    assert torch.equal(found[0], torch.rand(3, 2))
    assert torch.equal(found[1], torch.randn(3, 2, dtype=torch.float64))


def test_rows_that_do_not_divide_are_refused() -> None:
    with samples_draw_from(SampleStreams([1, 2])), pytest.raises(ValueError, match="3 rows"):
        rand(3)
    assert rand(3).shape == (3,)  # and the streams are left


def test_streams_reach_compiled_code() -> None:
    def work(x: Tensor) -> Tensor:
        return x * randn(*x.shape) + randn(*x.shape)

    compiled = torch.compile(work, fullgraph=True, backend="aot_eager")
    x = torch.ones(2, 5)
    with samples_draw_from(SampleStreams([1, 2])):
        expected = work(x)
    for _ in range(2):
        with samples_draw_from(SampleStreams([1, 2])):
            assert torch.equal(compiled(x), expected)


def test_purposes_have_streams_of_their_own() -> None:
    shard, numbers = RankShard(configure()), []
    for stream in RngStream:
        with samples_draw_from(shard.streams(0, 8, stream)):
            numbers.append(rand(BATCH))
    assert len(torch.stack(numbers).unique()) == len(RngStream) * BATCH
    # by the number in the run
    assert (
        shard.streams(0, 8, RngStream.G, torch.tensor([2])).seeds
        == shard.streams(0, 10, RngStream.G).seeds[:1]
    )
