"""What the measures of 3D share: views of fakes with depth and alpha."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metrics.sampling import GeneratorSampler, RenderOutput

OPAQUE = 0.5  # pixels with less alpha show background, whose depth means nothing


@dataclass
class View:
    """One rendering of N fakes: image (N, 3, R, R) and raw (N, 3, r, r) in [0, 1], depth (N, 1, r,
    r), solid (N, 1, r, r) bool, cameras
    (N, 25); all float64, since differences of depths are what counts."""

    image: Tensor
    raw: Tensor
    depth: Tensor
    solid: Tensor
    cameras: Tensor


def make_view(output: RenderOutput, cameras: Tensor) -> View:
    """The view that a model rendered. Without alpha all of it counts as solid."""
    depth = in_double(output.image_depth)
    alpha = getattr(output, "alpha", None)
    solid = (
        torch.ones_like(depth, dtype=torch.bool)
        if alpha is None
        else alpha.to(depth.device) > OPAQUE
    )
    image, raw = (
        ((in_double(pixels) + 1) / 2).clamp(0, 1) for pixels in (output.image, output.image_raw)
    )
    return View(image, raw, depth, solid & depth.isfinite(), in_double(cameras))


def in_double(values: Tensor) -> Tensor:
    """In float64, where they are if that can be, else (Apple's GPUs) on the CPU."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def render_view(
    sampler: GeneratorSampler, ws: Tensor, cameras: Tensor, start: int, planes: Tensor | None = None
) -> View:
    """The view of fakes start, start + 1, ... from cameras (N, 25)."""
    return make_view(sampler.render(ws, cameras, start, planes), cameras)
