"""Pictures of the object alone: straight colours with alpha, as PNG and WebM hold them.

A model with a background colour knows where its object ends: alpha is what the rendering's weights
add up to, and what the background added to the picture is taken out again. Super-resolution is
given the rendering over that colour, as in training; its picture takes the rendering's alpha,
enlarged. A model without a background colour paints what is behind the object onto its planes;
there only depth tells the two apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dnnlib.console import UserError
from media import PictureModel
from media.pictures.grids import Pictures, to_pictures
from metrics.views import OPAQUE
from training.networks.layers import resize_image

LEAST_ALPHA = 1e-3  # below it a pixel's colour is noise, and nobody sees it
# of the variance of depths must lie between object and wall; of an even spread 3/4 would
LEAST_SEPARATION = 0.85


def straight_colours(image: Tensor, alpha: Tensor, background: Tensor) -> Tensor:
    """Colours in [0, 1] without their background's share.

    Args:
        image: (N, 3, R, R) in [-1, 1], over `background` (3,) in [0, 1].
        alpha: (N, 1, R, R).
    """
    premultiplied = (image + 1) / 2 - (1 - alpha) * background.view(3, 1, 1)
    return (premultiplied / alpha.clamp(min=LEAST_ALPHA)).clamp(0, 1)


@torch.no_grad()
def transparent_views(
    generator: PictureModel,
    planes: Tensor,
    ws: Tensor,
    c: Tensor,
    neural_rendering_resolution: int | None = None,
    wall: float | None = None,
) -> Pictures:
    """Pictures (K, res, res, 4) of one identity, planes (1, 3, C, H, W) and ws (1, num_ws, w_dim),
    from cameras c (K, 25).

    Args:
        wall: Distance from the camera (`wall_distance`) from which on all is background.
    """
    views = []
    for one in c.to(ws).split(1):
        out = generator.render(planes, ws, one, neural_rendering_resolution, deterministic=True)
        alpha = out.alpha
        if wall is not None:
            with _rays_end_at(generator, wall):
                short = generator.render(planes, ws, one, neural_rendering_resolution)
            alpha = short.alpha
        alpha = resize_image(alpha, out.image.shape[-1]).clamp(0, 1)
        colours = (out.image + 1) / 2
        if wall is None:
            background = torch.tensor(generator.rendering.background or (0.0, 0.0, 0.0)).to(alpha)
            colours = straight_colours(out.image, alpha, background)
        views.append(to_pictures(torch.cat([colours, alpha], dim=1) * 2 - 1))
    return np.concatenate(views)


@torch.no_grad()
def wall_distance(
    generator: PictureModel,
    planes: Tensor,
    ws: Tensor,
    c: Tensor,
    neural_rendering_resolution: int | None = None,
) -> float:
    """Distance from the camera between an object and the wall behind it, on which a model without a
    background colour paints the background: it parts the depths that cameras c (K, 25) see as
    `split_in_two` does (Otsu 1979).

    Raises:
        UserError: if there is no such wall.
    """
    rendering = generator.rendering
    if rendering.background is not None:
        raise UserError(
            "--remove-background is for models that paint the background behind the object; this"
            " one renders over a plain colour: --transparent alone cuts that out"
        )
    found = [
        generator.render(planes, ws, one, neural_rendering_resolution, deterministic=True)
        for one in c.to(ws).split(1)
    ]
    depths = torch.cat([out.image_depth[out.alpha > OPAQUE] for out in found]).double().cpu()
    border, separation = split_in_two(depths)
    if separation < LEAST_SEPARATION:
        raise UserError(
            "--remove-background finds no wall behind the object: the depths that are seen do not"
            " part into two groups"
        )
    return border


def split_in_two(values: Tensor) -> tuple[float, float]:
    """Where to part values (M,) so that they vary least within the two groups, in the middle
    between these; and the share of the variance that lies between them, 0 for values that are all
    equal.
    """
    ordered, count = values.sort().values, len(values)
    if count < 2 or ordered[0] == ordered[-1]:
        return float("inf"), 0.0
    sums, below = ordered.cumsum(0)[:-1], torch.arange(1, count).to(ordered)
    gap = (sums[-1] + ordered[-1] - sums) / (count - below) - sums / below
    between = below * (count - below) / count**2 * gap.square()
    best = int(between.argmax())
    share = between[best] / ordered.var(correction=0)
    return float(ordered[best : best + 2].mean()), float(share)


@contextlib.contextmanager
def _rays_end_at(generator: PictureModel, distance: float) -> Iterator[None]:
    usual = generator.rendering.ray_end
    generator.rendering.ray_end = distance
    try:
        yield
    finally:
        generator.rendering.ray_end = usual
