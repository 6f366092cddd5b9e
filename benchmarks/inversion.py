"""How well photos become identities: python -m benchmarks.inversion --count 100; a call that was
ended goes on.

Built-in heads that a model never saw, each from yaws -45 to 45 with exact cameras and depth. The
view at yaw 0 is inverted; the others say what the identity looks like from there. The ceiling is
the same fit given all views. A table in Markdown, means over the heads.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from data_tools.heads.basis import load_basis
from data_tools.heads.dataset import HEADS_RADIUS, HeadsConfig, render_head
from data_tools.heads.person import build_head, random_person
from data_tools.heads.render import Raycaster
from dnnlib.console import HELP, run_cli
from dnnlib.files import cache_dir
from metrics.weights import file_hash
from open_eg3d import SHIPPED_MODEL, load_generator
from open_eg3d.inverting import choose_perceptual
from training.cameras import cameras_of, orbit_pose, pack_label, unpack_label
from training.inversion.inversion import (
    Inversion,
    InversionSettings,
    Method,
    invert_pictures,
)
from training.inversion.latents import LatentSettings, LatentStatistics
from training.inversion.objective import Objective, Perceptual
from training.inversion.pose import angle_between
from training.inversion.pti import TuningSettings
from training.networks.generator import Generator

YAWS = (-45, -30, -15, 0, 15, 30, 45)
FRONT, ALL_VIEWS = YAWS.index(0), slice(None)
NOVEL = (15, 30, 45)
POSE_OFF = 10.0  # degrees
ROWS = (
    "mean face",
    "w",
    "w+",
    "pti",
    "pti without geometry",
    "encoder",
    "encoder+pti",
    "ceiling: pti of all views",
)
POSES = "pose"


@dataclasses.dataclass(frozen=True, eq=False)
class Views:
    """One head: pictures (7, 3, R, R) in [-1, 1], labels (7, 25), depths (7, R, R), 0 = nothing."""

    images: Tensor
    labels: Tensor
    depths: Tensor


def unseen_heads(generator: Generator, count: int, seed: int) -> Iterator[Views]:
    """Heads by number, in the lens and size of the generator."""
    basis, config = load_basis(), HeadsConfig(resolution=generator.config.resolution, workers=1)
    yaws = torch.tensor(YAWS).double().deg2rad()
    _, intrinsics = unpack_label(cameras_of(generator).frontal_label().double())
    labels = pack_label(orbit_pose(yaws, torch.zeros_like(yaws), HEADS_RADIUS), intrinsics)
    for number in range(count):
        head = build_head(basis, random_person(basis, np.random.default_rng((seed, number))))
        raycaster = Raycaster(head.mesh)
        seen = [render_head(head, c.numpy(), config, raycaster) for c in labels]
        pictures = torch.from_numpy(np.stack([one.image for one in seen])).movedim(-1, 1)
        depths = torch.from_numpy(np.stack([one.depth for one in seen])).float()
        yield Views(pictures.float() / 127.5 - 1, labels.float(), depths)


@torch.no_grad()
def figures(generator: Generator, ws: Tensor, views: Views, seconds: float) -> list[float]:
    """PSNR of the input view and of novel ones, depth error, seconds."""
    out = generator.render(generator.planes(ws), ws, views.labels)
    psnr = Objective(views.images).psnr(out.image)
    sides = [[index for index, yaw in enumerate(YAWS) if abs(yaw) == angle] for angle in NOVEL]
    novel = [float(psnr[indices].mean()) for indices in sides]
    return [float(psnr[FRONT]), *novel, depth_error(out.image_depth, views.depths), seconds]


def depth_error(found: Tensor, depths: Tensor) -> float:
    """Mean absolute difference of depths (K, 1, r, r) and (K, R, R) on the head, after the median
    of all differences is taken off; world units.
    """
    size = found.shape[-2:]
    true = torch.nn.functional.interpolate(depths[:, None], size, mode="nearest-exact")
    difference = (found - true)[true > 0]
    return float((difference - difference.median()).abs().mean())


def invert_row(
    row: str, generator: Generator, views: Views, perceptual: Perceptual, steps: tuple[int, int]
) -> Inversion:
    """One of the rows but the first."""
    chosen = ALL_VIEWS if row.startswith("ceiling") else slice(FRONT, FRONT + 1)
    tuning = TuningSettings(steps=steps[1])
    if row == "pti without geometry":
        tuning = dataclasses.replace(tuning, geometry=0.0, pictures=0.0)
    method: Method = "pti" if "pti " in row else row  # type: ignore[assignment]
    settings = InversionSettings(method, LatentSettings(steps=steps[0]), tuning)
    objective = Objective(views.images[chosen], None, perceptual)
    return invert_pictures(generator, objective, views.labels[chosen], settings)


def pose_error(
    generator: Generator, views: Views, perceptual: Perceptual, steps: tuple[int, int]
) -> float:
    """Degrees from the true camera, from a start 10 degrees off."""
    cameras = cameras_of(generator)
    start = cameras.label(math.radians(POSE_OFF), 0.0)[None]
    objective = Objective(views.images[FRONT, None], None, perceptual)
    settings = InversionSettings("w", LatentSettings(steps=steps[0]))
    found = invert_pictures(generator, objective, start, settings, optimise_pose=True)
    return angle_between(found.labels[0], views.labels[FRONT], cameras)


def table(values: dict[str, list[list[float]]], poses: Sequence[float]) -> Iterator[str]:
    """Lines of Markdown."""
    novel = " | ".join(f"{angle} degrees" for angle in NOVEL)
    yield f"| | input view, dB | {novel} | depth error | seconds |"
    yield "|---|---|---|---|---|---|---|"
    for row, found in values.items():
        means = np.mean(found, axis=0)
        decibels = " | ".join(f"{value:.1f}" for value in means[:4])
        yield f"| {row} | {decibels} | {means[4]:.4f} | {means[5]:.0f} |"
    if poses:
        near = sum(error < 1 for error in poses)
        yield ""
        yield (
            f"Pose from {POSE_OFF:.0f} degrees off: {np.median(poses):.2f} degrees (median), below"
            f" 1 in {near} of {len(poses)}"
        )


def figures_of(
    row: str, generator: Generator, views: Views, perceptual: Perceptual, steps: tuple[int, int]
) -> list[float]:
    """Figures of one head in one row, or its pose error."""
    started = time.monotonic()
    if row == POSES:
        return [pose_error(generator, views, perceptual, steps)]
    if row == "mean face":
        ws = LatentStatistics.of(generator).mean.expand(1, generator.num_ws, -1)
        return figures(generator, ws, views, time.monotonic() - started)
    found = invert_row(row, generator, views, perceptual, steps)
    return figures(found.generator, found.ws, views, found.seconds)


def measure(
    network: str,
    count: int = 100,
    seed: int = 20_000,
    steps: tuple[int, int] = (400, 350),
    rows: Sequence[str] = (*ROWS, POSES),
) -> str:
    """The table of `count` heads, in Markdown. Figures are kept in the cache as they come."""
    generator = load_generator(network, reuse_memory=True)
    perceptual, told = choose_perceptual((), torch.device("cpu"))
    click.echo(told, err=True)
    name = f"inversion-{file_hash(Path(network))[:16]}-{seed}-{steps[0]}-{steps[1]}.jsonl"
    kept = cache_dir() / name
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    known = {(number, row): values for number, row, values in map(json.loads, lines)}
    for number, views in enumerate(unseen_heads(generator, count, seed)):
        for row in rows:
            if (number, row) not in known:
                values = figures_of(row, generator, views, perceptual, steps)
                known[number, row] = values
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([number, row, values]) + "\n")
                click.echo(f"head {number}, {row}: {np.round(values, 3).tolist()}", err=True)
    numbers = range(count)
    shown = {row: [known[number, row] for number in numbers] for row in rows if row != POSES}
    errors = [known[number, POSES][0] for number in numbers] if POSES in rows else []
    return "\n".join(table(shown, errors))


@click.command(context_settings=HELP)
@click.option("--network", default=str(SHIPPED_MODEL), help="Checkpoint.")
@click.option("--count", type=click.IntRange(1), default=100, help="Heads.")
@click.option("--seed", default=20_000, help="Of the heads.")
@click.option("--steps", type=(int, int), default=(400, 350))
@click.option("--rows", default=",".join((*ROWS, POSES)), help="Some of these.")
def main(network: str, count: int, seed: int, steps: tuple[int, int], rows: str) -> None:
    """Print the table of docs/inversion.md."""
    click.echo(measure(network, count, seed, steps, rows.split(",")))


if __name__ == "__main__":
    run_cli(main)
