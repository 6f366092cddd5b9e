"""Pictures and shapes of seeds: python gen_samples.py --network ckpt.pkl --seeds 0-10 --shapes
glb.
"""

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

from cli.devices import device_option
from cli.rendering import (
    network_option,
    nrr_option,
    outdir_option,
    precision_option,
    trunc_cutoff_option,
    trunc_option,
)
from cli.values import Commas, Finite, Seeds, some_of
from dnnlib.console import progress, run_cli
from dnnlib.files import make_dir
from dnnlib.numbers import finite
from media.meshes.files import TEXTURE_FORMATS
from media.meshes.shapes import FORMATS, TEXTURED_FACES, save_shape
from media.pictures.grids import ROWS, camera_grid, save_png, seed_latent, strip_picture, yaw_strip
from open_eg3d.opening import open_generator
from torch_utils.precision import use_full_fp32
from training.data.scene import CameraSummary, cameras_of
from training.networks.generator import Generator

DEFAULT_VIEWS = 5


@dataclass
class Request:
    """The options, by their names."""

    network: str
    seeds: list[int]
    outdir: Path
    trunc: float
    trunc_cutoff: int | None
    views: list[float] | None
    pitch: float | None
    rows: list[str]
    nrr: int | None
    shapes: str
    shape_res: int
    shape_level: float | None
    shape_faces: int | None
    texture: int | None
    precision: str
    images: bool
    device: torch.device


def make_samples(request: Request) -> None:
    """Write the files of all seeds, and say which."""
    generator = open_generator(request.network, request.device, request.precision)
    cameras = cameras_of(generator)
    conditioning = cameras.frontal_label()[None].to(request.device)
    with progress(request.seeds, "Seeds", unit="seed") as bar:
        for seed in bar:
            torch.manual_seed(seed)  # for models whose super-resolution asks for random noise
            with torch.no_grad():
                z = seed_latent(seed, generator.z_dim).to(request.device)
                ws = generator.mapping(z, conditioning, request.trunc, request.trunc_cutoff)
            name = request.outdir / f"seed{seed:04d}"
            if request.images:
                bar.write(str(write_strip(request, name, generator, cameras, ws)), file=sys.stdout)
            if request.shapes != "none":
                bar.write(str(write_shape(request, name, generator, cameras, ws)), file=sys.stdout)


def write_strip(
    request: Request, name: Path, generator: Generator, cameras: CameraSummary, ws: Tensor
) -> Path:
    """Views of ws (1, num_ws, w_dim) side by side in NAME.png."""
    path = name.with_suffix(".png")
    yaws = (
        [math.radians(view) for view in request.views]
        if request.views
        else cameras.default_yaws(DEFAULT_VIEWS)
    )
    pitch = cameras.pitch if request.pitch is None else math.radians(request.pitch)
    save_png(
        path,
        strip_picture(yaw_strip(generator, ws, cameras, yaws, pitch, request.nrr), request.rows),
    )
    return path


def write_shape(
    request: Request, name: Path, generator: Generator, cameras: CameraSummary, ws: Tensor
) -> Path:
    """The shape of ws (1, num_ws, w_dim) in NAME.<kind of shape>."""
    path = name.with_suffix(f".{request.shapes}")
    with torch.no_grad():
        planes = generator.planes(ws)
    grid = camera_grid(cameras)
    save_shape(
        path,
        generator,
        planes,
        grid,
        request.shape_res,
        request.shape_level,
        request.texture,
        request.shape_faces,
    )
    return path


@click.command()
@network_option
@click.option(
    "--seeds",
    type=Seeds(),
    default="0-7",
    show_default=True,
    help="Which latents: 0-10 or 1,5,7-9.",
)
@outdir_option
@trunc_option
@trunc_cutoff_option
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
    type=some_of("rows", *ROWS),
    default="image",
    show_default=True,
    help="Beneath each other: image,raw,depth.",
)
@nrr_option
@click.option(
    "--shapes",
    type=click.Choice(["none", *FORMATS]),
    default="none",
    show_default=True,
    help="Also a shape a seed: mesh or density (mrc).",
)
@click.option(
    "--shape-res",
    type=click.IntRange(8, 4096),
    default=256,
    show_default=True,
    help="Cells along a side of the shape's grid.",
)
@click.option(
    "--shape-level",
    type=Finite(),
    help="Raw density at the surface.  [default: the visible surface's]",
)
@click.option(
    "--shape-faces",
    type=click.IntRange(4),
    help=f"Reduce meshes to so many triangles.  [default: all; textured {TEXTURED_FACES}]",
)
@click.option(
    "--texture",
    type=click.IntRange(16, 8192),
    help="Bake colours into a texture of so many pixels a side (glb, obj).",
)
@precision_option
@click.option(
    "--images/--no-images", default=True, show_default=True, help="Write the picture strips."
)
@device_option
def main(**options: Any) -> None:
    """Write a picture strip (views side by side) and, if asked, a shape for each seed. The same
    seed gives the same files.
    """
    request = Request(**options)
    if not request.images and request.shapes == "none":
        raise click.UsageError("--no-images without --shapes leaves nothing to do")
    if request.texture and request.shapes not in TEXTURE_FORMATS:
        raise click.UsageError(
            f"--texture needs --shapes {' or '.join(TEXTURE_FORMATS)}; other files hold no texture"
        )
    make_dir(request.outdir)
    use_full_fp32()
    make_samples(request)


if __name__ == "__main__":
    run_cli(main)
