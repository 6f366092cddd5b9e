"""Views of fakes with depth and alpha, which the 3D metrics share."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from metrics.sampling import GeneratorSampler, RenderOutput

OPAQUE = 0.5  # pixels with less alpha show background, whose depth means nothing


@dataclass
class View:
    """One rendering of N fakes: image (N, 3, R, R) and raw (N, 3, r, r) in [0, 1], depth (N, 1, r,
    r), solid (N, 1, r, r) bool, cameras (N, 25); all float64, since differences of depths count.
    """

    image: Tensor
    raw: Tensor
    depth: Tensor
    solid: Tensor
    cameras: Tensor


def make_view(output: RenderOutput, cameras: Tensor) -> View:
    """The view that a model rendered."""
    depth = in_double(output.image_depth)
    solid = output.alpha.to(depth.device) > OPAQUE
    image, raw = (
        ((in_double(pixels) + 1) / 2).clamp(0, 1) for pixels in (output.image, output.image_raw)
    )
    return View(image, raw, depth, solid & depth.isfinite(), in_double(cameras))


def in_double(values: Tensor) -> Tensor:
    """As float64 on their device, or on the CPU where the device has none (Apple's GPUs)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def resized(values: Tensor, size: int) -> Tensor:
    """Values (N, C, n, n) with `size` pixels per side, bilinear."""
    if values.shape[-1] == size:
        return values
    return F.interpolate(values, (size, size), mode="bilinear", align_corners=False)


def view_from(sampler: GeneratorSampler, cameras: Tensor, start: int) -> View:
    """Fakes start, start + 1, ... conditioned on and seen from cameras (N, 25)."""
    ws = sampler.ws(sampler.latents(start, len(cameras)), cameras)
    return render_view(sampler, ws, cameras, start)


def render_view(
    sampler: GeneratorSampler, ws: Tensor, cameras: Tensor, start: int, planes: Tensor | None = None
) -> View:
    """The view of fakes start, start + 1, ... from cameras (N, 25)."""
    return make_view(sampler.render(ws, cameras, start, planes), cameras)
