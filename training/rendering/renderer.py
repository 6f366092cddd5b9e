"""The volume renderer: planes and rays to features, depth and alpha (EG3D, section 3.3).

What is written here in PyTorch is the definition and takes any decoder. The standard decoder's
pictures come from compiled operators that compute the same (`fused_weights` decides).
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from torch_utils.ops import decode_points as points_op
from torch_utils.ops import library
from torch_utils.ops import render_rays as rays_op
from torch_utils.ops.decode_points import DecoderWeights, fits_gpu
from training.config.settings import RenderingConfig
from training.rendering import triplane
from training.rendering.compositing import (
    add_background,
    expected_depth,
    interval_weights,
    sample_weights,
)
from training.rendering.rays import box_limits
from training.rendering.sampling import Offsets, draw_offsets, importance_depths, stratified_depths
from training.rendering.tight import tight_offsets

COMPUTE_DTYPES = (torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
Decoder = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Features (N, M, C) to raw densities (N, M, 1) and colours (N, M, K)."""


class RenderedRays(NamedTuple):
    """What each ray sees."""

    features: Tensor  # (N, R, K), first three channels are the colour in [-1, 1]
    depth: Tensor  # (N, R, 1) mean distance from the camera, world units
    alpha: Tensor  # (N, R, 1) in [0, 1]


class Rays(NamedTuple):
    """Rays and where on them samples may lie."""

    origins: Tensor  # (N, R, 3)
    directions: Tensor  # (N, R, 3), unit length
    near: Tensor  # (N, R, 1)
    far: Tensor  # (N, R, 1)
    hit: Tensor | None  # (N, R, 1), which rays meet the box at all; None = not asked


def query(
    planes: Tensor, points: Tensor, decoder: Decoder, config: RenderingConfig
) -> tuple[Tensor, Tensor]:
    """Raw densities (N, M, 1), times the density gain, and colours (N, M, K) at points (N, M, 3) in
    the world.

    Planes (N, 3, C, H, W) may be of half precision; densities and colours have the points' dtype.
    """
    weights = fused_weights(decoder, planes, points)
    if weights is not None:
        return _decode_fused(planes, points, weights, config, with_colors=True)
    return _decode_composable(planes, points, decoder, config)


def query_density(
    planes: Tensor, points: Tensor, decoder: Decoder, config: RenderingConfig
) -> Tensor:
    """The densities of `query` alone; without their colours where the decoder is the
    standard one.
    """
    weights = fused_weights(decoder, planes, points)
    if weights is not None:
        return _decode_fused(planes, points, weights, config, with_colors=False)[0]
    return _decode_composable(planes, points, decoder, config)[0]


def render(
    planes: Tensor,  # (N, 3, C, H, W)
    decoder: Decoder,
    ray_origins: Tensor,  # (N, R, 3)
    ray_directions: Tensor,  # (N, R, 3), unit length
    config: RenderingConfig,
    deterministic: bool = False,
) -> RenderedRays:
    """Render rays in two passes: even samples, then samples where those found density, composited
    together. With `first_pass` quarter the first one looks at a sixteenth of the rays, which must
    be those of square pictures, and the second's samples alone are composited.

    Sample positions carry no gradient. `deterministic` replaces the random offsets by fixed ones
    (evaluation, video). Offsets are drawn before it is decided who renders, so that a seed gives
    the same picture either way.
    """
    rays = Rays(ray_origins, ray_directions, *ray_limits(ray_origins, ray_directions, config))
    unit = config.unit
    if unit != 1:
        rays = rays._replace(
            origins=rays.origins / unit, near=rays.near / unit, far=rays.far / unit
        )
        config = replace(config, box_warp=1.0)
    offsets = _offsets(planes, decoder, rays, config, deterministic)
    rendered = _render(planes, decoder, rays, offsets, config)
    return rendered if unit == 1 else rendered._replace(depth=rendered.depth * unit)


def _offsets(
    planes: Tensor, decoder: Decoder, rays: Rays, config: RenderingConfig, deterministic: bool
) -> Offsets:
    """Where samples lie: drawn, or near the surface that a first pass over few rays finds."""
    first, second = config.depth_resolution, config.depth_resolution_importance
    if config.first_pass == "full":
        return draw_offsets(rays.near, first, second, deterministic, config.fine_offsets)

    def densities(numbers: Tensor, depths: Tensor) -> Tensor:
        origins, directions = rays.origins[:, numbers, None], rays.directions[:, numbers, None]
        points = (origins + depths[..., None] * directions).flatten(1, 2)
        found = query_density(planes, points, decoder, config).view(depths.shape)
        return found if rays.hit is None else found.masked_fill(~rays.hit[:, numbers], -math.inf)

    coarse = tight_offsets(rays.near, rays.far, densities, first, second, deterministic)
    return Offsets(coarse, None)


def _render(
    planes: Tensor, decoder: Decoder, rays: Rays, offsets: Offsets, config: RenderingConfig
) -> RenderedRays:
    """Rays whose lengths are in the unit in which densities count."""
    weights = fused_weights(decoder, planes, rays.origins)
    if weights is None or config.fine_sampling not in rays_op.FINE_SAMPLERS:
        return _render_composable(planes, decoder, rays, offsets, config)
    fused = rays_op.render_rays(
        planes,
        weights,
        *rays,
        *offsets,
        box_warp=config.box_warp,
        plane_axes=config.plane_axes,
        fine_sampling=config.fine_sampling,
        density_gain=config.density_gain,
        background=config.background,
    )
    return RenderedRays(*fused)


def ray_limits(
    ray_origins: Tensor, ray_directions: Tensor, config: RenderingConfig
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Depths (N, R, 1) between which rays are sampled, and which rays meet the box at all (None =
    not asked).
    """
    if config.ray_start == "auto" or config.ray_end == "auto":
        box_near, box_far, hit = box_limits(ray_origins, ray_directions, config.box_warp)
        near = (
            box_near if config.ray_start == "auto" else torch.full_like(box_near, config.ray_start)
        )
        far = box_far if config.ray_end == "auto" else torch.full_like(box_far, config.ray_end)
        overlaps = far > near  # a constant limit may lie on the wrong side of the box
        return near, torch.where(overlaps, far, near + config.box_warp), hit & overlaps
    shape = (*ray_origins.shape[:-1], 1)
    return (
        ray_origins.new_full(shape, config.ray_start),
        ray_origins.new_full(shape, config.ray_end),
        None,
    )


def _decode_fused(
    planes: Tensor,
    points: Tensor,
    weights: DecoderWeights,
    config: RenderingConfig,
    with_colors: bool,
) -> tuple[Tensor, Tensor]:
    return points_op.decode_points(
        planes,
        weights,
        points,
        box_warp=config.box_warp,
        plane_axes=config.plane_axes,
        density_gain=config.density_gain,
        with_colors=with_colors,
    )


def _decode_composable(
    planes: Tensor, points: Tensor, decoder: Decoder, config: RenderingConfig
) -> tuple[Tensor, Tensor]:
    densities, colors = decoder(triplane.sample(planes, points, config.box_warp, config.plane_axes))
    return (densities if config.density_gain == 1 else densities * config.density_gain), colors


def _render_composable(
    planes: Tensor, decoder: Decoder, rays: Rays, offsets: Offsets, config: RenderingConfig
) -> RenderedRays:
    def decode_at(depths: Tensor) -> tuple[Tensor, Tensor]:
        points = rays.origins[:, :, None] + depths[..., None] * rays.directions[:, :, None]
        densities, colors = _decode_composable(planes, points.flatten(1, 2), decoder, config)
        return densities.view(depths.shape), colors.unflatten(1, depths.shape[1:])

    depths = stratified_depths(rays.near, rays.far, offsets.coarse)
    densities, colors = decode_at(depths)
    passes = [colors]
    order: Tensor | None = None
    if offsets.fine is not None:
        coarse_weights = interval_weights(depths, densities.detach())
        fine_depths = importance_depths(depths, coarse_weights, offsets.fine, config.fine_sampling)
        fine_densities, fine_colors = decode_at(fine_depths)
        passes.append(fine_colors)
        depths, order = torch.cat([depths, fine_depths], dim=-1).sort(dim=-1, stable=True)
        densities = torch.cat([densities, fine_densities], dim=-1).gather(-1, order)

    weights = interval_weights(depths, densities)
    if rays.hit is not None:
        weights = weights * rays.hit
    features = _sum_colors(passes, sample_weights(weights), order)
    alpha = weights.sum(dim=-1, keepdim=True)
    features = add_background(features, alpha, config.background) * 2 - 1
    return RenderedRays(features, expected_depth(depths, weights), alpha)


def _sum_colors(passes: list[Tensor], weights: Tensor, order: Tensor | None) -> Tensor:
    """Weighted sum (N, R, K) of the colours of all passes, each (N, R, S, K).

    `weights` (N, R, S_all) are in depth order. Putting them back into the order of sampling moves
    one number a sample instead of K, and the sum does not care about the order.
    """
    if order is not None:
        weights = torch.empty_like(weights).scatter(-1, order, weights)
    parts = weights.split([colors.shape[2] for colors in passes], dim=-1)
    return torch.stack(
        [
            torch.einsum("nrs,nrsk->nrk", part, colors)
            for part, colors in zip(parts, passes, strict=True)
        ]
    ).sum(dim=0)


# --------------------------------------------------------------------------------------------------
# Who renders


def fused_weights(decoder: object, planes: Tensor, positions: Tensor) -> DecoderWeights | None:
    """The decoder's weights if the compiled operators are to render, None if the composable path
    is: the one place that decides.

    A decoder that has a method `two_layer_weights` and answers it with weights says that it is the
    standard one, unchanged. A decoder that is anything else is called.

    Args:
        planes: (N, 3, C, H, W).
        positions: Ray origins or points, (..., 3).
    """
    describe = getattr(decoder, "two_layer_weights", None)
    weights: DecoderWeights | None = None if describe is None else describe()
    if weights is None:
        return None
    dtype = positions.dtype
    has_planes_dtype = planes.dtype == dtype or (planes.dtype in HALVES and dtype == torch.float32)
    if (
        dtype not in COMPUTE_DTYPES
        or not has_planes_dtype
        or any(weight.dtype != dtype for weight in weights)
    ):
        return None
    if weights.w0.shape[1] != planes.shape[2]:
        return None  # the composable path says what is wrong
    if planes.is_cuda and not fits_gpu(weights):
        if not torch.compiler.is_compiling():
            _tell_unfit(weights.w0.shape, weights.w1.shape)
        return None
    serves = library.use_kernels(planes, positions, *weights) and not torch.is_autocast_enabled(
        planes.device.type
    )
    return weights if serves else None


@functools.cache
def _tell_unfit(first: torch.Size, second: torch.Size) -> None:
    """Say once that a decoder with layers of these shapes is too large for the kernels."""
    warnings.warn(
        f"plain PyTorch renders on CUDA, which is slower: a decoder of {first[1]} features,"
        f" {first[0]} hidden units and {second[0] - 1} colours does not fit into a GPU's shared"
        " memory",
        RuntimeWarning,
        stacklevel=3,
    )
