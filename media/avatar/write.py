"""From a generator and seeds to the page."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

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
) -> int:
    """Write one page with the heads of some seeds, which any browser with WebGL 2 renders by
    itself; returns its size in bytes.

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
    heads = []
    with progress(seeds, "Heads", unit="head") as bar:
        for seed in bar:
            ws = generator.mapping(
                seed_latent(seed, generator.z_dim).to(device), conditioning, truncation_psi
            )
            heads.append(make_head(f"seed {seed}", generator, generator.planes(ws), ws, cameras))
    return save_page(path, scene, heads)
