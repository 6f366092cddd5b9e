"""Pictures and shapes of seeds: python gen_samples.py --network ckpt.pkl --seeds 0-10."""

from __future__ import annotations

from dnnlib.startup import prepare_program

prepare_program(__name__)  # the imports below take seconds

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from cli.program import program
from cli.sampling import SamplingRequest, check_transparency, sampling_options, transparency_options
from cli.values import Commas, Finite, some_of
from dnnlib.console import progress, run_cli
from dnnlib.files import make_dir
from dnnlib.numbers import finite
from media.meshes.files import TEXTURE_FORMATS
from media.meshes.shapes import FORMATS, TEXTURED_FACES, save_shape
from media.pictures.grids import (
    PANELS,
    Pictures,
    render_views,
    save_png,
    stack_rows,
)
from media.pictures.transparency import transparent_views, wall_distance
from media.pictures.view_range import beyond_training
from torch_utils.precision import use_full_fp32
from training.cameras import CameraSummary, cameras_of
from training.networks.generator import Generator

DEFAULT_VIEWS = 5


@dataclass
class Request(SamplingRequest):
    """The options, by their names."""

    views: list[float] | None
    pitch: float | None
    rows: list[str]
    transparent: bool
    remove_background: bool
    shapes: str
    shape_res: int
    shape_level: float | None
    shape_faces: int | None
    texture: int | None
    images: bool


def make_samples(request: Request) -> None:
    """Write the files of all identities, and print their names."""
    generator = request.generator()
    cameras = cameras_of(generator)
    labels = views_of(request, cameras)
    note = beyond_training(generator, labels)
    if request.images and note:
        click.echo(note, err=True)
    with progress(request.identities(generator), "Heads", unit="head") as bar:
        for identity in bar:
            # for models whose super-resolution asks for random noise
            torch.manual_seed(identity.seed or 0)
            ws = request.ws_of(generator, [identity])
            name = request.outdir / identity.name
            if request.images:
                views = pictures_of(request, generator, ws, labels)
                save_png(f"{name}.png", stack_rows(views, request.rows))
                bar.write(f"{name}.png", file=sys.stdout)
            if request.shapes != "none":
                bar.write(str(write_shape(request, name, generator, cameras, ws)), file=sys.stdout)


def pictures_of(
    request: Request, generator: Generator, ws: Tensor, labels: Tensor
) -> dict[str, Pictures]:
    """Pictures of ws (1, num_ws, w_dim) from cameras (K, 25) by row."""
    if not request.transparent:
        return render_views(generator, ws, labels, request.nrr, kinds=request.rows)
    with torch.no_grad():
        view = generator.planes(ws), ws, labels, request.nrr
    wall = wall_distance(generator, *view) if request.remove_background else None
    return {"image": transparent_views(generator, *view, wall)}


def views_of(request: Request, cameras: CameraSummary) -> Tensor:
    """Cameras (K, 25) of the views."""
    pitch = cameras.pitch if request.pitch is None else math.radians(request.pitch)
    yaws = [math.radians(view) for view in request.views or []]
    return cameras.label(yaws or cameras.default_yaws(DEFAULT_VIEWS), pitch)


def write_shape(
    request: Request, name: Path, generator: Generator, cameras: CameraSummary, ws: Tensor
) -> Path:
    """Write the shape of ws (1, num_ws, w_dim) to a file of the wanted format; returns its path."""
    path = name.with_name(f"{name.name}.{request.shapes}")
    with torch.no_grad():
        planes = generator.planes(ws)
    save_shape(
        path,
        generator,
        planes,
        cameras.grid(),
        request.shape_res,
        request.shape_level,
        request.texture,
        request.shape_faces,
    )
    return path


@program(
    Identities="network seeds latents edits trunc trunc_cutoff",
    Pictures="outdir views pitch rows transparent remove_background nrr images",
    Shapes="shapes shape_res shape_level shape_faces texture",
    Machine="device precision",
)
@sampling_options(seeds="0-7")
@click.option(
    "--views",
    type=Commas("yaws", finite, "angles in degrees"),
    help="Yaws in degrees: -30,0,30.  [default: 5 over the data's]",
)
@click.option(
    "--pitch", type=Finite(), help="Pitch of all views in degrees.  [default: the data's mean]"
)
@click.option(
    "--rows",
    type=some_of("rows", *PANELS),
    default="image",
    help=f"Rows of the picture: {','.join(PANELS)}.",
)
@transparency_options
@click.option(
    "--shapes",
    type=click.Choice(["none", *FORMATS]),
    default="none",
    help="Also a shape per seed: mesh, or density (mrc).",
)
@click.option(
    "--shape-res",
    type=click.IntRange(8, 4096),
    default=256,
    help="Cells per side of the shape's grid.",
)
@click.option(
    "--shape-level",
    type=Finite(),
    help="Raw density at the surface.  [default: the visible surface's]",
)
@click.option(
    "--shape-faces",
    type=click.IntRange(4),
    help=f"Reduce meshes to N triangles.  [default: all; textured {TEXTURED_FACES}]",
)
@click.option(
    "--texture",
    type=click.IntRange(16, 8192),
    help="Bake colours into a texture of N pixels per side (glb, obj).",
)
@click.option("--images/--no-images", default=True, help="Write the pictures.")
def main(**options: Any) -> None:
    """Write a picture (views side by side) and, if asked, a shape of each seed. The same seed gives
    the same files.
    """
    request = Request(**options)
    if not request.images and request.shapes == "none":
        raise click.UsageError("--no-images without --shapes leaves nothing to do")
    if request.texture and request.shapes not in TEXTURE_FORMATS:
        raise click.UsageError(
            f"--texture needs --shapes {' or '.join(TEXTURE_FORMATS)}; other files hold no texture"
        )
    check_transparency(request.transparent, request.remove_background, "--rows", request.rows)
    make_dir(request.outdir)
    use_full_fp32()
    make_samples(request)


if __name__ == "__main__":
    run_cli(main)
