"""From densities along a ray to what the camera sees (Max 1995; NeRF, section 4; EG3D's midpoint
rule).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DENSITY_SHIFT = 1.0  # softplus(x - 1) keeps a fresh network's space almost empty
TRANSMITTANCE_FLOOR = 1e-10


def interval_weights(depths: Tensor, densities: Tensor) -> Tensor:
    """Share of the picture that each interval between neighbouring samples contributes.

    Args:
        depths: (N, R, S) increasing sample depths.
        densities: (N, R, S) raw densities.

    Returns:
        (N, R, S-1): opacity of the interval (density softplus(mean - 1)) times the transmittance in
        front of it.
    """
    delta = depths[..., 1:] - depths[..., :-1]
    sigma = F.softplus((densities[..., 1:] + densities[..., :-1]) / 2 - DENSITY_SHIFT)
    alpha = 1 - torch.exp(-sigma * delta)
    transmittance = torch.cumprod(1 - alpha + TRANSMITTANCE_FLOOR, dim=-1)
    return alpha * F.pad(transmittance[..., :-1], (1, 0), value=1.0)


def sample_weights(weights: Tensor) -> Tensor:
    """Weights (..., S) of samples from those of the intervals between them (..., S-1): an interval
    shows the mean of its ends.
    """
    return (F.pad(weights, (1, 0)) + F.pad(weights, (0, 1))) / 2


def expected_depth(depths: Tensor, weights: Tensor) -> Tensor:
    """Mean depth (N, R, 1) of what a ray sees, within its samples' range; the farthest sample where
    it sees nothing.
    """
    middles = (depths[..., 1:] + depths[..., :-1]) / 2
    total = weights.sum(dim=-1, keepdim=True)
    is_empty = total == 0
    depth = (weights * middles).sum(dim=-1, keepdim=True) / torch.where(is_empty, 1, total)
    nearest, farthest = depths.amin(dim=-1, keepdim=True), depths.amax(dim=-1, keepdim=True)
    return torch.where(is_empty, farthest, depth).clamp(nearest, farthest)


def add_background(
    features: Tensor, alpha: Tensor, background: tuple[float, float, float] | None
) -> Tensor:
    """Composite features (N, R, C) with `alpha` (N, R, 1) onto a colour: it fills the
    RGB channels, 1 the others.
    """
    if background is None:
        return features
    fill = torch.ones(features.shape[-1], dtype=features.dtype, device=features.device)
    fill[:3] = torch.tensor(background, dtype=features.dtype)
    return features + (1 - alpha) * fill


def lay_over(pictures: Tensor, alpha: Tensor, colours: Tensor) -> Tensor:
    """Premultiplied pictures (N, 3, H, W) with `alpha` (N, 1, H, W) over plain `colours` (N, 3);
    pictures and colours are in [-1, 1], where premultiplied black is -1.
    """
    return pictures + (1 - alpha) * (colours[:, :, None, None] + 1)
