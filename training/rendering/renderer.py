"""The volume renderer: planes and rays to features, depth and coverage (EG3D, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from training.config import RenderingConfig
from training.rendering.compositing import add_background, expected_depth, interval_weights, sample_weights
from training.rendering.rays import box_limits
from training.rendering.sampling import importance_depths, stratified_depths
from training.rendering.triplane import sample_planes

Decoder = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Features (N, M, C) to raw densities (N, M, 1) and colours (N, M, K)."""


class RenderedRays(NamedTuple):
    """What each ray sees."""

    features: Tensor  # (N, R, K), first three channels are the colour in [-1, 1]
    depth: Tensor  # (N, R, 1) mean distance from the camera, world units
    weights_sum: Tensor  # (N, R, 1) coverage in [0, 1]


def decode_points(planes: Tensor, points: Tensor, decoder: Decoder, config: RenderingConfig) -> tuple[Tensor, Tensor]:
    """Raw densities (N, M, 1), times the density gain, and colours (N, M, K) at points (N, M, 3) in the world."""
    densities, colors = decoder(sample_planes(planes, points, config.box_warp, config.plane_axes))
    return (densities if config.density_gain == 1 else densities * config.density_gain), colors


def render_rays(
    planes: Tensor,  # (N, 3, C, H, W)
    decoder: Decoder,
    ray_origins: Tensor,  # (N, R, 3)
    ray_directions: Tensor,  # (N, R, 3), unit length
    config: RenderingConfig,
    deterministic: bool = False,
) -> RenderedRays:
    """Render rays in two passes: even samples, then samples where those found density, composited together.

    Sample positions carry no gradient. `deterministic` replaces the random offsets by fixed ones (evaluation, video).
    """

    def decode_at(depths: Tensor) -> tuple[Tensor, Tensor]:
        points = ray_origins[:, :, None] + depths[..., None] * ray_directions[:, :, None]
        densities, colors = decode_points(planes, points.flatten(1, 2), decoder, config)
        return densities.view(depths.shape), colors.view(*depths.shape, -1)

    near, far, hit = ray_limits(ray_origins, ray_directions, config)
    depths = stratified_depths(near, far, config.depth_resolution, deterministic)
    densities, colors = decode_at(depths)
    passes = [colors]
    order: Tensor | None = None
    if config.depth_resolution_importance > 0:
        coarse_weights = interval_weights(depths, densities.detach())
        fine_depths = importance_depths(depths, coarse_weights, config.depth_resolution_importance, config.fine_sampling, deterministic)
        fine_densities, fine_colors = decode_at(fine_depths)
        passes.append(fine_colors)
        depths, order = torch.cat([depths, fine_depths], dim=-1).sort(dim=-1, stable=True)
        densities = torch.cat([densities, fine_densities], dim=-1).gather(-1, order)

    weights = interval_weights(depths, densities)
    if hit is not None:
        weights = weights * hit
    features = _sum_colors(passes, sample_weights(weights), order)
    opacity = weights.sum(dim=-1, keepdim=True)
    features = add_background(features, opacity, config.background) * 2 - 1
    return RenderedRays(features, expected_depth(depths, weights), opacity)


def ray_limits(ray_origins: Tensor, ray_directions: Tensor, config: RenderingConfig) -> tuple[Tensor, Tensor, Tensor | None]:
    """Depths (N, R, 1) between which rays are sampled, and which rays meet the box at all (None = not asked)."""
    if config.ray_start == "auto" or config.ray_end == "auto":
        box_near, box_far, hit = box_limits(ray_origins, ray_directions, config.box_warp)
        near = box_near if config.ray_start == "auto" else torch.full_like(box_near, config.ray_start)
        far = box_far if config.ray_end == "auto" else torch.full_like(box_far, config.ray_end)
        overlaps = far > near  # a constant limit may lie on the wrong side of the box
        return near, torch.where(overlaps, far, near + config.box_warp), hit & overlaps
    shape = (*ray_origins.shape[:-1], 1)
    return ray_origins.new_full(shape, config.ray_start), ray_origins.new_full(shape, config.ray_end), None


def _sum_colors(passes: list[Tensor], weights: Tensor, order: Tensor | None) -> Tensor:
    """Weighted sum (N, R, K) of the colours of all passes, each (N, R, S, K).

    `weights` (N, R, S_all) are in depth order. Putting them back into the order of sampling moves one number a sample
    instead of K, and the sum does not care about the order.
    """
    if order is not None:
        weights = torch.empty_like(weights).scatter(-1, order, weights)
    parts = weights.split([colors.shape[2] for colors in passes], dim=-1)
    return torch.stack([torch.einsum("nrs,nrsk->nrk", part, colors) for part, colors in zip(parts, passes, strict=True)]).sum(dim=0)
