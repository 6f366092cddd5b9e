"""What a modulated convolution does besides convolving (Karras et al. 2020, section 2.2), each step
in one pass over memory.

A sample's style scales the channels that enter the convolution; demodulation scales the channels
that leave it, where noise, bias and leaky ReLU follow. The compiled operators work on channels-last
images; gradients of their gradients go through the references.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torch_utils.ops import library
from torch_utils.ops.bias_act import bias_act_reference


def scale_channels(
    x: Tensor,  # (N, C, H, W)
    scale: Tensor,  # (N, C)
) -> Tensor:
    """x * scale, one factor per channel of each sample; (N, C, H, W) in the dtype of `x`."""
    if library.use_kernels(x) and _is_channels_last(x):
        y: Tensor = torch.ops.open_eg3d.scale_channels(x, scale)
        return y
    return scale_channels_reference(x, scale)


def scale_channels_reference(x: Tensor, scale: Tensor) -> Tensor:
    """`scale_channels` in plain PyTorch."""
    return x * scale.to(x.dtype)[:, :, None, None]


def modulated_lrelu(
    x: Tensor,  # (N, C, H, W)
    scale: Tensor | None = None,  # (N, C)
    noise: Tensor | None = None,  # (N or 1, 1, H, W)
    bias: Tensor | None = None,  # (C,)
    slope: float = 0.2,
    gain: float = math.sqrt(2),
    clamp: float | None = None,
) -> Tensor:
    """clamp(gain * lrelu(x * scale + noise + bias)).

    Args:
        x: What a convolution returns.
        scale: Demodulation, one factor per channel of each sample; None = 1.
        noise: One value per pixel, either for each sample or the same for all; None = 0.
        bias: One value per channel; None = 0.
        slope: Of leaky ReLU below zero.
        gain: Factor after the activation.
        clamp: Bound on the magnitude of the result, or None.

    Returns:
        (N, C, H, W) in the dtype of `x`.
    """
    if library.use_kernels(x) and _is_channels_last(x):
        y: Tensor = torch.ops.open_eg3d.modulated_lrelu(x, scale, noise, bias, slope, gain, clamp)
        return y
    return modulated_lrelu_reference(x, scale, noise, bias, slope, gain, clamp)


def modulated_lrelu_reference(
    x: Tensor,
    scale: Tensor | None,
    noise: Tensor | None,
    bias: Tensor | None,
    slope: float,
    gain: float,
    clamp: float | None,
) -> Tensor:
    """`modulated_lrelu` in plain PyTorch."""
    if scale is not None:
        x = scale_channels_reference(x, scale)
    if noise is not None:
        x = x + noise.to(x.dtype)
    return bias_act_reference(x, bias, 1, "lrelu", slope, gain, clamp)


def self_checks(device: torch.device = library.CPU) -> Iterator[library.SelfCheck]:
    """Compiled operators beside their references, forward and backward."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)):
        x = draw(3, 24, 5, 7).to(dtype=dtype, memory_format=torch.channels_last).requires_grad_()
        scale, noise, bias = draw(3, 24), draw(3, 1, 5, 7), draw(24)
        moved, style = x.to(device), scale.to(device)
        y, expected = (
            modulated_lrelu(moved, style, noise.to(device), bias.to(device)),
            modulated_lrelu_reference(x, scale, noise, bias, 0.2, math.sqrt(2), None),
        )
        yield library.SelfCheck(f"modulated_lrelu {dtype}", y, expected, tolerance)
        first, second = (
            torch.autograd.grad(value.float().square().sum(), x)[0] for value in (y, expected)
        )
        yield library.SelfCheck(f"modulated_lrelu {dtype} gradient", first, second, 2 * tolerance)
        first, second = scale_channels(moved, style), scale_channels_reference(x, scale)
        yield library.SelfCheck(f"scale_channels {dtype}", first, second, tolerance)


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _save_lrelu(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:4])
    ctx.numbers = inputs[4:]


def _lrelu_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    operands = ctx.saved_tensors
    needed = ctx.needs_input_grad[:4]
    if torch.is_grad_enabled():
        return (
            *_differentiable_gradients(
                modulated_lrelu_reference, operands, ctx.numbers, needed, grad
            ),
            None,
            None,
            None,
        )
    results = torch.ops.open_eg3d.modulated_lrelu_backward(grad, *operands, *ctx.numbers)
    matched = [
        result.to(operand.dtype) if need else None
        for result, operand, need in zip(results, operands, needed, strict=True)
    ]
    return *matched, None, None, None


def _save_scale(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _scale_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, scale = ctx.saved_tensors
    if torch.is_grad_enabled():
        return _differentiable_gradients(
            scale_channels_reference, (x, scale), (), ctx.needs_input_grad, grad
        )
    grad_x, grad_scale = torch.ops.open_eg3d.scale_channels_backward(grad, x, scale)
    return grad_x, grad_scale.to(scale.dtype)


def _differentiable_gradients(
    function: Any, operands: Any, numbers: Any, needed: Any, grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again, through the reference."""
    wanted = [operand for operand, need in zip(operands, needed, strict=True) if need]
    gradients = iter(
        torch.autograd.grad(function(*operands, *numbers), wanted, grad, create_graph=True)
    )
    return tuple(next(gradients) if need else None for need in needed)


@library.on_load
def _register() -> None:
    @torch.library.register_fake("open_eg3d::modulated_lrelu")
    def _(x: Tensor, *_operands: Any) -> Tensor:
        return torch.empty_like(x, memory_format=torch.channels_last)

    @torch.library.register_fake("open_eg3d::modulated_lrelu_backward")
    def _(
        _grad: Tensor, x: Tensor, _scale: Any, noise: Any, _bias: Any, *_numbers: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch, channels = x.shape[:2]
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        grad_noise = x.new_empty(noise.shape if noise is not None else (0,), dtype=wide)
        sums = x.new_empty(batch, channels, dtype=wide), x.new_empty(channels, dtype=wide)
        return torch.empty_like(x, memory_format=torch.channels_last), sums[0], grad_noise, sums[1]

    @torch.library.register_fake("open_eg3d::scale_channels")
    def _(x: Tensor, scale: Tensor) -> Tensor:  # noqa: ARG001
        return torch.empty_like(x, memory_format=torch.channels_last)

    @torch.library.register_fake("open_eg3d::scale_channels_backward")
    def _(grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        return torch.empty_like(x, memory_format=torch.channels_last), x.new_empty(
            x.shape[:2], dtype=wide
        )

    torch.library.register_autograd(
        "open_eg3d::modulated_lrelu", _lrelu_backward, setup_context=_save_lrelu
    )
    torch.library.register_autograd(
        "open_eg3d::scale_channels", _scale_backward, setup_context=_save_scale
    )
