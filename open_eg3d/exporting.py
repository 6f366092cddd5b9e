"""A generator as files: a checkpoint, a folder of safetensors, ONNX graphs, a page of heads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from dnnlib.console import UserError, progress
from open_eg3d.views import map_latents, seed_latents
from training.checkpoints.checkpoint import Checkpoint, save_checkpoint
from training.checkpoints.released.interop import Weights
from training.checkpoints.weights_folder import FILES, write_weights_folder
from training.config.settings import Config
from training.networks.generator import Generator

Heads = Mapping[str, Tensor]  # latents (1, num_ws, w_dim) by name


class Format(NamedTuple):
    """A kind of file: its writer, and the files that a name stands for."""

    write: Callable[[Generator, Path, Heads], object]
    files: Callable[[Path], list[Path]]


def export(
    generator: Generator,
    dest: str | os.PathLike[str],
    *,
    seeds: Sequence[int] = range(8),
    truncation_psi: float = 1.0,
) -> list[Path]:
    """Write a generator in the form that the name says: NAME.pkl a checkpoint of this program, NAME
    without an ending a folder of safetensors, NAME.onnx two ONNX graphs (NAME.planes.onnx and
    NAME.image.onnx), NAME.html a page on which a browser renders the heads of some seeds.

    Args:
        seeds, truncation_psi: Heads of a page.

    Returns:
        The files written.

    Raises:
        UserError: for another ending, or if a file cannot be written.
    """
    dest = Path(dest)
    kind = SUFFIXES.get(dest.suffix)
    if kind is None:
        raise UserError(
            f"{dest}: {dest.suffix} is no form of a generator; end the name in .pkl, .onnx or"
            " .html, or leave the ending out for a folder of safetensors"
        )
    heads = dict[str, Tensor]()
    if kind == "html":
        ws = map_latents(generator, seed_latents(generator, seeds), truncation_psi=truncation_psi)
        heads = {f"seed {seed}": one for seed, one in zip(seeds, ws.split(1), strict=True)}
    return write_as(kind, generator, dest, heads)


def write_as(kind: str, generator: Generator, dest: Path, heads: Heads) -> list[Path]:
    """Write a generator in one of `FORMATS`, with the heads of a page; returns the files."""
    form = FORMATS[kind]
    form.write(generator, dest, heads)
    return [path for path in form.files(dest) if path.exists()]


def checkpoint_of(generator: Generator) -> Checkpoint:
    """A checkpoint of what making pictures needs."""
    return Checkpoint(
        Config(model=generator.config),
        G_ema=generator.state_dict(),
        cameras=generator.cameras,
        latents=generator.latents,
        directions=generator.directions,
        encoder=generator.encoder,
    )


def weights_of(generator: Generator) -> Weights:
    """What a file of the generator holds."""
    return Weights(
        generator.config,
        None,
        None,
        generator.state_dict(),
        generator.cameras,
        "ours",
        generator.latents,
        generator.directions,
        generator.encoder,
    )


def _write_onnx(generator: Generator, dest: Path, _: Heads) -> None:
    from training.checkpoints.onnx_graphs import write_image_graph, write_planes_graph

    graphs = zip(_onnx_files(dest), (write_planes_graph, write_image_graph), strict=True)
    with progress(graphs, "ONNX graphs", total=2, unit="graph") as bar:
        for path, write in bar:
            bar.set_postfix_str(path.name)
            write(path, generator)


def _write_page(generator: Generator, dest: Path, heads: Heads) -> None:
    from media.avatar import write_avatars

    write_avatars(dest, generator, heads, f"Generated heads: {dest.stem}")


def _write_web(generator: Generator, dest: Path, _: Heads) -> None:
    from media.web import write_web_page

    write_web_page(dest, generator, f"Generated heads: {dest.name}")


def _web_files(dest: Path) -> list[Path]:
    from media.web import page_files

    return [dest / name for name in page_files()]


def _onnx_files(dest: Path) -> list[Path]:
    """NAME.onnx stands for two files beside each other, another name for a folder."""
    stem = f"{dest.stem}." if dest.suffix == ".onnx" else ""
    folder = dest.parent if stem else dest
    return [folder / f"{stem}planes.onnx", folder / f"{stem}image.onnx"]


FORMATS = {
    "checkpoint": Format(
        lambda generator, dest, _: save_checkpoint(dest, checkpoint_of(generator)),
        lambda dest: [dest],
    ),
    "safetensors": Format(
        lambda generator, dest, _: write_weights_folder(dest, weights_of(generator)),
        lambda dest: [dest / name for name in FILES],
    ),
    "onnx": Format(_write_onnx, _onnx_files),
    "html": Format(_write_page, lambda dest: [dest]),
    "web": Format(_write_web, _web_files),
}
SUFFIXES = {".pkl": "checkpoint", "": "safetensors", ".onnx": "onnx", ".html": "html"}
