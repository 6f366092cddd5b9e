"""Samples where the surface is: a first pass over a sixteenth of the rays tells at which depths
each pixel's samples should lie (after Trevithick et al. 2024, WYSIWYG, section 4: proposals at low
resolution, stratified samples from them).

Some samples lie anywhere on the ray, so that nothing can hide from training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils.sample_random import rand
from training.rendering.compositing import interval_weights
from training.rendering.sampling import invert_cdf

CELL = 4  # pixels a side, of which the first pass looks at one
NEIGHBOURS = 5  # cells a side at whose surfaces some of a pixel's samples lie
INTERPOLATED = 0.6  # share of samples as the nearest cells say; the others heed all neighbours
IN_FRONT = 0.3  # weight of the interval before one with weight 1: the first sample stands in air
ANYWHERE = 1 / 8  # share of the samples that lie anywhere on the ray
LEAST_WEIGHT = 0.005  # of a ray; with less around, a pixel's samples all lie anywhere


def cell_rays(side: int, device: torch.device | None = None) -> Tensor:
    """Which ray (k * k,) of a picture of `side` x `side` stands for each cell, row by row.

    Its place moves from cell to cell: among four cells below one another each column of pixels is
    looked at, among four beside one another each row, so that no line passes between the rays.
    """
    cells = torch.arange(-(-side // CELL), device=device)
    row, column = torch.meshgrid(cells, cells, indexing="ij")
    x, y = (
        (CELL * own + (other + 2 * (own % 2)) % CELL).clamp(max=side - 1)
        for own, other in ((column, row), (row, column))
    )
    return (y * side + x).flatten()


def spread(weights: Tensor, side: int) -> Tensor:
    """Share (N, side^2, B) of a pixel's samples that each interval of depth should get, from the
    weights (N, k * k, B) of the cells' rays; 0 everywhere where none around sees anything.

    Most of it is interpolated between the nearest cells. The rest goes to wherever one of the
    neighbours sees something, which may be thin. Both begin one interval in front.
    """
    k = -(-side // CELL)
    grids = weights.transpose(1, 2).unflatten(2, (k, k))
    near = F.interpolate(grids, scale_factor=CELL, mode="bilinear", align_corners=False)
    # at the border as many neighbours as inside, else too few rows and columns are looked at
    wide = F.max_pool2d(grids, min(NEIGHBOURS, k), stride=1)
    before = (k - wide.shape[-1]) // 2
    after = k - wide.shape[-1] - before
    wide = F.pad(wide, (before, after, before, after), mode="replicate")
    wide = wide.repeat_interleave(CELL, dim=2).repeat_interleave(CELL, dim=3)
    pixels = INTERPOLATED * _shares(near) + (1 - INTERPOLATED) * _shares(wide)
    return pixels[:, :, :side, :side].flatten(2).transpose(1, 2)


def _shares(weights: Tensor) -> Tensor:
    """Weights (N, B, H, W) with a part in the interval in front, that add up to 1."""
    weights = weights + IN_FRONT * F.pad(weights[:, 1:], (0, 0, 0, 0, 0, 1))
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=LEAST_WEIGHT)


def depths_of(near: Tensor, far: Tensor, edges: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Increasing depths (N, R, S), stratified: most of them as `weights` (N, R, B) of the intervals
    between `edges` (N, 1, B+1) say, the others even from `near` to `far`, both (N, R, 1).

    Args:
        u: (N, R, S) in [0, 1), places in the strata.
    """
    lower, upper = edges[..., :-1], edges[..., 1:]
    even = (torch.minimum(upper, far) - torch.maximum(lower, near)).clamp(min=0) / (far - near)
    weights = weights * (even > 0)
    total = weights.sum(dim=-1, keepdim=True)
    drawn = (total > LEAST_WEIGHT) * (1 - ANYWHERE)
    weights = weights / total.clamp(min=LEAST_WEIGHT) * drawn + even * (1 - drawn)
    count = u.shape[-1]
    strata = (torch.arange(count, dtype=u.dtype, device=u.device) + u) / count
    depths = invert_cdf(edges.expand(*weights.shape[:-1], -1), weights, strata)
    return torch.minimum(torch.maximum(depths, near), far)


@torch.no_grad()
def tight_offsets(
    near: Tensor,
    far: Tensor,
    densities: Callable[[Tensor, Tensor], Tensor],
    first: int,
    second: int,
    deterministic: bool,
) -> Tensor:
    """Offsets (N, R, second), in steps from even depths as `stratified_depths` takes them, of
    samples near the surface.

    Args:
        near, far: (N, R, 1) of the rays of a square picture, row by row.
        densities: Raw densities (N, k, first) of rays of these numbers (k,) at depths (N, k,
            first), -inf where a ray misses the box.
        first: Samples of a ray of the first pass.

    Raises:
        ValueError: if R is not a square number.
    """
    side = math.isqrt(near.shape[1])
    if side * side != near.shape[1]:
        raise ValueError(f"{near.shape[1]} rays are not those of a square picture")
    options: Any = {"dtype": near.dtype, "device": near.device}
    u = rand(*near.shape[:2], second, **options)
    shift = rand(len(near), 1, 1, **options)
    if deterministic:
        u, shift = torch.full_like(u, 0.5), torch.full_like(shift, 0.5)
    start, end = near.amin(dim=1, keepdim=True), far.amax(dim=1, keepdim=True)
    places = (torch.arange(first, **options) + shift - 0.5) / (first - 1)
    edges = start + (end - start) * places
    rays = cell_rays(side, near.device)
    depths = edges.expand(-1, len(rays), -1)
    inside = (depths >= near[:, rays]) & (depths <= far[:, rays])
    found = densities(rays, depths).masked_fill(~inside, -math.inf)
    weights = spread(interval_weights(depths, found), side)
    chosen = depths_of(near, far, edges, weights, u)
    step = (far - near) / (second - 1)
    return (chosen - near) / step - torch.arange(second, **options)
