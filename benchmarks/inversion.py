"""How well photos become identities: python -m benchmarks.inversion --count 100.

Built-in heads that a model never saw, each from yaws -45 to 45 with exact cameras and depth. The
view at yaw 0 is inverted; the others say what the identity looks like from there. The ceiling is
the same fit given all views. A table in Markdown, means over the heads.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence

import click
import numpy as np
import torch
from torch import Tensor

from data_tools.heads.basis import load_basis
from data_tools.heads.dataset import HEADS_RADIUS, HeadsConfig, render_head
from data_tools.heads.person import build_head, random_person
from data_tools.heads.render import Raycaster
from dnnlib.console import HELP, run_cli
from open_eg3d import SHIPPED_MODEL, load_generator
from open_eg3d.inverting import choose_perceptual
from training.cameras import cameras_of, orbit_pose, pack_label, unpack_label
from training.inversion.inversion import Inversion, InversionSettings, invert_pictures
from training.inversion.latents import LatentSettings, LatentStatistics, fit_latents
from training.inversion.objective import Objective, Perceptual
from training.inversion.pose import angle_between
from training.inversion.pti import TuningSettings
from training.networks.generator import Generator

YAWS = (-45, -30, -15, 0, 15, 30, 45)
FRONT, ALL_VIEWS = YAWS.index(0), slice(None)
NOVEL = (15, 30, 45)
POSE_OFF = 10.0  # degrees
ROWS = ("mean face", "w", "w+", "pti", "pti without geometry", "ceiling: pti of all views")


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
    settings = InversionSettings(
        "w" if row == "w" else "w+" if row == "w+" else "pti",
        LatentSettings(steps=steps[0]),
        tuning,
    )
    objective = Objective(views.images[chosen], None, perceptual)
    return invert_pictures(generator, objective, views.labels[chosen], settings)


def pose_error(
    generator: Generator,
    views: Views,
    perceptual: Perceptual,
    statistics: LatentStatistics,
    steps: int,
) -> float:
    """Degrees from the true camera, from a start 10 degrees off."""
    cameras = cameras_of(generator)
    start = cameras.label(math.radians(POSE_OFF), 0.0)[None]
    objective = Objective(views.images[FRONT, None], None, perceptual)
    fit = fit_latents(
        generator,
        objective,
        statistics,
        statistics.mean[None, None],
        start,
        LatentSettings(steps=steps),
        moves_cameras=True,
    )
    return angle_between(fit.labels[0], views.labels[FRONT], cameras)


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


@click.command(context_settings=HELP)
@click.option("--network", default=str(SHIPPED_MODEL), help="Checkpoint.")
@click.option("--count", type=click.IntRange(1), default=100, help="Heads.")
@click.option("--seed", default=20_000, help="Of the heads.")
@click.option("--steps", type=(int, int), default=(400, 350))
@click.option("--rows", default=",".join(ROWS), help="Some of these.")
@click.option("--poses/--no-poses", default=True, help="Also pose errors.")
def main(
    network: str, count: int, seed: int, steps: tuple[int, int], rows: str, poses: bool
) -> None:
    """Print the table of docs/inversion.md."""
    generator = load_generator(network, reuse_memory=True)
    perceptual, told = choose_perceptual((), torch.device("cpu"))
    click.echo(told, err=True)
    statistics = LatentStatistics.of(generator)
    values: dict[str, list[list[float]]] = {row: [] for row in rows.split(",")}
    errors = []
    for number, views in enumerate(unseen_heads(generator, count, seed)):
        for row, found in values.items():
            started = time.monotonic()
            if row == "mean face":
                shown, ws = generator, statistics.mean.expand(1, generator.num_ws, -1)
            else:
                inversion = invert_row(row, generator, views, perceptual, steps)
                shown, ws = inversion.generator, inversion.ws
            found.append(figures(shown, ws, views, time.monotonic() - started))
            click.echo(f"head {number}, {row}: {np.round(found[-1], 3).tolist()}", err=True)
        if poses:
            errors.append(pose_error(generator, views, perceptual, statistics, steps[0]))
            click.echo(f"head {number}, pose error {errors[-1]:.2f}", err=True)
    for line in table(values, errors):
        click.echo(line)


if __name__ == "__main__":
    run_cli(main)
