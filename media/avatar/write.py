"""From a generator and heads to the page."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from dnnlib.console import progress
from media.avatar.document import save_page
from media.avatar.scene import make_head, scene_values
from media.pictures.grids import map_seed
from training.cameras import cameras_of
from training.networks.generator import Generator


@torch.no_grad()
def write_avatars(
    path: str | os.PathLike[str],
    generator: Generator,
    heads: Mapping[str, Tensor] | Iterable[int],
    title: str = "Heads",
) -> int:
    """Write one page with some heads, which any browser with WebGL 2 renders by itself; returns its
    size in bytes.

    The page shows the volume rendering (`image_raw`), not the super-resolution, at any resolution.
    Backbone noise is the constant one.

    Args:
        heads: Latents (1, num_ws, w_dim) by name, or seeds.

    Raises:
        UserError: if the page could not render this model, or the file cannot be written.
    """
    cameras = cameras_of(generator)
    scene = scene_values(generator, cameras, title)
    if not isinstance(heads, Mapping):
        heads = {f"seed {seed}": map_seed(generator, seed) for seed in heads}
    made = []
    with progress(heads.items(), "Heads", unit="head") as bar:
        for name, ws in bar:
            made.append(make_head(name, generator, generator.planes(ws), ws, cameras))
    return save_page(path, scene, made)
