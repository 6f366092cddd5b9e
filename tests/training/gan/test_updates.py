"""Updates whose loss or gradient is not finite: nothing of them stays, in any process, and the log
tells of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dnnlib.console import UserError
from tests.tiny import differing, orbit_labels, pictures, tensors_of, tiny_config, write_dataset
from torch_utils.distributed.collectives import rank, world_size
from torch_utils.distributed.processes import run_processes
from torch_utils.distributed.reduction import GradientAverage
from torch_utils.stats import Statistics
from training.checkpoints.checkpoint import load_checkpoint
from training.config.settings import Config
from training.data.dataset import to_float
from training.gan import trainer as trainer_module
from training.gan.trainer import Trainer
from training.gan.updates import update_of
from training.run.loop import RunOptions, run_training
from training.run.saving import snapshot_name

CPU = torch.device("cpu")
ADA = ("augment.mode=ada", "augment.p=0.4", "augment.interval=1", "augment.kimg=0.1")


def broken(name: str, change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a loss come out wrong."""
    original = getattr(trainer_module.loss, name)
    monkeypatch.setattr(
        trainer_module.loss, name, lambda *given, **options: change(original(*given, **options))
    )


def batch(first: int, size: int) -> tuple[Tensor, Tensor]:
    chosen = [(first + place) % 16 for place in range(rank(), size, world_size())]
    return to_float(torch.from_numpy(pictures(16)).permute(0, 3, 1, 2))[chosen], orbit_labels(16)[
        chosen
    ]


# --------------------------------------------------------------------------------------------------
# One update


def take(change: Callable[[Tensor], Tensor]) -> tuple[nn.Parameter, dict[str, Any], bool]:
    """An update of one parameter by the loss `change(sum of its squares)`."""
    parameter = nn.Parameter(torch.tensor([3.0, 4.0]))
    statistics, optimizer = Statistics(), torch.optim.SGD([parameter], lr=0.5)
    with update_of(GradientAverage([parameter]), optimizer, 2, statistics) as update:
        for part in (torch.tensor([0]), torch.tensor([1])):
            value = change(parameter.square().sum())
            update.report("Loss", value)
            update.backward(value, part)
    return parameter, statistics.collect(), bool(update.applied)


def test_a_finite_update_applied_and_told() -> None:
    parameter, told, applied = take(lambda value: value)
    assert applied
    assert parameter.tolist() == [0, 0]  # minus 0.5 times twice itself
    assert told["Loss"] == {"count": 2, "mean": 25, "std": 0}
    assert not parameter.requires_grad


BAD: dict[str, Callable[[Tensor], Tensor]] = {
    "nan loss": lambda value: value * math.nan,
    "infinite loss with a finite gradient": lambda value: value + math.inf,
    "infinite gradient of a finite loss": lambda value: (value - value.detach()).sqrt(),
    "gradient whose norm overflows": lambda value: value * 1e30,
}


@pytest.mark.parametrize("kind", BAD)
def test_others_leave_nothing(kind: str) -> None:
    parameter, told, applied = take(BAD[kind])
    assert not applied
    assert parameter.tolist() == [3, 4]
    assert told == {}


# --------------------------------------------------------------------------------------------------
# A step


def test_skipped_updates_poison_neither_ada_nor_averages_nor_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = Trainer(tiny_config(*ADA), orbit_labels(16), CPU)
    trainer.step(*batch(0, 4))
    p, w_avg = float(trainer.augment.p), trainer.G.backbone.mapping.w_avg.clone()
    trainer.statistics.collect()
    for name in ("loss_real", "loss_fake", "r1_penalty", "density_regularisation"):
        broken(name, lambda value: value * math.nan, monkeypatch)
    forward = trainer.D.forward
    monkeypatch.setattr(
        trainer.D, "forward", lambda *given, **options: forward(*given, **options) * math.nan
    )
    before = {
        name: {key: value.clone() for key, value in getattr(trainer, name).state_dict().items()}
        for name in ("G", "D", "G_ema")
    }
    for step in (1, 2, 3):
        trainer.step(*batch(4 * step, 4))
    assert float(trainer.augment.p) == p
    assert all(math.isfinite(value) for value in trainer.adaptation.state_dict()["sums"])
    for name in ("G", "D"):
        assert not [
            key
            for key in differing(before[name], getattr(trainer, name).state_dict())
            if not key.endswith("w_avg")
        ]
    for _, value in tensors_of({name: getattr(trainer, name).state_dict() for name in before}):
        assert bool(value.isfinite().all())
    assert not torch.equal(trainer.G.backbone.mapping.w_avg, w_avg)  # finite fakes still count
    told = trainer.statistics.collect()
    assert all(math.isfinite(value["mean"]) for value in told.values())
    assert "Loss/D" not in told
    assert trainer.progress.skipped == 6
    assert told["Gradients/nonfinite_D"]["mean"] == 1


def test_latents_that_are_not_finite_do_not_reach_their_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = Trainer(tiny_config(), orbit_labels(16), CPU)
    trainer.step(*batch(0, 4))
    w_avg = trainer.G.backbone.mapping.w_avg.clone()
    mapping = trainer.G.backbone.mapping.forward

    def wrong(*given: Any, **options: Any) -> Tensor:
        ws = mapping(*given, **options)
        if options.get("update_w_avg") or (len(given) > 4 and given[4]):
            trainer.G.backbone.mapping.w_avg.fill_(math.nan)
        return ws * math.nan

    monkeypatch.setattr(trainer.G.backbone.mapping, "forward", wrong)
    trainer.step(*batch(4, 4))
    assert torch.equal(trainer.G.backbone.mapping.w_avg, w_avg)
    assert torch.equal(trainer.G_ema.backbone.mapping.w_avg, w_avg)


def train_with_a_bad_process(device: torch.device, config: Config, folder: Path) -> None:
    """Three steps, in the second of which the losses of process 1 are wrong."""
    trainer = Trainer(config, orbit_labels(16), device)
    with pytest.MonkeyPatch.context() as patch:
        broken(
            "loss_fake",
            lambda value: value * (math.nan if rank() == 1 and trainer.progress.steps == 1 else 1),
            patch,
        )
        for step in range(3):
            trainer.step(*batch(8 * step, 8))
            trainer.statistics.collect()
    torch.save((trainer.state_dict(), trainer.progress.skipped), folder / str(rank()))


def test_an_update_is_skipped_in_all_processes(tmp_path: Path) -> None:
    run_processes(
        2, "cpu", train_with_a_bad_process, tiny_config("training.batch=8", *ADA), tmp_path, hint=""
    )
    (first, skipped), (second, others) = (
        torch.load(tmp_path / str(process)) for process in range(2)
    )
    assert skipped == others == 1
    assert not differing(first, second)
    # of D twice and of its regulariser once
    assert first["optimizers"]["D"]["state"][0]["step"] == 3
    assert all(
        bool(value.isfinite().all()) for _, value in tensors_of(first) if isinstance(value, Tensor)
    )


# --------------------------------------------------------------------------------------------------
# A run


def configure(tmp_path: Path, steps: int) -> Config:
    options = (
        "snapshot.tick_kimg=0.004",
        "snapshot.snap_ticks=1",
        "training.gamma=0",
        "training.density_reg=0",
    )
    config = tiny_config(f"training.kimg={steps * 0.004}", *options)
    config.data.path = str(write_dataset(tmp_path / "data.zip"))
    return config


def test_a_skipped_update_is_logged_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def once(value: Tensor) -> Tensor:
        calls.append(1)
        return value * (math.nan if len(calls) == 2 else 1)

    broken("loss_fake", once, monkeypatch)
    run_training(configure(tmp_path, 3), RunOptions(tmp_path, CPU))
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert [line for line in log if line.startswith("warning:")] == [
        "warning: skipped at 0.008 kimg, loss or gradient not finite: D (1 in a row)"
    ]
    assert [line.split("skipped")[1].split()[0] for line in log if line.startswith("kimg")] == [
        "0",
        "1",
        "1",
    ]
    assert load_checkpoint(tmp_path / snapshot_name(12)).progress["skipped"] == 1


def test_a_run_that_does_not_recover_stops_and_keeps_its_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def soon(value: Tensor) -> Tensor:
        calls.append(1)
        return value * (math.nan if len(calls) > 2 else 1)

    broken("loss_fake", soon, monkeypatch)
    with pytest.raises(UserError, match=r"20 updates in a row .*last good checkpoint is kept"):
        run_training(configure(tmp_path, 100), RunOptions(tmp_path, CPU))
    assert len(calls) == 22
    state = load_checkpoint(tmp_path / snapshot_name(80))
    assert all(
        bool(value.isfinite().all()) for _, value in tensors_of([state.G, state.D, state.G_ema])
    )
