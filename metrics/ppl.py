"""Perceptual path length (Karras, Laine, Aila 2019, section 4.1; in w, at path ends, whole
pictures: Karras et al. 2020, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.processes import WorkerGroup
from metrics.sampling import GeneratorSampler

EPSILON = 1e-4
LARGEST_SIDE = 256  # larger pictures are averaged down, as published
PERCENTILES = (1, 99)  # outside, samples are left out

Distance = Callable[[Tensor, Tensor], Tensor]
"""Pictures (N, 3, H, W) twice, in [-1, 1], to distances (N,)."""


def path_length(
    sampler: GeneratorSampler, distance: Distance, count: int, batch: int, team: WorkerGroup
) -> float:
    """Mean squared perceptual distance of pictures at w and w + EPSILON (w' - w), over EPSILON^2,
    without the lowest and highest per cent.

    The camera and the conditioning stay as they are for fake i.
    """
    lengths = torch.zeros(count, dtype=torch.float64)
    for start, size in sampler.batches(count, batch, team, "Path lengths"):
        lengths[start : start + size] = path_lengths(sampler, distance, start, size).cpu().double()
    return trimmed_mean(team.sum(lengths).numpy())


@torch.no_grad()
def path_lengths(sampler: GeneratorSampler, distance: Distance, start: int, count: int) -> Tensor:
    """Path lengths (count,) of fakes start, start + 1, ..."""
    c = sampler.cameras(start, count)
    first, second = (
        sampler.ws(z, c)
        for z in (sampler.latents(start, count), sampler.second_latents(start, count))
    )
    near = first + EPSILON * (second - first)
    pictures = [_reduced(sampler.render(ws, c, start).image.float()) for ws in (first, near)]
    return distance(*pictures) / EPSILON**2


def _reduced(images: Tensor) -> Tensor:
    factor = images.shape[-1] // LARGEST_SIDE
    return F.avg_pool2d(images, factor) if factor > 1 else images


def trimmed_mean(lengths: np.ndarray) -> float:
    """Mean of the lengths from the 1st to the 99th percentile, which are taken outwards."""
    low = np.percentile(lengths, PERCENTILES[0], method="lower")
    high = np.percentile(lengths, PERCENTILES[1], method="higher")
    return float(lengths[(lengths >= low) & (lengths <= high)].mean())
