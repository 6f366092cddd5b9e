"""Density and colours of tri-planes at points, through the standard decoder, in one operator (EG3D,
section 3.2).

Two layers with softplus between them; output 0 is the raw density, the others are colours
sigmoid(x) * 1.002 - 0.001. Each point's three look-ups and both layers happen in one pass over
tiles that stay in the cache; the backward pass computes them again instead of having stored them.
Any other decoder is served by plain PyTorch (training/rendering), which defines what is computed
here.

Numbers: planes may be fp32, bf16 or fp16 with everything else in fp32, or all is fp64. Planes are
read where they lie if a texel's channels are neighbours in memory (channels-last, also with
expanded samples); other layouts are copied once. Gradients do not depend on the number of threads.
There are no second derivatives. On CUDA the decoder has to fit into shared memory (`fits_gpu`), and
the gradients are deterministic: sums over texels are sums of integers, those over samples have a
fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils.ops import library

PlaneAxes = Literal["corrected", "released"]
NO_SECOND_DERIVATIVES = (
    "the compiled renderer has no second derivatives; OPEN_EG3D_OPS=reference, or"
    " torch_utils.ops.library.path('reference'), chooses the plain one, which has"
)


class DecoderWeights(NamedTuple):
    """The standard decoder: what its two linear layers multiply by and add, all gains applied."""

    w0: Tensor  # (hidden, C)
    b0: Tensor  # (hidden,)
    w1: Tensor  # (1 + K, hidden), density first
    b1: Tensor  # (1 + K,)


# bytes of shared memory that a block has on every GPU (csrc/cuda/triplane/operands.h)
SHARED_MEMORY = 64 << 10
TILE, LEAST_ROWS = 64, 16  # samples that a block decodes at once: the most, and the fewest


def fits_gpu(decoder: DecoderWeights) -> bool:
    """Whether the CUDA kernels take a decoder of this size: they hold it, and 16 samples on their
    way through it, in shared memory.

    Counts what the backward pass takes, which is the most.
    """
    (hidden, features), (outputs, _) = decoder.w0.shape, decoder.w1.shape
    rows = [_row(size) for size in (features, hidden, outputs - 1)]
    whole_hidden, whole_colors = _whole_packs(hidden), _whole_packs(outputs - 1)
    weights = whole_hidden * rows[0] + (whole_colors + 1) * rows[1]
    biases = whole_hidden + whole_colors + 4
    numbers = weights + biases + LEAST_ROWS * sum(rows)
    size = decoder.w0.element_size()
    return numbers * size + TILE * (5 * size + 4) <= SHARED_MEMORY


def _whole_packs(count: int) -> int:
    return (count + 3) // 4 * 4


def _row(count: int) -> int:
    """Numbers of a row in shared memory: an odd number of packs of four."""
    packs = _whole_packs(count) // 4
    return 4 * (packs + 1 - packs % 2)


def decode_points(
    planes: Tensor,  # (N, 3, C, H, W)
    decoder: DecoderWeights,
    points: Tensor,  # (N, M, 3), world
    *,
    box_warp: float,
    plane_axes: PlaneAxes = "corrected",
    density_gain: float = 1.0,
    with_colors: bool = True,
) -> tuple[Tensor, Tensor]:
    """Raw densities (N, M, 1), times the gain, and colours (N, M, K), or (N, M, 0) where they are
    not wanted.

    Differentiable with respect to planes, decoder and points. To be called where
    `library.use_kernels` says that kernels serve.
    """
    return torch.ops.open_eg3d.decode_points(
        planes, *decoder, points, box_warp, plane_axes == "released", density_gain, with_colors
    )


def refuse_second_derivatives(*_: Any) -> Any:
    """The backward pass of a backward pass.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(NO_SECOND_DERIVATIVES)


def fake_gradients(
    planes: Tensor,
    weights: tuple[Tensor, ...],
    like: Tensor,
    needs_planes: bool,
    needs_weights: bool,
) -> tuple[Tensor, ...]:
    """Shapes of the gradients of planes and decoder; those that are not wanted are empty."""
    grad_planes = torch.empty_like(planes) if needs_planes else planes.new_empty(0)
    return grad_planes, *(like.new_empty(w.shape if needs_weights else (0,)) for w in weights)


def _fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    w1, points, with_colors = arguments[3], arguments[5], arguments[-1]
    shape = points.shape[:2]
    return points.new_empty(*shape, 1), points.new_empty(
        *shape, w1.shape[0] - 1 if with_colors else 0
    )


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    planes, *weights, points = arguments[2:8]  # behind the gradients of the outputs
    needs_planes, needs_weights, needs_points = arguments[-3:]
    grad_points = points.new_empty(points.shape if needs_points else (0,))
    return *fake_gradients(planes, tuple(weights), points, needs_planes, needs_weights), grad_points


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG001 - called by name
    ctx.save_for_backward(*inputs[:6])
    ctx.settings = inputs[6:9]
    ctx.with_colors = inputs[9]
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_densities: Tensor | None, grad_colors: Tensor | None
) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    needs_planes, needs_weights, needs_points = needs[0], any(needs[1:5]), needs[5]
    grad_colors = grad_colors if ctx.with_colors else None
    gradients = torch.ops.open_eg3d.decode_points_backward(
        grad_densities,
        grad_colors,
        *ctx.saved_tensors,
        *ctx.settings,
        needs_planes,
        needs_weights,
        needs_points,
    )
    return (
        *(g if needed else None for g, needed in zip(gradients, needs[:6], strict=True)),
        None,
        None,
        None,
        None,
    )


@library.on_load
def _register() -> None:
    library.register("decode_points", _fake, _backward, _setup_context)
    library.register("decode_points_backward", _fake_backward, refuse_second_derivatives)


# --------------------------------------------------------------------------------------------------
# Self-check


def random_scene(dtype: torch.dtype = torch.float32) -> tuple[Tensor, DecoderWeights]:
    """Small planes (2, 3, 8, 16, 16), channels-last, and a decoder of 12 hidden units and 5
    colours, from a fixed seed.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    planes = normal(2, 3, 16, 16, 8).permute(0, 1, 4, 2, 3)
    return planes, DecoderWeights(normal(12, 8), normal(12), normal(6, 12) / 3, normal(6))


def plain_decode(
    planes: Tensor, decoder: DecoderWeights, points: Tensor, box_warp: float
) -> tuple[Tensor, Tensor]:
    """The operator's formula in plain PyTorch, corrected axes, gain 1."""
    q = points * (2 / box_warp)
    looked_up = [
        F.grid_sample(planes[:, p], q[:, None, :, axes], align_corners=False)
        for p, axes in enumerate(([0, 1], [0, 2], [2, 1]))
    ]
    features = torch.stack(looked_up).mean(dim=0)[:, :, 0].transpose(1, 2)
    x = F.linear(F.softplus(F.linear(features, decoder.w0, decoder.b0)), decoder.w1, decoder.b1)
    return x[..., :1], torch.sigmoid(x[..., 1:]) * 1.002 - 0.001


def self_checks(device: torch.device = library.CPU) -> Iterator[library.SelfCheck]:
    """Values and gradients of both against each other."""
    planes, decoder = random_scene()
    points = torch.rand(2, 100, 3, generator=torch.Generator().manual_seed(1)) * 1.4 - 0.7
    inputs = [value.requires_grad_() for value in (planes, *decoder, points)]
    moved = DecoderWeights(*(weight.to(device) for weight in decoder))
    compiled = decode_points(planes.to(device), moved, points.to(device), box_warp=1.2)
    plain = plain_decode(planes, decoder, points, 1.2)
    for name, result, expected in zip(("densities", "colours"), compiled, plain, strict=True):
        yield library.SelfCheck(f"decode_points, {name}", result.detach(), expected.detach(), 1e-5)
    results, expectations = (
        torch.autograd.grad(torch.stack([o.square().sum() for o in outputs]).sum(), inputs)
        for outputs in (compiled, plain)
    )
    for name, result, expected in zip(
        ("planes", *DecoderWeights._fields, "points"), results, expectations, strict=True
    ):
        yield library.SelfCheck(f"decode_points, gradient of {name}", result, expected, 1e-4)
