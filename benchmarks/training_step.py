"""Time of one training step at laptop sizes, per setting, interleaved: python -m
benchmarks.training_step [--json].
"""

from __future__ import annotations

import json
import statistics
import time

import click
import torch

from benchmarks.timing import resolution_option
from dnnlib.console import HELP
from training.cameras import orbit_pose, pack_label, pinhole_intrinsics
from training.config.presets import HEADS_FOCAL, HEADS_RADIUS, make_config
from training.gan.trainer import Trainer

SETTINGS: dict[str, dict[str, object]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "bf16, own fakes for D": {"precision": "bf16", "shared_fakes": False},
}


def build(settings: dict[str, object], resolution: int) -> Trainer:
    """A trainer of the heads preset with some training settings changed."""
    config = make_config("heads", resolution, "laptop")
    for name, value in settings.items():
        setattr(config.training, name, value)
    return Trainer(config, random_labels(64), torch.device("cpu"))


def random_labels(count: int) -> torch.Tensor:
    """Labels (count, 25) of cameras on the heads' orbit."""
    yaw, pitch = (torch.rand(count) - 0.5) * 1.5, (torch.rand(count) - 0.5) * 0.7
    return pack_label(orbit_pose(yaw, pitch, HEADS_RADIUS), pinhole_intrinsics(HEADS_FOCAL))


@click.command(context_settings=HELP)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=16,
    help="Steps a setting; 16 see every regulariser once.",
)
@resolution_option(64, 64, 128)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def main(steps: int, resolution: str, as_json: bool) -> None:
    """Print the mean and median time of a step, and images a second."""
    size = int(resolution)
    trainers = {name: build(settings, size) for name, settings in SETTINGS.items()}
    batch = next(iter(trainers.values())).config.training.batch
    images, labels = torch.rand(batch, 3, size, size) * 2 - 1, random_labels(batch)
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for trainer in trainers.values():
        trainer.step(images, labels)
    for _ in range(steps):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            trainer.step(images, labels)
            times[name].append(time.perf_counter() - start)
    rows = {
        name: {
            "mean_s": statistics.mean(t),
            "median_s": statistics.median(t),
            "images_per_s": batch / statistics.mean(t),
        }
        for name, t in times.items()
    }
    if as_json:
        click.echo(
            json.dumps({"threads": torch.get_num_threads(), "resolution": size, "rows": rows})
        )
        return
    click.echo(f"{torch.get_num_threads()} threads, {size} pixels, batch {batch}")
    for name, row in rows.items():
        click.echo(
            f"{name:24} mean {row['mean_s'] * 1e3:7.1f} ms  median {row['median_s'] * 1e3:7.1f} ms "
            f" {row['images_per_s']:6.1f} img/s"
        )


if __name__ == "__main__":
    main()
