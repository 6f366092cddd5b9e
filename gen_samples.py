"""Pictures and shapes of seeds: python gen_samples.py --network ckpt.pkl --seeds 0-10 --shapes glb."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from dnnlib.console import progress, run_cli
from dnnlib.files import make_dir
from media.shapes import FORMATS, save_shape
from media.strips import ROWS, camera_grid, save_png, seed_latent, strip_picture, yaw_strip
from open_eg3d import load_generator
from torch_utils.precision import use_full_fp32
from training.networks.generator import Generator
from training.scene import BOX_PER_VIEW, CameraSummary

MAX_SEED = 2**32 - 1  # the largest that numpy's RandomState takes
MAX_SEEDS = 1_000_000
DEFAULT_VIEWS = 5
ORBIT_PER_BOX = 2.7  # radius of the orbit in box sides where a checkpoint knows no cameras, as for the published face models


class Seeds(click.ParamType):
    """Seeds and ranges of seeds, ends included, in the order given: 0-10 or 1,5,7-9."""

    name = "seeds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """List of different seeds."""
        if isinstance(value, list):
            return value
        seeds: dict[int, None] = {}
        for item in str(value).split(","):
            match = re.fullmatch(r"\s*(\d{1,10})\s*(?:-\s*(\d{1,10})\s*)?", item, re.ASCII)
            if not match:
                self.fail(f"{item.strip()!r} is neither a seed nor a range; write 0-10 or 1,5,7-9", param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            if first > last:
                self.fail(f"the range {item.strip()!r} runs backwards; write {last}-{first}", param, ctx)
            if last > MAX_SEED or last - first >= MAX_SEEDS:
                self.fail(f"{item.strip()!r}: seeds go up to {MAX_SEED}, at most {MAX_SEEDS} at once", param, ctx)
            seeds.update(dict.fromkeys(range(first, last + 1)))
        return list(seeds)


class Commas(click.ParamType):
    """Values separated by commas."""

    def __init__(self, name: str, convert_one: Callable[[str], Any], expected: str) -> None:
        self.name, self.convert_one, self.expected = name, convert_one, expected

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        """List of at least one value."""
        try:
            return value if isinstance(value, list) else [self.convert_one(item.strip()) for item in str(value).split(",")]
        except ValueError:
            return self.fail(f"{value!r} is not a list of {self.expected}", param, ctx)


def finite(text: str) -> float:
    """Number from text; ValueError for anything else, infinities and NaN included."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def row_name(text: str) -> str:
    """One of `ROWS`."""
    if text not in ROWS:
        raise ValueError(text)
    return text


class Finite(click.ParamType):
    """A finite number."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        try:
            return finite(str(value))
        except ValueError:
            return self.fail(f"{value!r} is not a number", param, ctx)


def choose_device(ctx: click.Context, param: click.Parameter, name: str) -> torch.device:
    """The device of that name; auto = CUDA where there is a GPU, else the CPU."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if not available[name]:
        raise click.BadParameter(f"this machine has no {name} device; choose --device cpu", ctx, param)
    return torch.device(name)


def cameras_of(generator: Generator) -> CameraSummary:
    """Cameras of the training data; where the file tells none, an orbit around the box, which fills the picture."""
    if generator.cameras:
        return CameraSummary.from_dict(generator.cameras)
    rendering = generator.rendering
    radius = ORBIT_PER_BOX * rendering.box_warp
    if rendering.ray_start != "auto" and rendering.ray_end != "auto":
        radius = (rendering.ray_start + rendering.ray_end) / 2
    return CameraSummary.from_dict({"radius": radius, "pivot": (0, 0, 0), "focal": BOX_PER_VIEW * radius / rendering.box_warp})


@click.command()
@click.option("--network", required=True, metavar="FILE|URL", help="Checkpoint, ours or released.")
@click.option("--seeds", type=Seeds(), default="0-7", show_default=True, help="Which latents: 0-10 or 1,5,7-9.")
@click.option("--outdir", type=click.Path(path_type=Path), default="out", show_default=True, help="Folder for the files.")
@click.option("--trunc", type=Finite(), default=1.0, show_default=True, help="Truncation psi: 1 none, 0 the average.")
@click.option("--trunc-cutoff", type=click.IntRange(0), help="Truncate only so many layers, from the coarsest.  [default: all]")
@click.option("--views", type=Commas("yaws", finite, "angles in degrees"), help="Yaws in degrees: -30,0,30.  [default: 5 over the data's]")
@click.option("--pitch", type=Finite(), help="Pitch of all views in degrees.  [default: the data's mean]")
@click.option(
    "--rows",
    type=Commas("rows", row_name, ", ".join(ROWS)),
    default="image",
    show_default=True,
    help="Beneath each other: image,raw,depth.",
)
@click.option("--nrr", type=click.IntRange(1, 4096), help="Neural rendering resolution.  [default: the model's]")
@click.option(
    "--shapes", type=click.Choice(["none", *FORMATS]), default="none", show_default=True, help="Also a shape a seed: mesh or density (mrc)."
)
@click.option("--shape-res", type=click.IntRange(8, 4096), default=256, show_default=True, help="Cells along a side of the shape's grid.")
@click.option("--shape-level", type=Finite(), help="Raw density at the surface.  [default: the visible surface's]")
@click.option("--images/--no-images", default=True, show_default=True, help="Write the picture strips.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    callback=choose_device,
    help="Where to compute.",
)
def main(
    network: str,
    seeds: list[int],
    outdir: Path,
    trunc: float,
    trunc_cutoff: int | None,
    views: list[float] | None,
    pitch: float | None,
    rows: list[str],
    nrr: int | None,
    shapes: str,
    shape_res: int,
    shape_level: float | None,
    images: bool,
    device: torch.device,
) -> None:
    """Write a picture strip (views side by side) and, if asked, a shape for each seed. The same seed gives the same files."""
    if not images and shapes == "none":
        raise click.UsageError("--no-images without --shapes leaves nothing to do")
    make_dir(outdir)
    use_full_fp32()
    generator = load_generator(network).to(device)
    cameras = cameras_of(generator)
    yaws = [math.radians(view) for view in views] if views else cameras.default_yaws(DEFAULT_VIEWS)
    height = cameras.pitch if pitch is None else math.radians(pitch)
    conditioning = cameras.frontal_label()[None].to(device)
    with progress(seeds, "Seeds", unit="seed") as bar:
        for seed in bar:
            torch.manual_seed(seed)  # for models whose super-resolution asks for random noise
            with torch.no_grad():
                ws = generator.mapping(seed_latent(seed, generator.z_dim).to(device), conditioning, trunc, trunc_cutoff)
            if images:
                path = outdir / f"seed{seed:04d}.png"
                save_png(path, strip_picture(yaw_strip(generator, ws, cameras, yaws, height, nrr), rows))
                bar.write(str(path), file=sys.stdout)
            if shapes != "none":
                path = outdir / f"seed{seed:04d}.{shapes}"
                with torch.no_grad():
                    planes = generator.planes(ws)
                save_shape(path, generator, planes, camera_grid(cameras), shape_res, shape_level)
                bar.write(str(path), file=sys.stdout)


if __name__ == "__main__":
    run_cli(main)
