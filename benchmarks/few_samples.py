"""How near renderings with few samples per ray come to one with 512: python -m
benchmarks.few_samples.

PSNR in dB of the shipped model's renderings, with two passes over every ray and with a first pass
at a quarter of the resolution (docs/consistency.md). Arithmetic, not time: any machine gives the
same figures.
"""

from __future__ import annotations

import math

import click
import torch
from torch import Tensor

from cli.values import Commas
from dnnlib.console import HELP, run_cli
from media.pictures.grids import map_seed
from open_eg3d import SHIPPED_MODEL, load_generator
from training.cameras import cameras_of

MANY = 512
FIRST = 48  # samples of the first pass at a quarter of the resolution
COUNTS = (8, 12, 16, 24)
YAWS = (-30, 10)  # degrees


@torch.no_grad()
def measure(network: str, resolution: int, seeds: int) -> list[tuple[int, float, float]]:
    """For each of `COUNTS` the mean PSNR of two passes, and of a quarter of the first."""
    generator = load_generator(network)
    cameras, rendering = cameras_of(generator), generator.rendering
    c = cameras.label([math.radians(yaw) for yaw in YAWS], cameras.pitch)
    latents = [map_seed(generator, seed) for seed in range(seeds)]
    scenes = [(generator.planes(ws), ws) for ws in latents]

    def pictures(first_pass: str, first: int, second: int) -> Tensor:
        rendering.first_pass = first_pass  # type: ignore[assignment]
        rendering.depth_resolution, rendering.depth_resolution_importance = first, second
        return torch.cat([generator.render(*scene, c, resolution).image_raw for scene in scenes])

    many = pictures("full", MANY, 0)
    return [
        (
            count,
            psnr(pictures("full", count // 2, count // 2), many),
            psnr(pictures("quarter", FIRST, count), many),
        )
        for count in COUNTS
    ]


def psnr(first: Tensor, second: Tensor) -> float:
    """Mean over pictures (N, 3, r, r) in [-1, 1]."""
    return float(-10 * ((first - second) / 2).square().mean(dim=(1, 2, 3)).log10().mean())


@click.command(context_settings=HELP)
@click.option("--network", default=str(SHIPPED_MODEL), help="Checkpoint.")
@click.option("--resolutions", type=Commas("sizes", int, "pixels"), default="64,128")
@click.option("--seeds", type=click.IntRange(1), default=4)
def main(network: str, resolutions: list[int], seeds: int) -> None:
    """Print a table."""
    print("pixels | samples | two passes | quarter")
    for resolution in resolutions:
        for count, full, quarter in measure(network, resolution, seeds):
            print(f"{resolution} | {count} | {full:.1f} | {quarter:.1f}", flush=True)


if __name__ == "__main__":
    run_cli(main)
