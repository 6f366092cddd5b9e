"""What a checkpoint costs training: python -m benchmarks.checkpoint_stall [--sizes
laptop|published] [--json FILE].

`stall` is how long the loop waits (for copies of all tensors), `write` how long the thread then
writes; steps taken meanwhile are compared with steps taken otherwise. `blocking` is what writing
without a thread costs.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Literal

import click
import torch

from benchmarks.timing import batch_option, json_option, resolution_option, show
from benchmarks.training_step import random_labels
from dnnlib.console import HELP
from torch_utils.memory import keep_freed_memory
from training.checkpoints.checkpoint import Checkpoint, save_checkpoint
from training.config.presets import make_config
from training.config.settings import SnapshotConfig
from training.gan.trainer import Trainer
from training.run.saving import SnapshotWriter, snapshot_name


def make_trainer(resolution: int, sizes: Literal["laptop", "published"], batch: int) -> Trainer:
    """A trainer of the ffhq preset, whose optimisers have their state already."""
    config = make_config("ffhq", resolution, sizes)
    config.training.batch, config.training.blur_sigma = batch, 0.0
    config.model.discriminator.mbstd_group_size = batch
    trainer = Trainer(config, random_labels(64), torch.device("cpu"))
    for optimizer in (trainer.G_optimizer, trainer.D_optimizer):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.full_like(parameter, 1e-6)
        optimizer.step()
        optimizer.zero_grad()
    return trainer


def checkpoint_of(trainer: Trainer) -> Checkpoint:
    """What the loop saves."""
    return Checkpoint(config=trainer.config, rng={}, cameras=None, **trainer.state_dict())


def time_step(trainer: Trainer) -> float:
    """Seconds of one step."""
    size, batch = trainer.config.model.resolution, trainer.config.training.batch
    start = time.perf_counter()
    trainer.step(torch.rand(batch, 3, size, size) * 2 - 1, random_labels(batch))
    return time.perf_counter() - start


@click.command(context_settings=HELP)
@click.option(
    "--sizes", type=click.Choice(["laptop", "published"]), default="laptop", help="Of the networks."
)
@resolution_option(64, 64, 128, 256, 512)
@batch_option(4)
@click.option("--rounds", type=click.IntRange(1), default=5, help="Checkpoints written.")
@click.option("--steps/--no-steps", default=True, help="Also take training steps while writing.")
@json_option
def main(
    sizes: Literal["laptop", "published"],
    resolution: str,
    batch: int,
    rounds: int,
    steps: bool,
    json_path: Path | None,
) -> None:
    """Write checkpoints in the background, with and without training steps beside them."""
    keep_freed_memory()
    trainer = make_trainer(int(resolution), sizes, batch)
    times: dict[str, list[float]] = {
        name: [] for name in ("blocking_s", "stall_s", "write_s", "step_s", "step_meanwhile_s")
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / snapshot_name(0)
        writer = SnapshotWriter(SnapshotConfig(), lambda _: None)
        if steps:
            time_step(trainer)
        for _ in range(rounds):
            start = time.perf_counter()
            save_checkpoint(path, checkpoint_of(trainer))
            times["blocking_s"].append(time.perf_counter() - start)
            if steps:
                times["step_s"] += [time_step(trainer) for _ in range(2)]
            start = time.perf_counter()
            writer.submit(path, checkpoint_of(trainer))
            times["stall_s"].append(time.perf_counter() - start)
            while steps and writer.is_writing:
                times["step_meanwhile_s"].append(time_step(trainer))
            writer.finish()
            times["write_s"].append(time.perf_counter() - start)
        size = path.stat().st_size
    medians = {name: statistics.median(values) for name, values in times.items() if values}
    show(
        f"Checkpoints, {sizes} sizes at {resolution} pixels",
        [{"MB": size / 1e6, **medians}],
        json_path,
    )


if __name__ == "__main__":
    main()
