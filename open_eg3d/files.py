"""Networks from files, and a generator into files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from torch import nn

from dnnlib.console import UserError
from torch_utils.memory import keep_freed_memory
from training.checkpoints.checkpoint import (
    Checkpoint,
    build_discriminator,
    build_generator,
    load_weights,
    save_checkpoint,
)
from training.checkpoints.released.interop import Weights
from training.checkpoints.weights_folder import write_weights_folder
from training.config.settings import Config
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator

SHIPPED_MODEL = Path(__file__).resolve().parents[1] / "models" / "heads64.pkl"
Network = TypeVar("Network", bound=nn.Module)


def load_generator(path_or_url: str | os.PathLike[str], *, reuse_memory: bool = False) -> Generator:
    """Generator of a file or http(s) address: eval mode, on the CPU, parameters frozen but every
    method differentiable.

    Args:
        path_or_url: Checkpoint of this program, released snapshot, or folder of safetensors.
        reuse_memory: Let this process keep the freed buffers of CPU tensors for later ones
            (`torch_utils.memory`): large pictures are a third faster, and up to 1 GB stays with the
            process. False leaves PyTorch's allocator alone.

    Raises:
        UserError: if the file cannot be read or holds no generator.
    """
    return _load(build_generator, path_or_url, reuse_memory)


def load_discriminator(
    path_or_url: str | os.PathLike[str], *, reuse_memory: bool = False
) -> Discriminator:
    """Discriminator of a file or http(s) address: eval mode, on the CPU, parameters frozen.

    Args:
        path_or_url, reuse_memory: As for `load_generator`.

    Raises:
        UserError: if the file cannot be read or holds no discriminator.
    """
    return _load(build_discriminator, path_or_url, reuse_memory)


def _load(
    build: Callable[[Weights], Network], path_or_url: str | os.PathLike[str], reuse_memory: bool
) -> Network:
    if reuse_memory:
        keep_freed_memory()
    return build(load_weights(path_or_url))


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
    if dest.suffix == ".pkl":
        config = Config(model=generator.config)
        state = generator.state_dict()
        save_checkpoint(
            dest,
            Checkpoint(
                config,
                G_ema=state,
                cameras=generator.cameras,
                latents=generator.latents,
                directions=generator.directions,
            ),
        )
    elif not dest.suffix:
        write_weights_folder(dest, weights_of(generator))
        return sorted(dest.iterdir())
    elif dest.suffix == ".onnx":
        return _export_onnx(generator, dest)
    elif dest.suffix == ".html":
        from media.avatar import write_avatars
        from media.pictures.grids import map_seed

        heads = {f"seed {seed}": map_seed(generator, seed, truncation_psi) for seed in seeds}
        write_avatars(dest, generator, heads, dest.stem)
    else:
        raise UserError(
            f"{dest}: {dest.suffix} is no form of a generator; end the name in .pkl, .onnx or"
            " .html, or leave the ending out for a folder of safetensors"
        )
    return [dest]


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
    )


def _export_onnx(generator: Generator, dest: Path) -> list[Path]:
    from training.checkpoints.onnx_graphs import write_image_graph, write_planes_graph

    planes, image = dest.with_suffix(".planes.onnx"), dest.with_suffix(".image.onnx")
    write_planes_graph(planes, generator)
    write_image_graph(image, generator)
    return [planes, image]
