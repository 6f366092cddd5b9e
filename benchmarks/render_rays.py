"""The compiled renderer against the composable one, time and memory: python -m
benchmarks.render_rays [--json FILE].
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.timing import json_option, median_seconds, repeats_option, show
from dnnlib.console import HELP, run_cli
from torch_utils.ops import library
from training.cameras import orbit_pose, pinhole_intrinsics
from training.config.settings import RenderingConfig
from training.networks.generator import TriPlaneDecoder
from training.rendering.rays import sample_rays
from training.rendering.renderer import render

PATHS = {"composable": "reference", "fused": "cpp"}
MEGABYTE = 2.0**20


@dataclass(frozen=True)
class Size:
    """Sizes of one measurement. `samples` counts a ray's coarse ones, and as many fine ones
    follow.
    """

    batch: int = 1
    resolution: int = 64
    samples: int = 48
    planes: int = 256
    channels: int = 32
    hidden: int = 64


SIZES = {
    "published": Size(),
    "laptop training": Size(batch=8, resolution=32, samples=12, planes=64, channels=16, hidden=32),
}


class Scene:
    """Random planes, a fresh decoder and the rays of cameras in front."""

    def __init__(self, size: Size) -> None:
        torch.manual_seed(0)
        planes = torch.randn(size.batch, 3 * size.channels, size.planes, size.planes).to(
            memory_format=torch.channels_last
        )
        self.planes = planes.unflatten(1, (3, size.channels))
        self.decoder = TriPlaneDecoder(size.channels, size.hidden, size.channels)
        pose = orbit_pose(
            torch.full((size.batch,), 0.3), torch.full((size.batch,), 0.1), 2.7
        ).float()
        intrinsics = pinhole_intrinsics(4.2647).view(1, 3, 3).expand(size.batch, 3, 3).float()
        self.rays = sample_rays(pose, intrinsics, size.resolution)
        self.config = RenderingConfig(
            depth_resolution=size.samples, depth_resolution_importance=size.samples
        )

    def picture(self) -> Tensor:
        """Features without gradients, as for a frame of a video."""
        with torch.no_grad():
            return render(
                self.planes, self.decoder, *self.rays, self.config, deterministic=True
            ).features

    def training_step(self) -> Tensor:
        """Gradients of planes and decoder."""
        planes = self.planes.detach().requires_grad_()
        self.decoder.zero_grad()
        rendered = render(planes, self.decoder, *self.rays, self.config)
        (rendered.features.square().mean() + rendered.alpha.mean()).backward()
        assert planes.grad is not None
        return planes.grad

    def on(self, path: str, name: str) -> Callable[[], Tensor]:
        """One of the methods above on a path."""

        def run() -> Tensor:
            with library.path(path):
                return getattr(self, name)()

        return run


METHODS = {"forward": "picture", "forward + backward": "training_step"}


def time_rows(repeats: int) -> list[dict[str, Any]]:
    """Seconds on both paths, taking turns."""
    rows = []
    for name, size in SIZES.items():
        scene = Scene(size)
        for title, method in METHODS.items():
            seconds = median_seconds(
                {label: scene.on(path, method) for label, path in PATHS.items()}, repeats
            )
            rows.append(
                {
                    "size": name,
                    "what": title,
                    **seconds,
                    "times faster": seconds["composable"] / seconds["fused"],
                }
            )
    return rows


def _peak_memory() -> int:
    """Largest memory that this process held, in bytes (Linux)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def _peak_growth(size: Size, path: str, method: str) -> float:
    """Megabytes that one call needs at its peak, its result not counted. To be called in a fresh
    process.
    """
    scene = Scene(size)
    Scene(Size(resolution=4, samples=4, planes=16)).on(path, method)()  # libraries and thread pools
    before = _peak_memory()
    result = scene.on(path, method)()
    return max(0, _peak_memory() - before - result.numel() * result.element_size()) / MEGABYTE


def memory_rows() -> list[dict[str, Any]]:
    """Megabytes of working memory on both paths, each measured in a process of its own."""
    rows = []
    context = multiprocessing.get_context("spawn")
    for name, size in SIZES.items():
        for title, method in METHODS.items():
            row: dict[str, Any] = {"size": name, "what": title}
            for label, path in PATHS.items():
                with context.Pool(1) as pool:
                    row[f"{label} MB"] = pool.apply(_peak_growth, (size, path, method))
            rows.append({**row, "part": row["fused MB"] / row["composable MB"]})
    return rows


@click.command(context_settings=HELP)
@repeats_option(7)
@json_option
def main(repeats: int, json_path: Path | None) -> None:
    """Print time and working memory of both renderers."""
    with library.path("cpp"):
        pass  # builds the operators, or says why it cannot
    show("Volume rendering, seconds", time_rows(repeats), json_path)
    memory_path = (
        None
        if json_path is None
        else json_path.with_name(f"{json_path.stem}-memory{json_path.suffix}")
    )
    show("Volume rendering, working memory besides the result", memory_rows(), memory_path)


if __name__ == "__main__":
    run_cli(main)
