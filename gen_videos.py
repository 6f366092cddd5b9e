"""Videos of seeds: python gen_videos.py --network ckpt.pkl --seeds 0-3."""

from __future__ import annotations

from dnnlib.startup import prepare_program

prepare_program(__name__)  # the imports below take seconds

import math
import re
from dataclasses import dataclass
from typing import Any

import click
from torch import Tensor

from cli.program import program
from cli.sampling import (
    Identity,
    SamplingRequest,
    check_transparency,
    sampling_options,
    transparency_options,
)
from cli.values import Finite, FiniteRange, Parsed, some_of
from dnnlib.console import counter, run_cli
from dnnlib.files import local_file, make_dir
from media.pictures.grids import PANELS
from media.pictures.view_range import beyond_training
from media.videos.files import MAX_GIF_FPS, VIDEO_FORMATS
from media.videos.paths import CAMERA_PATHS, camera_path, default_path, read_poses
from media.videos.videos import VideoWriter, stop_on_interrupt
from open_eg3d.opening import compile_rendering
from torch_utils.precision import use_full_fp32
from training.cameras import CameraSummary, cameras_of
from training.networks.generator import Generator

ORBIT_FRAMES = 120
SEED_FRAMES = 60  # of an interpolation, per seed


@dataclass
class Request(SamplingRequest):
    """The options, by their names."""

    interpolate: bool
    grid: tuple[int, int] | None
    show: list[str]
    transparent: bool
    remove_background: bool
    camera: str | None
    yaw_swing: float | None
    pitch_swing: float | None
    pitch: float | None
    frames: int | None
    fps: float
    formats: list[str] | None
    size: int | None
    ray_samples: float
    compile: bool

    @property
    def kinds(self) -> list[str]:
        """Formats of the files."""
        return self.formats or (["webm"] if self.transparent else ["mp4"])


class Grid(Parsed):
    """COLUMNSxROWS."""

    name = "grid"

    def parse(self, text: str) -> tuple[int, int]:
        """(columns, rows)."""
        match = re.fullmatch(r"([1-9]\d{0,2})x([1-9]\d{0,2})", text, re.ASCII)
        if not match:
            raise ValueError(f"{text!r} is not of the form COLUMNSxROWS, such as 4x2")
        return int(match[1]), int(match[2])


class Even(click.IntRange):
    """An even number of pixels: players expect H.264 with colour at half the resolution."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        number = super().convert(value, param, ctx)
        if number % 2:
            self.fail(f"{number} is odd; take {number + 1}", param, ctx)
        return number


# --------------------------------------------------------------------------------------------------
# From options to videos


def check_cells(request: Request, count: int) -> None:
    """Raise BadParameter unless `count` heads fill the grid evenly."""
    columns_rows = request.grid or (1, 1)
    cells = columns_rows[0] * columns_rows[1]
    named = "--latents" if request.latents else "--seeds"
    if request.grid and (count % cells or (count != cells and not request.interpolate)):
        raise click.BadParameter(
            f"{columns_rows[0]}x{columns_rows[1]} has {cells} cells, {named} names {count};"
            f" change {named} or the grid",
            param_hint="'--grid'",
        )
    if request.interpolate and count < 2 * cells:
        raise click.BadParameter(
            "an interpolation needs at least two seeds in each cell", param_hint=f"'{named}'"
        )


def plan_cells(request: Request, heads: list[Identity]) -> list[tuple[str, list[list[Identity]]]]:
    """Name of each video and the heads of its cells, row by row.

    Raises:
        BadParameter: if they do not fill the grid evenly.
    """
    check_cells(request, len(heads))
    columns, rows = request.grid or (1, 1)
    if request.interpolate:
        per_cell = len(heads) // (columns * rows)
        parts = [heads[start : start + per_cell] for start in range(0, len(heads), per_cell)]
        return [("interpolation", parts)]
    if request.grid:
        return [("grid", [[head] for head in heads])]
    return [(head.name, [[head]]) for head in heads]


def plan_cameras(request: Request, cameras: CameraSummary, seeds_per_cell: int) -> Tensor:
    """Camera (F, 25) of each frame.

    Raises:
        BadParameter: for an unknown path.
    """
    if request.camera is not None and request.camera not in CAMERA_PATHS:
        if request.frames is not None:
            raise click.UsageError(
                "--frames does not go with poses from a file, each of which is a frame"
            )
        path = local_file(request.camera)
        if not path.exists():
            raise click.BadParameter(
                f"{request.camera!r} is neither a file nor one of {', '.join(CAMERA_PATHS)}",
                param_hint="'--camera'",
            )
        return read_poses(path, cameras)
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
    generator = request.generator()
    rendering = generator.rendering
    rendering.depth_resolution = max(2, round(rendering.depth_resolution * request.ray_samples))
    rendering.depth_resolution_importance = round(
        rendering.depth_resolution_importance * request.ray_samples
    )
    if request.compile:
        compile_rendering(generator)
    return generator


def make_videos(request: Request) -> None:
    """Write all videos, or as much as there is at Ctrl-C."""
    if not request.latents:  # before the network is opened, which takes a while
        check_cells(request, len(request.seeds or []))
    generator = prepare(request)
    videos = plan_cells(request, request.identities(generator))
    cameras = cameras_of(generator)
    labels = plan_cameras(request, cameras, len(videos[0][1][0]))
    if note := beyond_training(generator, labels):
        click.echo(note, err=True)
    make_dir(request.outdir)
    with (
        stop_on_interrupt() as should_stop,
        counter("Frames", len(videos) * len(labels), "frame") as bar,
    ):
        for name, cells in videos:
            latents = [request.ws_of(generator, heads) for heads in cells]
            columns = request.grid[0] if request.grid else 1
            video = VideoWriter(
                generator,
                latents,
                labels,
                columns,
                request.show,
                request.nrr,
                request.size,
                request.transparent,
                request.remove_background,
            )
            paths = [request.outdir / f"{name}.{kind}" for kind in dict.fromkeys(request.kinds)]
            written = video.write(paths, request.fps, bar, should_stop)
            for path in paths:
                bar.write(str(path))
            if should_stop():
                bar.close()
                files = " and ".join(map(str, paths))
                raise click.exceptions.Exit(interrupted(files, written, len(labels)))


def interrupted(files: str, written: int, wanted: int) -> int:
    """Print what is written; returns the exit status of an interruption."""
    click.echo(f"interrupted: {files}: the first {written} of {wanted} frames, playable", err=True)
    return 130


# --------------------------------------------------------------------------------------------------
# Command line


@program(
    Identities="network seeds latents edits trunc trunc_cutoff interpolate grid",
    Camera="camera yaw_swing pitch_swing pitch",
    Video="outdir show transparent remove_background frames fps formats size nrr ray_samples",
    Machine="device precision compile",
)
@sampling_options(seeds="0-3")
@click.option(
    "--interpolate",
    is_flag=True,
    help="Move smoothly from seed to seed and back to the first: one video.",
)
@click.option(
    "--grid",
    type=Grid(),
    metavar="COLSxROWS",
    help="All in one video, in a grid of cells.",
)
@click.option(
    "--show",
    type=some_of("panels", *PANELS),
    default="image",
    help=f"Side by side: {','.join(PANELS)}.",
)
@transparency_options
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
    help=f"Frames of a video.  [default: {ORBIT_FRAMES}; interpolation {SEED_FRAMES} per seed]",
)
@click.option("--fps", type=FiniteRange(0.1, 240), default=30.0, help="Frames per second.")
@click.option(
    "--formats",
    type=some_of("formats", *VIDEO_FORMATS),
    help=f"{', '.join(VIDEO_FORMATS)}.  [default: mp4; webm, which holds alpha, if --transparent]",
)
@click.option(
    "--size", type=Even(2, 4096), help="Pixels per side of a panel.  [default: the model's]"
)
@click.option(
    "--ray-samples",
    type=FiniteRange(0.1, 100),
    default=1.0,
    help="Samples per ray as a factor of training's: 2 is finer.",
)
@click.option(
    "--compile",
    is_flag=True,
    help="Compile the rendering of frames, on CUDA into one graph: minutes before the first frame.",
)
def main(**options: Any) -> None:
    """Write a video per seed in which the camera moves around it, all seeds in a grid, or a walk
    from seed to seed.

    A video ends on the picture it starts with. Ctrl-C closes the file early: what is there plays.
    """
    request = Request(**options)
    check_transparency(request.transparent, request.remove_background, "--show", request.show)
    if request.transparent and request.kinds != ["webm"]:
        raise click.BadParameter(
            "of these only webm holds alpha; leave --formats out", param_hint="'--formats'"
        )
    if "gif" in request.kinds and request.fps > MAX_GIF_FPS:
        raise click.BadParameter(
            f"a GIF plays at most {MAX_GIF_FPS} frames per second", param_hint="'--fps'"
        )
    use_full_fp32()
    make_videos(request)


if __name__ == "__main__":
    run_cli(main)
