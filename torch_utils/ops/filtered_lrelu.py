"""Leaky ReLU applied at a higher sampling rate, so that it creates no aliases (Karras et al. 2021,
"Alias-free GANs", section 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_utils.ops import library
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.decode_points import SHARED_MEMORY
from torch_utils.ops.upfirdn2d import (
    check_fit,
    four_paddings,
    result_format,
    setup_filter,
    upfirdn2d,
)

LONGEST_ON_CUDA = 32  # taps; beyond, plain PyTorch, with its larger tiles, is faster
LANES = 16  # planes that share a word of signs, as in csrc/cpu/lanes.h


def filtered_lrelu(
    x: Tensor,  # (N, C, H, W)
    up_filter: Tensor | None,  # (h, w), (k,) = separable, None = identity
    down_filter: Tensor | None,
    bias: Tensor | None = None,  # (C,)
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    gain: float = math.sqrt(2),
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
) -> Tensor:
    """Add the bias, upsample by `up`, leaky ReLU times `gain`, clamp, downsample by `down`.

    Args:
        x: Input images.
        up_filter: FIR filter of sum one.
        down_filter: FIR filter of sum one.
        padding: Zeros around the upsampled image: one number, (x, y) or (x0, x1, y0, y1); negative
            numbers crop.

    Returns:
        (N, C, H', W') in the dtype and memory format of `x`, with the sizes that `upfirdn2d` gives
        for both filters in turn.

    Raises:
        ValueError: if a filter does not fit into the padded image or `padding` has another length.
    """
    options = (up, down, four_paddings(padding), gain, slope, clamp, flip_filter)
    filters = [filter for filter in (up_filter, down_filter) if filter is not None]
    if (
        library.use_kernels(x)
        and not any(filter.requires_grad for filter in filters)
        and not (x.is_cuda and not fits_gpu(x.dtype, up_filter, down_filter, up, down))
    ):
        return _filtered_lrelu_kernel(x, up_filter, down_filter, bias, options)
    return _filtered_lrelu_chain(x, up_filter, down_filter, bias, options)


def _filtered_lrelu_chain(
    x: Tensor,
    up_filter: Tensor | None,
    down_filter: Tensor | None,
    bias: Tensor | None,
    options: tuple[Any, ...],
) -> Tensor:
    """`filtered_lrelu` as a chain of operators: its definition, for every device, and for filters
    that are to be learned.
    """
    up, down, padding, gain, slope, clamp, flip_filter = options
    x = bias_act(x, bias)
    x = upfirdn2d(x, up_filter, up=up, padding=padding, gain=up**2, flip_filter=flip_filter)
    x = bias_act(x, act="lrelu", alpha=slope, gain=gain, clamp=clamp)
    return upfirdn2d(x, down_filter, down=down, flip_filter=flip_filter)


# --------------------------------------------------------------------------------------------------
# The compiled operator


def fits_gpu(
    dtype: torch.dtype, up_filter: Tensor | None, down_filter: Tensor | None, up: int, down: int
) -> bool:
    """Whether the CUDA kernels take such filters: what a pixel of the result, and one of the
    gradient, is made of fits into shared memory (csrc/cuda/filtered_lrelu.cu).
    """
    first, second = (
        (1,) if filter is None else tuple(filter.shape) for filter in (up_filter, down_filter)
    )
    number = 8 if dtype == torch.float64 else 4
    bytes = max(
        _pixel_bytes(first, up, second, down, number), _pixel_bytes(second, down, first, up, number)
    )
    return max(*first, *second) <= LONGEST_ON_CUDA and bytes <= SHARED_MEMORY


def _pixel_bytes(
    first: tuple[int, ...], up: int, second: tuple[int, ...], down: int, number: int
) -> int:
    """Bytes of shared memory for the smallest tile, of `number` bytes per number: the taps, and two
    buffers for fine pixels, their inputs and their results, with a word of signs per fine pixel.
    """
    fine = [max(second[side], down) for side in (0, -1)]
    input = [(size + first[side] + up - 2) // up for size, side in zip(fine, (0, -1), strict=True)]
    upsampled = input[0] * (fine[1] if len(first) == 1 else input[1])
    parts = (
        math.prod(first),
        math.prod(second),
        max(math.prod(input), math.prod(fine)),
        max(upsampled, fine[0]),
    )
    whole = sum(-(-part * number // 16) * 16 for part in parts)
    return whole + 4 * math.prod(fine)


def _filtered_lrelu_kernel(
    x: Tensor,
    up_filter: Tensor | None,
    down_filter: Tensor | None,
    bias: Tensor | None,
    options: tuple[Any, ...],
) -> Tensor:
    """Check sizes and call the operator, which keeps signs where a gradient may be asked for."""
    up, _, padding = options[:3]
    first, second = (
        torch.ones(1, device=x.device) if f is None else f.to(x.device)
        for f in (up_filter, down_filter)
    )
    fine = check_fit(x.shape, first, (up, up), padding)
    check_fit((*x.shape[:2], *fine), second, (1, 1), (0, 0, 0, 0))
    keep_signs = torch.is_grad_enabled() and (
        x.requires_grad or (bias is not None and bias.requires_grad)
    )
    return torch.ops.open_eg3d.filtered_lrelu(x, first, second, bias, *options, keep_signs)[0]


def _empty_like_images(x: Tensor, height: int, width: int) -> Tensor:
    return torch.empty(
        (x.shape[0], x.shape[1], height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=result_format(x),
    )


def _fake(
    x: Tensor,
    up_filter: Tensor,
    down_filter: Tensor,
    _bias: Tensor | None,
    up: int,
    down: int,
    padding: Sequence[int],
    _gain: float,
    _slope: float,
    _clamp: float | None,
    _flip_filter: bool,
    keep_signs: bool,
) -> tuple[Tensor, Tensor]:
    """Empty result and signs (blocks of planes, height, width of the fine grid)."""
    height = (
        x.shape[2] * up + padding[2] + padding[3] - up_filter.shape[0] + 1 - down_filter.shape[0]
    ) // down + 1
    width = (
        x.shape[3] * up + padding[0] + padding[1] - up_filter.shape[-1] + 1 - down_filter.shape[-1]
    ) // down + 1
    y = _empty_like_images(x, height, width)
    batch, channels = x.shape[:2]
    blocks = (
        batch * ((channels + LANES - 1) // LANES)
        if channels >= LANES
        else (batch * channels + LANES - 1) // LANES
    )
    fine = (height - 1) * down + down_filter.shape[0], (width - 1) * down + down_filter.shape[-1]
    return y, torch.empty(
        (blocks if keep_signs and y.numel() else 0, *fine), dtype=torch.int32, device=x.device
    )


def _fake_by_signs(x: Tensor, *args: Any) -> Tensor:
    size = args[7]
    return _empty_like_images(x, size[1], size[0])


def _transposed(
    ctx: Any, grad: Tensor, signs: Tensor, first_filter: Tensor, second_filter: Tensor, gain: float
) -> Tensor:
    """Gradient of both operators with respect to their images: the same two resamplings the other
    way round.
    """
    first_padding = [
        taps - 1 - before
        for taps, before in zip(_taps(second_filter), ctx.second_padding, strict=True)
    ]
    second_padding = [
        taps - 1 - before
        for taps, before in zip(_taps(first_filter), ctx.first_padding, strict=True)
    ]
    return torch.ops.open_eg3d.filtered_lrelu_by_signs(
        grad,
        signs,
        second_filter,
        first_filter,
        ctx.down,
        ctx.up,
        first_padding,
        second_padding,
        ctx.size,
        gain,
        ctx.slope,
        not ctx.flip,
    )


def _taps(filter: Tensor) -> tuple[int, int]:
    return filter.shape[-1], filter.shape[0]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    (
        x,
        up_filter,
        down_filter,
        bias,
        ctx.up,
        ctx.down,
        padding,
        gain,
        ctx.slope,
        _,
        ctx.flip,
        ctx.keep_signs,
    ) = inputs
    ctx.save_for_backward(up_filter, down_filter, output[1])
    ctx.gain = gain * ctx.up**2
    ctx.first_padding, ctx.second_padding = (padding[0], padding[2]), (0, 0)
    ctx.size = (x.shape[3], x.shape[2])
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor, _grad_signs: Tensor | None) -> tuple[Tensor | None, ...]:
    if not ctx.keep_signs:
        raise RuntimeError("filtered_lrelu was called without keep_signs and has no gradient")
    up_filter, down_filter, signs = ctx.saved_tensors
    grad_x = _transposed(ctx, grad, signs, up_filter, down_filter, ctx.gain)
    grad_bias = _sum_over_pixels(grad_x, ctx.bias_dtype) if ctx.needs_input_grad[3] else None
    return grad_x, None, None, grad_bias, *[None] * 8


def _sum_over_pixels(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, C, H, W) -> (C,). PyTorch sums bf16 in fp32 and rounds once, ten times faster than with a
    cast; fp16 sums would overflow.
    """
    return (
        x.sum((0, 2, 3)).to(dtype) if x.dtype == torch.bfloat16 else x.sum((0, 2, 3), dtype=dtype)
    )


def _save_for_backward_by_signs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    (
        x,
        signs,
        first_filter,
        second_filter,
        ctx.up,
        ctx.down,
        ctx.first_padding,
        ctx.second_padding,
        _,
        ctx.gain,
        ctx.slope,
        ctx.flip,
    ) = inputs
    ctx.save_for_backward(signs, first_filter, second_filter)
    ctx.size = (x.shape[3], x.shape[2])


def _backward_by_signs(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    signs, first_filter, second_filter = ctx.saved_tensors
    return _transposed(ctx, grad, signs, first_filter, second_filter, ctx.gain), *[None] * 11


@library.on_load
def _register() -> None:
    library.register("filtered_lrelu", _fake, _backward, _save_for_backward)
    library.register(
        "filtered_lrelu_by_signs", _fake_by_signs, _backward_by_signs, _save_for_backward_by_signs
    )


def self_checks(device: torch.device = library.CPU) -> Iterator[library.SelfCheck]:
    """Small cases through the compiled operator and through the reference: result and gradient."""
    up_filter, down_filter = (
        setup_filter([1, 4, 8, 9, 8, 4, 1], separable=True),
        setup_filter([1, 3, 3, 1]),
    )
    options: dict[str, Any] = {"up": 2, "down": 2, "padding": (5, 4, 5, 4), "clamp": 0.7}
    for dtype, tolerance in (
        (torch.float32, 1e-5),
        (torch.bfloat16, 0.03),
        (torch.float16, 0.005),
        (torch.float64, 1e-12),
    ):
        for layout in (torch.contiguous_format, torch.channels_last):
            values = torch.linspace(-40, 40, 2 * 20 * 9 * 7).sin().view(2, 20, 9, 7)
            x = values.to(dtype, memory_format=layout).requires_grad_()
            bias = torch.linspace(-0.5, 0.5, 20)
            with library.path(library.compiled_path(device)):
                moved, bias_there = x.to(device), bias.to(device)
                result = filtered_lrelu(moved, up_filter, down_filter, bias_there, **options)
                grad = torch.autograd.grad(result.sum(), x)[0]
            with library.path("reference"):
                expected = filtered_lrelu(x, up_filter, down_filter, bias, **options)
                expected_grad = torch.autograd.grad(expected.sum(), x)[0]
            title = (
                f"filtered_lrelu, {str(dtype).removeprefix('torch.')},"
                f" {str(layout).removeprefix('torch.')}"
            )
            yield library.SelfCheck(title, result.detach(), expected.detach(), tolerance)
            # there, rounding moves pixels across the kink at zero, and the gradient with them
            if dtype not in (torch.bfloat16, torch.float16):
                yield library.SelfCheck(f"{title}, gradient", grad, expected_grad, tolerance)
