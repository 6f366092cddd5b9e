"""From a generator and seeds to the page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dnnlib.console import progress
from media.avatar.document import save_page
from media.avatar.scene import make_head, scene_values
from media.pictures.grids import seed_latent
from training.cameras import cameras_of
from training.networks.generator import Generator


@torch.no_grad()
def write_avatars(
    path: str | os.PathLike[str],
    generator: Generator,
    seeds: Sequence[int],
    truncation_psi: float = 1.0,
    title: str = "Heads",
    named: Mapping[str, Tensor] | None = None,
) -> int:
    """Write one page with the heads of some seeds, and of latents (1, num_ws, w_dim) by name,
    which any browser with WebGL 2 renders by itself; returns its size in bytes.

    The page shows the volume rendering (`image_raw`), not the super-resolution, at any resolution.
    Latents are conditioned on the frontal pose and backbone noise is the constant one, as
    everywhere where seeds are shown.

    Raises:
        UserError: if the page could not render this model, or the file cannot be written.
    """
    cameras = cameras_of(generator)
    scene = scene_values(generator, cameras, title)
    device = next(generator.parameters()).device
    conditioning = cameras.frontal_label()[None].to(device)
    mapped = {
        f"seed {seed}": generator.mapping(
            seed_latent(seed, generator.z_dim).to(device), conditioning, truncation_psi
        )
        for seed in seeds
    }
    heads = []
    with progress([*mapped.items(), *(named or {}).items()], "Heads", unit="head") as bar:
        for name, ws in bar:
            heads.append(make_head(name, generator, generator.planes(ws), ws, cameras))
    return save_page(path, scene, heads)
