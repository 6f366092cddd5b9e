"""Gaussians on the picture plane, blended front to back, with gradients (Kerbl et al. 2023, "3D
Gaussian splatting for real-time radiance field rendering", section 6).

`rasterize_gaussians_reference` is the definition. The compiled operator takes tiles of pixels in
parallel; its sums do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torch_utils.ops import library
from torch_utils.ops.decode_points import refuse_second_derivatives

LEAST_ALPHA = 1 / 255  # below, a Gaussian leaves a pixel alone
MOST_ALPHA = 0.99  # of one Gaussian, so that gradients reach what is behind it
REFERENCE_ROWS = 16  # of pixels that the reference takes at once


def rasterize_gaussians(
    means: Tensor,  # (N, 2), pixels: x to the right, y down; the first pixel's centre is (0.5, 0.5)
    conics: Tensor,  # (N, 3), inverse covariance [[a, b], [b, c]] as a, b, c, per square pixel
    opacities: Tensor,  # (N,), in [0, 1]: alpha at the mean
    colors: Tensor,  # (N, 3)
    height: int,
    width: int,
) -> tuple[Tensor, Tensor]:
    """Picture (height, width, 3) and alpha (height, width) of Gaussians in order from front to
    back, in front of black.

    fp32 and fp64; differentiable once with respect to the four tensors.

    Raises:
        ValueError: for tensors of other shapes or of several dtypes.
    """
    operands = {"means": means, "conics": conics, "opacities": opacities, "colors": colors}
    shapes = {"means": (2,), "conics": (3,), "opacities": (), "colors": (3,)}
    for name, tensor in operands.items():
        if tensor.shape != (len(means), *shapes[name]) or tensor.dtype != means.dtype:
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)} and {tensor.dtype} for {len(means)} means"
                f" of {means.dtype}"
            )
    has_kernel = means.device.type == "cpu" and means.dtype in (torch.float32, torch.float64)
    if has_kernel and library.use_kernels(*operands.values()):
        found: tuple[Tensor, Tensor] = torch.ops.open_eg3d.rasterize_gaussians(
            means, conics, opacities, colors, height, width
        )
        return found
    return rasterize_gaussians_reference(means, conics, opacities, colors, height, width)


def rasterize_gaussians_reference(
    means: Tensor, conics: Tensor, opacities: Tensor, colors: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """What `rasterize_gaussians` means, in plain PyTorch, a few rows of pixels at a time."""
    reach = (2 * (opacities.detach() / LEAST_ALPHA).log()).clamp(min=0).sqrt()
    a, b, c = conics.detach().unbind(-1)
    reach = reach * (a / (a * c - b * b)).sqrt()
    parts = []
    for top in range(0, height, REFERENCE_ROWS):
        bottom = min(top + REFERENCE_ROWS, height)
        near = (means[:, 1] + reach >= top) & (means[:, 1] - reach <= bottom)
        y, x = torch.meshgrid(
            torch.arange(top, bottom).to(means) + 0.5,
            torch.arange(width).to(means) + 0.5,
            indexing="ij",
        )
        dx, dy = x - means[near, 0, None, None], y - means[near, 1, None, None]
        a, b, c = conics[near, :, None, None].unbind(1)
        falloff = torch.exp(-(a * dx**2 + 2 * b * dx * dy + c * dy**2) / 2)
        alpha = opacities[near, None, None] * falloff
        alpha = alpha.clamp(max=MOST_ALPHA).where(alpha >= LEAST_ALPHA, 0.0)
        light = torch.cumprod(torch.cat([alpha.new_ones(1, bottom - top, width), 1 - alpha]), dim=0)
        image = torch.einsum("nhw,nc->hwc", alpha * light[:-1], colors[near])
        parts.append((image, 1 - light[-1]))
    images, alphas = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(alphas)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs[:4])


def _backward(ctx: Any, grad_image: Tensor, grad_alpha: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.open_eg3d.rasterize_gaussians_backward(
        grad_image, grad_alpha, *ctx.saved_tensors
    )
    return *gradients, None, None


def _fake(
    means: Tensor, _conics: Tensor, _opacities: Tensor, _colors: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    return means.new_empty(height, width, 3), means.new_empty(height, width)


def _fake_backward(*arguments: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in arguments[4:])


@library.on_load
def _register() -> None:
    library.register("rasterize_gaussians", _fake, _backward, _setup_context)
    library.register("rasterize_gaussians_backward", _fake_backward, refuse_second_derivatives)


def random_gaussians(count: int, size: float, dtype: torch.dtype) -> list[Tensor]:
    """Means, conics, opacities and colours of Gaussians around a picture of `size` pixels."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(count, 9, generator=generator, dtype=torch.float64)
    means = (values[:, :2] * 1.2 - 0.1) * size
    root = torch.zeros(count, 2, 2, dtype=torch.float64)
    root[:, 0, 0], root[:, 1, 1] = 0.2 + values[:, 2], 0.1 + values[:, 3]
    root[:, 1, 0] = values[:, 4] - 0.5
    conics = (root @ root.mT).flatten(1)[:, [0, 1, 3]]
    return [part.to(dtype) for part in (means, conics, values[:, 5] * 1.2, values[:, 6:])]


def self_checks(device: torch.device = library.CPU) -> Iterator[library.SelfCheck]:
    """Picture, alpha and all gradients beside the reference's."""
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 1e-11)):
        means, conics, opacities, colors = inputs = random_gaussians(60, 37.0, dtype)
        for value in inputs:
            value.requires_grad_()
        found = rasterize_gaussians(
            means.to(device), conics.to(device), opacities.to(device), colors.to(device), 37, 21
        )
        expected = rasterize_gaussians_reference(means, conics, opacities, colors, 37, 21)
        names = ["image", "alpha", *(f"gradient {n}" for n in range(4))]
        results, references = (
            (*pair, *torch.autograd.grad(pair[0].square().sum() + pair[1].square().sum(), inputs))
            for pair in (found, expected)
        )
        for name, one, other in zip(names, results, references, strict=True):
            yield library.SelfCheck(f"rasterize_gaussians {name} {dtype}", one, other, tolerance)
