"""Volume rendering of tri-planes with the standard decoder: both passes of a ray in one operator
(EG3D, section 3.3).

Coarse samples, decoding, weights, fine samples, decoding, merging and compositing happen ray by ray
in a thread's own buffers, so that a ray leaves behind K + 2 numbers; the backward pass follows the
ray once more instead of having stored what lies between. training/rendering defines in plain
PyTorch what is computed here, for any decoder; this serves the standard one.

Random numbers come from the caller, so that both give the same picture for the same seed. What is
said in torch_utils/ops/decode_points.py of number formats, memory layouts, second derivatives and
threads holds here as well.

Where no gradient is wanted, a ray ends when its transmittance falls below `STOP`, and samples whose
weights together stay below that are not coloured: a feature then differs by at most 8e-5. With
gradients every sample counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_utils.ops import library
from torch_utils.ops.decode_points import (
    DecoderWeights,
    PlaneAxes,
    fake_gradients,
    plain_decode,
    random_scene,
    refuse_second_derivatives,
)

STOP = 2e-5
FINE_SAMPLERS = ("interval", "released")  # what the kernels have
TENSORS = 12  # of the arguments: planes, four of the decoder, rays, limits, hit, offsets


def render_rays(
    planes: Tensor,  # (N, 3, C, H, W)
    decoder: DecoderWeights,
    ray_origins: Tensor,  # (N, R, 3)
    ray_directions: Tensor,  # (N, R, 3), unit length
    near: Tensor,  # (N, R, 1), world units along the ray
    far: Tensor,  # (N, R, 1)
    hit: Tensor | None,  # (N, R, 1) bool, rays that see anything; None = all
    # (N, R, S), S >= 2, offsets in steps of the coarse samples from even places between near and
    # far: in [0, 1), or any that leave the samples in order
    u_coarse: Tensor,
    # (N, R, F) in [0, 1), where in the cumulated weights the fine samples lie; None = a single pass
    u_fine: Tensor | None,
    *,
    box_warp: float,
    plane_axes: PlaneAxes = "corrected",
    fine_sampling: str = "interval",
    density_gain: float = 1.0,
    background: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Features (N, R, K) in [-1, 1], mean depth (N, R, 1) and alpha (N, R, 1) of each ray.

    Differentiable with respect to planes, decoder, rays and their limits. To be called where
    `library.use_kernels` says that kernels serve.
    """
    tensors = (planes, *decoder, ray_origins, ray_directions, near, far)
    is_differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    settings = (
        box_warp,
        plane_axes == "released",
        fine_sampling == "released",
        density_gain,
        background,
    )
    return torch.ops.open_eg3d.render_rays(
        *tensors, hit, u_coarse, u_fine, *settings, 0.0 if is_differentiated else STOP
    )


def _fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    w1, ray_origins = arguments[3], arguments[5]
    shape = ray_origins.shape[:2]
    return (
        ray_origins.new_empty(*shape, w1.shape[0] - 1),
        ray_origins.new_empty(*shape, 1),
        ray_origins.new_empty(*shape, 1),
    )


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    planes, *weights, ray_origins = arguments[3:9]  # behind the gradients of the outputs
    needs_planes, needs_weights, needs_rays = arguments[-3:]
    vectors = ray_origins.shape if needs_rays else (0,)
    numbers = (*ray_origins.shape[:2], 1) if needs_rays else (0,)
    of_rays = (ray_origins.new_empty(shape) for shape in (vectors, vectors, numbers, numbers))
    return *fake_gradients(
        planes, tuple(weights), ray_origins, needs_planes, needs_weights
    ), *of_rays


def _setup_context(
    ctx: Any,
    inputs: tuple[Any, ...],
    output: tuple[Tensor, Tensor, Tensor],  # noqa: ARG001 - called by name
) -> None:
    ctx.save_for_backward(*inputs[:TENSORS])
    ctx.settings = inputs[TENSORS:-1]  # without where to stop: gradients are of all samples
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *output_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:9]
    needs_planes, needs_weights, needs_rays = needs[0], any(needs[1:5]), any(needs[5:])
    gradients = torch.ops.open_eg3d.render_rays_backward(
        *output_gradients,
        *ctx.saved_tensors,
        *ctx.settings,
        needs_planes,
        needs_weights,
        needs_rays,
    )
    rest = len(ctx.needs_input_grad) - len(gradients)
    return *(g if needed else None for g, needed in zip(gradients, needs, strict=True)), *(
        [None] * rest
    )


@library.on_load
def _register() -> None:
    library.register("render_rays", _fake, _backward, _setup_context)
    library.register("render_rays_backward", _fake_backward, refuse_second_derivatives)


# --------------------------------------------------------------------------------------------------
# Self-check


def self_checks(device: torch.device = library.CPU) -> Iterator[library.SelfCheck]:
    """A single pass against its formula in plain PyTorch, and a second pass against a first one of
    the same many samples.

    The full definition lives in training/, which nothing here may import; tests compare with it.
    """
    planes, decoder = random_scene()
    generator = torch.Generator().manual_seed(2)
    directions = torch.nn.functional.normalize(torch.randn(2, 7, 3, generator=generator), dim=-1)
    origins, near, far = -2 * directions, torch.full((2, 7, 1), 1.4), torch.full((2, 7, 1), 2.6)
    offsets = torch.rand(2, 7, 20, generator=generator)
    inputs = [value.requires_grad_() for value in (planes, *decoder, origins, directions)]

    def render(u_coarse: Tensor, u_fine: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        weights = DecoderWeights(*(weight.to(device) for weight in decoder))
        along, first, last = (value.to(device) for value in (directions, near, far))
        u_fine = None if u_fine is None else u_fine.to(device)
        return render_rays(
            planes.to(device),
            weights,
            origins.to(device),
            along,
            first,
            last,
            None,
            u_coarse.to(device),
            u_fine,
            box_warp=1.2,
        )

    compiled = render(offsets, None)
    plain = _plain_single_pass(
        planes,
        decoder,
        origins,
        directions,
        near + (far - near) * (torch.arange(20) + offsets) / 19,
    )
    for name, result, expected in zip(("features", "depth", "alpha"), compiled, plain, strict=True):
        yield library.SelfCheck(f"render_rays, {name}", result.detach(), expected.detach(), 1e-5)
    results, expectations = (
        torch.autograd.grad(torch.stack([o.square().sum() for o in outputs]).sum(), inputs)
        for outputs in (compiled, plain)
    )
    for name, result, expected in zip(
        ("planes", *DecoderWeights._fields, "origins", "directions"),
        results,
        expectations,
        strict=True,
    ):
        yield library.SelfCheck(f"render_rays, gradient of {name}", result, expected, 1e-4)
    with torch.no_grad():
        many, few = (
            torch.rand(2, 7, 1500, generator=generator),
            torch.rand(2, 7, 500, generator=generator),
        )
        single, double = render(many, None), render(few, many)
    yield library.SelfCheck("render_rays, two passes", double[0], single[0], 0.01)


def _plain_single_pass(
    planes: Tensor, decoder: DecoderWeights, origins: Tensor, directions: Tensor, depths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    points = origins[:, :, None] + depths[..., None] * directions[:, :, None]
    densities, colors = (
        value.unflatten(1, depths.shape[1:])
        for value in plain_decode(planes, decoder, points.flatten(1, 2), 1.2)
    )
    means = [
        (value[..., 1:, :] + value[..., :-1, :]) / 2
        for value in (depths[..., None], densities, colors)
    ]
    alpha = 1 - torch.exp(
        -torch.nn.functional.softplus(means[1] - 1) * depths.diff(dim=-1)[..., None]
    )
    before = torch.cat(
        [torch.ones_like(alpha[..., :1, :]), torch.cumprod(1 - alpha + 1e-10, dim=-2)[..., :-1, :]],
        dim=-2,
    )
    weights = alpha * before
    alpha = weights.sum(dim=-2)
    return (
        (weights * means[2]).sum(dim=-2) * 2 - 1,
        (weights * means[0]).sum(dim=-2) / alpha,
        alpha,
    )
