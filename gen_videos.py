"""Videos of seeds: python gen_videos.py --network ckpt.pkl --seeds 0-3."""

from __future__ import annotations

from dnnlib.startup import prepare_program

prepare_program(__name__)  # the imports below take seconds

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from tqdm import tqdm

from cli.devices import device_option
from cli.rendering import (
    network_option,
    nrr_option,
    outdir_option,
    precision_option,
    trunc_cutoff_option,
    trunc_option,
)
from cli.values import Finite, FiniteRange, Seeds, some_of
from dnnlib.console import progress, run_cli
from dnnlib.files import local_file, make_dir
from media.pictures.grids import seed_latent
from media.pictures.panels import PANELS
from media.videos.files import MAX_GIF_FPS, VIDEO_FORMATS
from media.videos.paths import CAMERA_PATHS, camera_path, default_path, read_poses
from media.videos.videos import Film, stop_on_interrupt, write_video
from open_eg3d.opening import open_generator
from torch_utils.precision import use_full_fp32
from training.data.scene import CameraSummary, cameras_of
from training.networks.generator import Generator

ORBIT_FRAMES = 120
SEED_FRAMES = 60  # of an interpolation, from one seed to the next


@dataclass
class Request:
    """The options, by their names."""

    network: str
    seeds: list[int]
    outdir: Path
    interpolate: bool
    grid: tuple[int, int] | None
    show: list[str]
    camera: str | None
    yaw_swing: float | None
    pitch_swing: float | None
    pitch: float | None
    frames: int | None
    fps: float
    formats: list[str]
    size: int | None
    trunc: float
    trunc_cutoff: int | None
    nrr: int | None
    ray_samples: float
    precision: str
    device: torch.device


class Grid(click.ParamType):
    """COLUMNSxROWS."""

    name = "grid"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """(columns, rows)."""
        match = re.fullmatch(r"([1-9]\d{0,2})x([1-9]\d{0,2})", str(value), re.ASCII)
        if not match:
            self.fail(f"{value!r} is not of the form COLUMNSxROWS, such as 4x2", param, ctx)
        return int(match[1]), int(match[2])


class Even(click.IntRange):
    """An even number of pixels: H.264 as players know it has colour for every second one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        number = super().convert(value, param, ctx)
        if number % 2:
            self.fail(f"{number} is odd; take {number + 1}", param, ctx)
        return number


# --------------------------------------------------------------------------------------------------
# From options to films


def plan_cells(request: Request) -> list[tuple[str, list[list[int]]]]:
    """Name of each video and the seeds of its cells, row by row.

    Raises:
        BadParameter: if the seeds do not fill the grid evenly.
    """
    seeds, columns_rows = request.seeds, request.grid or (1, 1)
    cells = columns_rows[0] * columns_rows[1]
    if request.grid and (len(seeds) % cells or (len(seeds) != cells and not request.interpolate)):
        raise click.BadParameter(
            f"{len(seeds)} seeds do not fill a grid of {cells}; change --seeds or the grid",
            param_hint="'--grid'",
        )
    if request.interpolate and len(seeds) < 2 * cells:
        raise click.BadParameter(
            "an interpolation needs at least two seeds in each cell", param_hint="'--seeds'"
        )
    if request.interpolate:
        per_cell = len(seeds) // cells
        return [
            (
                "interpolation",
                [seeds[start : start + per_cell] for start in range(0, len(seeds), per_cell)],
            )
        ]
    if request.grid:
        return [("grid", [[seed] for seed in seeds])]
    return [(f"seed{seed:04d}", [[seed]]) for seed in seeds]


def plan_cameras(request: Request, cameras: CameraSummary, seeds_per_cell: int) -> Tensor:
    """Camera (F, 25) of each frame."""
    if request.camera is not None and request.camera not in CAMERA_PATHS:
        if request.frames is not None:
            raise click.UsageError(
                "--frames does not go with poses from a file, each of which is a frame"
            )
        return read_poses(local_file(request.camera), cameras)
    frames = request.frames or (
        SEED_FRAMES * seeds_per_cell if request.interpolate else ORBIT_FRAMES
    )
    angles = (
        None if value is None else math.radians(value)
        for value in (request.yaw_swing, request.pitch_swing, request.pitch)
    )
    return camera_path(request.camera or default_path(cameras), cameras, frames, *angles)


def prepare(request: Request) -> Generator:
    """The generator, with its rendering set up as asked."""
    generator = open_generator(request.network, request.device, request.precision)
    rendering = generator.rendering
    rendering.depth_resolution = max(2, round(rendering.depth_resolution * request.ray_samples))
    rendering.depth_resolution_importance = round(
        rendering.depth_resolution_importance * request.ray_samples
    )
    return generator


@torch.no_grad()
def cell_latents(
    generator: Generator, request: Request, seeds: list[int], conditioning: Tensor
) -> Tensor:
    """Latents (K, num_ws, w_dim) of K seeds."""
    z = torch.cat([seed_latent(seed, generator.z_dim) for seed in seeds]).to(request.device)
    return generator.mapping(
        z, conditioning.expand(len(z), -1), request.trunc, request.trunc_cutoff
    ).contiguous()


def make_videos(request: Request) -> None:
    """Write all videos, or as much as there is at Ctrl-C."""
    videos = plan_cells(request)
    generator = prepare(request)
    cameras = cameras_of(generator)
    labels = plan_cameras(request, cameras, len(videos[0][1][0]))
    make_dir(request.outdir)
    conditioning = cameras.frontal_label()[None].to(request.device)
    with stop_on_interrupt() as should_stop, frame_bar(len(videos) * len(labels)) as bar:
        for name, cells in videos:
            latents = [cell_latents(generator, request, seeds, conditioning) for seeds in cells]
            columns = request.grid[0] if request.grid else 1
            film = Film(
                generator, latents, labels, columns, request.show, request.nrr, request.size
            )
            paths = [request.outdir / f"{name}.{kind}" for kind in dict.fromkeys(request.formats)]
            written = write_video(film, paths, request.fps, bar, should_stop)
            for path in paths:
                bar.write(str(path))
            if should_stop():
                bar.close()
                files = " and ".join(map(str, paths))
                raise click.exceptions.Exit(interrupted(files, written, len(labels)))


def frame_bar(total: int) -> tqdm[Any]:
    """Progress over the frames of all videos."""
    nothing: list[Any] = []
    return progress(nothing, "Frames", total=total, unit="frame")


def interrupted(files: str, written: int, wanted: int) -> int:
    """Say what there is; returns the exit status of an interruption."""
    click.echo(f"interrupted: {files}: the first {written} of {wanted} frames, playable", err=True)
    return 130


# --------------------------------------------------------------------------------------------------
# Command line


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@network_option
@click.option(
    "--seeds",
    type=Seeds(),
    default="0-3",
    show_default=True,
    help="Which latents: 0-10 or 1,5,7-9.",
)
@outdir_option
@click.option(
    "--interpolate",
    is_flag=True,
    help="Move smoothly from seed to seed and back to the first: one video.",
)
@click.option(
    "--grid",
    type=Grid(),
    metavar="COLSxROWS",
    help="All in one video, so many beside and beneath each other.",
)
@click.option(
    "--show",
    type=some_of("panels", *PANELS),
    default="image",
    show_default=True,
    help=f"Side by side: {','.join(PANELS)}.",
)
@click.option(
    "--camera",
    metavar="|".join(CAMERA_PATHS) + "|FILE|URL",
    help=(
        "Path of the camera, or a JSON file of poses.  [default: circle; turn where the data show"
        " all sides]"
    ),
)
@click.option(
    "--yaw-swing", type=Finite(), help="Degrees to either side.  [default: 0.8 of the data's range]"
)
@click.option(
    "--pitch-swing",
    type=Finite(),
    help="Degrees up and down of a circle.  [default: 0.8 of the data's range]",
)
@click.option(
    "--pitch",
    type=Finite(),
    help="Degrees above the horizon in the middle.  [default: the data's mean]",
)
@click.option(
    "--frames",
    type=click.IntRange(1, 1_000_000),
    help=f"Frames of a video.  [default: {ORBIT_FRAMES}; interpolation {SEED_FRAMES} a seed]",
)
@click.option(
    "--fps", type=FiniteRange(0.1, 240), default=30.0, show_default=True, help="Frames a second."
)
@click.option(
    "--formats",
    type=some_of("formats", *VIDEO_FORMATS),
    default="mp4",
    show_default=True,
    help="mp4, gif or mp4,gif.",
)
@click.option(
    "--size", type=Even(2, 4096), help="Pixels of a panel's side.  [default: the model's]"
)
@trunc_option
@trunc_cutoff_option
@nrr_option
@click.option(
    "--ray-samples",
    type=FiniteRange(0.1, 100),
    default=1.0,
    show_default=True,
    help="Samples a ray, in those of training: 2 is finer.",
)
@precision_option
@device_option
def main(**options: Any) -> None:
    """Write a video a seed in which the camera moves around it, all seeds in a grid, or a walk from
    seed to seed.

    A video ends on the picture it starts with. Ctrl-C closes the file early: what is there plays.
    """
    request = Request(**options)
    if "gif" in request.formats and request.fps > MAX_GIF_FPS:
        raise click.BadParameter(
            f"a GIF plays at most {MAX_GIF_FPS} frames a second", param_hint="'--fps'"
        )
    use_full_fp32()
    make_videos(request)


if __name__ == "__main__":
    run_cli(main)
