"""What a run says: what it has at its start, how fast it is, one line per tick."""

from __future__ import annotations

import datetime
import math
import shlex
from pathlib import Path

import psutil
import torch
from torch import nn

from dnnlib.numbers import counted
from training.config.settings import Config
from training.data.dataset import ImageDataset
from training.data.scene import CameraSummary
from training.gan.trainer import Trainer

# label, statistic, form, and what it is
COLUMNS = (
    ("G", "Loss/G", "6.3f", "loss of the generator"),
    ("D", "Loss/D", "6.3f", "loss of the discriminator"),
    ("real", "Logits/real", "6.2f", "its mean answer to real pictures"),
    ("fake", "Logits/fake", "6.2f", "to fakes (above 0: taken for real)"),
    ("r1", "Loss/R1", "8.3g", "R1 penalty"),
    ("w", "Spread/w", "4.2f", "share of w that varies with the seed"),
    (
        "seeds",
        "Spread/pixels",
        "4.2f",
        "spread of fakes at one camera, of the reals' (near 0: all alike)",
    ),
    ("depth", "Depth/spread", "6.3f", "spread of depth (near 0: flat)"),
    ("aug", "Augment/p", "5.3f", "augmentation probability"),
    ("skipped", "Progress/skipped_updates", "g", "updates left out so far"),
    ("GiB", "Memory/cpu_gib", "5.2f", "memory of the process"),
    ("img/s", "Progress/images_per_second", "6.1f", "real images per second"),
)


def start_lines(
    config: Config, dataset: ImageDataset, cameras: CameraSummary, trainer: Trainer, folder: Path
) -> list[str]:
    """What a new run has: data, networks, steps, where to look, and what a tick's columns mean."""
    count, training = len(dataset.file_names), config.training
    mirrored = ", each also mirrored" if dataset.is_mirrored else ""
    steps = math.ceil(training.kimg * 1000 / training.batch)
    columns = "; ".join(f"{label} {meaning}" for label, _, _, meaning in COLUMNS)
    return [
        f"Data: {counted(count, 'picture')} of {dataset.resolution} pixels{mirrored}; cameras with"
        f" yaw {_degrees(cameras.yaw_range)}, pitch {_degrees(cameras.pitch_range)}, at distance"
        f" {cameras.radius:.3g}",
        f"Generator: {parameter_count(trainer.G):,} parameters; discriminator:"
        f" {parameter_count(trainer.D):,}",
        f"Steps: {training.batch} pictures each, {1000 / training.batch:g} per kimg, {steps:,} for"
        f" all {training.kimg:g} kimg",
        f"Pictures, log and checkpoints: {folder}; curves: tensorboard --logdir"
        f" {shlex.quote(str(folder.parent))}",
        f"Columns: {columns}",
    ]


def _degrees(angles: tuple[float, float]) -> str:
    return f"{math.degrees(angles[0]):.0f} to {math.degrees(angles[1]):.0f} degrees"


def parameter_count(network: nn.Module) -> int:
    """Numbers that a network learns."""
    return sum(parameter.numel() for parameter in network.parameters())


def speed_line(images: int, seconds: float, left: int, limit: float | None) -> str:
    """How fast the first steps were, and when a run with `left` images to go will end at that speed
    (or after `limit` more seconds, if that is sooner).
    """
    speed = images / max(seconds, 1e-9)
    rest = left / speed
    until = "for the rest" if limit is None or rest < limit else "until the time limit"
    return (
        f"Speed so far: {speed:.1f} images per second, {_duration(1000 / speed)} per kimg,"
        f" {_duration(rest if limit is None else min(rest, limit))} {until}"
    )


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(max(seconds, 0))))


def expected_images(images: int, done: int, seconds: float, left: float, total: int) -> int:
    """Images at which a run ends that has `left` seconds to go and took `done` images in `seconds`;
    at most `total`.
    """
    return min(total, images + round(done / max(seconds, 1e-9) * max(left, 0)))


def memory_gib(device: torch.device) -> dict[str, float]:
    """Memory this process holds, in GiB."""
    values = {"Memory/cpu_gib": psutil.Process().memory_info().rss / 2**30}
    if device.type == "cuda":
        values["Memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return values


def tick_line(kimg: float, values: dict[str, float]) -> str:
    """One line for people about a tick."""
    return f"kimg {kimg:9.3f}  " + "  ".join(
        f"{label} {values[name]:{style}}" for label, name, style, _ in COLUMNS if name in values
    )
