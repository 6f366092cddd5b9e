"""One training iteration, by phase: python -m benchmarks.training_iteration [--json FILE].

iter_s = G + Greg/4 + D + Dreg/16, the intervals of lazy regularisation. With --floor a step of all
four phases is also compared with its convolutions and matrix products alone.
"""

from __future__ import annotations

import contextlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import torch

from benchmarks.floor import Floor, measure_floor
from benchmarks.timing import batch_option, json_option, resolution_option
from benchmarks.training_step import random_labels
from dnnlib.console import HELP
from torch_utils.memory import keep_freed_memory
from training.config.presets import make_config
from training.config.settings import Config
from training.gan.batches import Phase
from training.gan.trainer import Trainer
from training.gan.updates import Update


def make(
    preset: str,
    resolution: int,
    channel_base: int,
    channel_max: int,
    batch: int,
    nrr: int,
    precision: str,
) -> Config:
    """The ffhq preset with published sizes, narrower channels where asked; or the heads preset as
    it is.
    """
    if preset == "heads":
        config = make_config("heads", resolution, "laptop")
    else:
        config = make_config("ffhq", resolution, "published")
        for options in (config.model.generator, config.model.discriminator):
            options.channel_base, options.channel_max = channel_base, channel_max
        config.model.rendering.resolution = nrr
    training = config.training
    training.batch, training.precision = batch, precision  # type: ignore[assignment]
    training.g_reg_interval = training.d_reg_interval = 1  # every phase in every step
    return config


def time_phases(config: Config, steps: int) -> dict[str, float]:
    """Median seconds of each phase."""
    trainer = Trainer(config, random_labels(64), torch.device("cpu"))
    seconds: dict[str, list[float]] = {phase.value: [] for phase in Phase}
    update = trainer._update

    @contextlib.contextmanager
    def timed(phase: Phase) -> Iterator[Update]:
        start = time.perf_counter()
        with update(phase) as result:
            yield result
        seconds[phase.value].append(time.perf_counter() - start)

    setattr(trainer, "_update", timed)  # noqa: B010 - a method, which mypy would not see assigned
    size, batch = config.model.resolution, config.training.batch
    for _ in range(steps + 1):
        trainer.step(torch.rand(batch, 3, size, size) * 2 - 1, random_labels(batch))
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def step_floor(config: Config, steps: int) -> Floor:
    """A step of all four phases beside its convolutions and matrix products alone."""
    trainer = Trainer(config, random_labels(64), torch.device("cpu"))
    size, batch = config.model.resolution, config.training.batch
    images, labels = torch.rand(batch, 3, size, size) * 2 - 1, random_labels(batch)
    return measure_floor(lambda: trainer.step(images, labels), steps)


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far."""
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024)
        / 1e9
    )


@click.command(context_settings=HELP)
@click.option(
    "--cfg",
    "preset",
    type=click.Choice(["ffhq", "heads"]),
    default="ffhq",
    help="heads: laptop sizes, of which --resolution, --batch and --precision alone may change.",
)
@resolution_option(128, 64, 128, 256, 512)
@click.option("--channel-base", type=click.IntRange(256), default=8192, help="Of both networks.")
@click.option("--channel-max", type=click.IntRange(16), default=256, help="Of both networks.")
@batch_option(4)
@click.option("--nrr", type=click.IntRange(8), default=64, help="Pixels of the rendering.")
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", help="Of the convolutions."
)
@click.option(
    "--steps", type=click.IntRange(1), default=3, help="Iterations, after one that is not counted."
)
@click.option("--floor", "with_floor", is_flag=True, help="Also compare with the products alone.")
@json_option
def main(
    preset: str,
    resolution: str,
    channel_base: int,
    channel_max: int,
    batch: int,
    nrr: int,
    precision: str,
    steps: int,
    with_floor: bool,
    json_path: Path | None,
) -> None:
    """Time G, Greg, D and Dreg, and what an iteration makes of them."""
    keep_freed_memory()
    config = make(preset, int(resolution), channel_base, channel_max, batch, nrr, precision)
    seconds = time_phases(config, steps)
    iteration = seconds["G"] + seconds["Greg"] / 4 + seconds["D"] + seconds["Dreg"] / 16
    figures = {
        **seconds,
        "iter_s": iteration,
        "img_per_s": batch / iteration,
        "peak_rss_gb": peak_memory_gb(),
    }
    if with_floor:
        floor = step_floor(config, steps)
        figures |= {"floor_s": floor.alone, "step/floor": floor.ratio}
    click.echo(
        f"{precision}, {torch.get_num_threads()} threads: "
        + "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
    )
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
