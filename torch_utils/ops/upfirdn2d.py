"""Zero-insertion upsampling, FIR filtering and decimation of images (Karras et al. 2018, 2020;
Oppenheim & Schafer, chapter 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils.ops import library

IntPair = int | Sequence[int]

WIDEST_HALF_KERNEL = 14  # taps


def setup_filter(
    taps: Sequence[float] | Tensor, normalize: bool = True, separable: bool = False
) -> Tensor:
    """FIR filter from `taps`: a vector stays one if `separable`, else becomes its outer product
    with itself.

    Args:
        taps: (k,) or (h, w).
        normalize: Scale to sum one.

    Returns:
        float32 (k,) or (h, w).
    """
    filter = torch.as_tensor(taps, dtype=torch.float32)
    if filter.ndim == 1 and not separable:
        filter = filter.outer(filter)
    return filter / filter.sum() if normalize else filter


def upfirdn2d(
    x: Tensor,  # (N, C, H, W)
    filter: Tensor | None,  # (h, w), (k,) = separable, None = identity
    up: IntPair = 1,
    down: IntPair = 1,
    padding: IntPair = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """Insert zeros, pad, convolve with `filter` times `gain`, keep every `down`-th pixel.

    Args:
        x: Images; any memory format, which the result keeps.
        up: Factor, or (x, y) factors.
        down: The same.
        padding: Zeros around the upsampled image: one number, (x, y) or (x0, x1, y0, y1); negative
            numbers crop.
        flip_filter: False = convolution, True = correlation.

    Returns:
        (N, C, (H*up_y + y0 + y1 - h) // down_y + 1, the same for W), dtype of `x`.

    Raises:
        ValueError: if the filter does not fit into the padded image or `padding` has another
            length.
    """
    if library.use_kernels(x) and not (filter is not None and filter.requires_grad):
        taps = torch.ones(1, device=x.device) if filter is None else filter.to(x.device)
        paddings = four_paddings(padding)
        check_fit(x.shape, taps, _pair(up), paddings)
        return torch.ops.open_eg3d.upfirdn2d(
            x, taps, _pair(up), _pair(down), paddings, flip_filter, gain
        )
    return upfirdn2d_reference(x, filter, up, down, padding, flip_filter, gain)


def upfirdn2d_reference(
    x: Tensor,
    filter: Tensor | None,
    up: IntPair = 1,
    down: IntPair = 1,
    padding: IntPair = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """`upfirdn2d` in plain PyTorch: its definition, for every device, and for filters that are to
    be learned.
    """
    up_x, up_y = _pair(up)
    down_x, down_y = _pair(down)
    paddings = four_paddings(padding)
    filters = _filter_passes(filter, gain, flip_filter, x)
    check_fit(x.shape, torch.ones(1) if filter is None else filter, (up_x, up_y), paddings)
    x = F.pad(_insert_zeros(x, up_x, up_y), paddings)
    if len(filters) == 2:
        row, column = filters
        return _depthwise(_depthwise(x, row, (1, down_x)), column, (down_y, 1))
    return _depthwise(x, filters[0], (down_y, down_x))


def filter2d(x: Tensor, filter: Tensor) -> Tensor:
    """Convolve (N, C, H, W) with `filter`, (h, w) or separable (k,), zeros outside, same size."""
    height, width = filter.shape[0], filter.shape[-1]
    return upfirdn2d(
        x, filter, padding=(width // 2, (width - 1) // 2, height // 2, (height - 1) // 2)
    )


def upsample2d(x: Tensor, filter: Tensor, factor: int = 2) -> Tensor:
    """Enlarge (N, C, H, W) by `factor`; centred, zeros outside, brightness kept."""
    taps = filter.shape[-1]
    padding = ((taps + factor - 1) // 2, (taps - factor) // 2) * 2
    return upfirdn2d(x, filter, up=factor, padding=padding, gain=factor**2)


def downsample2d(x: Tensor, filter: Tensor, factor: int = 2) -> Tensor:
    """Shrink (N, C, H, W) by `factor`; centred, zeros outside, brightness kept."""
    taps = filter.shape[-1]
    padding = ((taps - factor + 1) // 2, (taps - factor) // 2) * 2
    return upfirdn2d(x, filter, down=factor, padding=padding)


def _pair(value: IntPair) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    x, y = value
    return x, y


def four_paddings(padding: IntPair) -> tuple[int, int, int, int]:
    """(x0, x1, y0, y1) from one number, (x, y) or all four.

    Raises:
        ValueError: for another count of numbers.
    """
    if isinstance(padding, int):
        return padding, padding, padding, padding
    if len(padding) == 2:
        x, y = padding
        return x, x, y, y
    if len(padding) != 4:
        raise ValueError(
            f"padding has {len(padding)} numbers; give 1, 2 (x, y) or 4 (x0, x1, y0, y1)"
        )
    x0, x1, y0, y1 = padding
    return x0, x1, y0, y1


def check_fit(
    shape: Sequence[int], filter: Tensor, up: tuple[int, int], padding: tuple[int, int, int, int]
) -> tuple[int, int]:
    """Size (height, width) that images of `shape` (N, C, H, W) have after upsampling, padding and
    filtering.

    Raises:
        ValueError: if the filter does not fit.
    """
    height, width = (
        shape[2] * up[1] + padding[2] + padding[3],
        shape[3] * up[0] + padding[0] + padding[1],
    )
    if height < filter.shape[0] or width < filter.shape[-1]:
        raise ValueError(
            f"filter of {tuple(filter.shape)} taps does not fit into the padded image of"
            f" {(height, width)} pixels"
        )
    return height - filter.shape[0] + 1, width - filter.shape[-1] + 1


def result_format(x: Tensor) -> torch.memory_format:
    """Memory format of the operators' results: channels-last where the channels of a pixel of `x`
    are adjacent.
    """
    is_channels_last = x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()
    return torch.channels_last if is_channels_last else torch.contiguous_format


def _filter_passes(
    filter: Tensor | None, gain: float, flip_filter: bool, x: Tensor
) -> list[Tensor]:
    """The correlation kernels to apply in turn: one full one, or a row and a column."""
    if filter is None:
        filter = torch.ones(1, 1)
    filter = filter.to(device=x.device, dtype=x.dtype)
    if not flip_filter:
        filter = filter.flip(list(range(filter.ndim)))
    return [filter * gain] if filter.ndim == 2 else [filter[None, :], filter[:, None] * gain]


def _insert_zeros(x: Tensor, up_x: int, up_y: int) -> Tensor:
    if up_x == 1 and up_y == 1:
        return x
    batch, channels, height, width = x.shape
    size = (batch, channels, height * up_y, width * up_x)
    spread = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=_layout(x)).zero_()
    spread[:, :, ::up_y, ::up_x] = x
    return spread


def _depthwise(x: Tensor, kernel: Tensor, stride: tuple[int, int]) -> Tensor:
    """Correlate every channel with `kernel`, then keep every `stride`-th row and column.

    Decimating afterwards computes more than it keeps, yet on CPUs it is several times faster than
    the backward pass of a strided depthwise convolution. Half-precision kernels of more than 14
    taps are applied in fp32 there: oneDNN's depthwise convolution of channels-last images never
    returns for them (torch 2.14).
    """
    if kernel.numel() == 1:
        y = x * kernel[0, 0]
    else:
        is_unsafe = (
            x.device.type == "cpu"
            and x.dtype in (torch.float16, torch.bfloat16)
            and max(kernel.shape) > WIDEST_HALF_KERNEL
        )
        dtype = torch.float32 if is_unsafe else x.dtype
        weight = kernel.to(dtype).expand(x.shape[1], 1, *kernel.shape)
        y = F.conv2d(x.to(dtype), weight, groups=x.shape[1]).to(x.dtype)
    if stride == (1, 1):
        return y
    return y[:, :, :: stride[0], :: stride[1]].contiguous(memory_format=_layout(y))


def _layout(x: Tensor) -> torch.memory_format:
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_channels_last else torch.contiguous_format


# --------------------------------------------------------------------------------------------------
# The compiled operator


def _result_size(size: int, up: int, down: int, padding: int, taps: int) -> Any:
    """An int, symbolic where the sizes are."""
    return torch.sym_max(0, (size * up + padding - taps) // down + 1)


def _fake(
    x: Tensor,
    filter: Tensor,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    _flip_filter: bool,
    _gain: float,
) -> Tensor:
    """An empty result."""
    height = _result_size(x.shape[2], up[1], down[1], padding[2] + padding[3], filter.shape[0])
    width = _result_size(x.shape[3], up[0], down[0], padding[0] + padding[1], filter.shape[-1])
    size = (x.shape[0], x.shape[1], height, width)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=result_format(x))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, filter, ctx.up, ctx.down, padding, ctx.flip_filter, ctx.gain = inputs
    ctx.save_for_backward(filter)
    taps, sizes, results = (
        (filter.shape[-1], filter.shape[0]),
        (x.shape[3], x.shape[2]),
        (output.shape[3], output.shape[2]),
    )
    ctx.padding = []
    for axis in range(2):
        before = padding[2 * axis]
        after = (
            sizes[axis] * ctx.up[axis] - results[axis] * ctx.down[axis] + before - ctx.up[axis] + 1
        )
        ctx.padding += [taps[axis] - 1 - before, after]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The transposed map: factors exchanged, filter turned, and as much padding as brings back the
    size of the input.
    """
    (filter,) = ctx.saved_tensors
    grad_x = torch.ops.open_eg3d.upfirdn2d(
        grad, filter, ctx.down, ctx.up, ctx.padding, not ctx.flip_filter, ctx.gain
    )
    return grad_x, None, None, None, None, None, None


@library.on_load
def _register() -> None:
    library.register("upfirdn2d", _fake, _backward, _save_for_backward)


def self_checks(device: torch.device = library.CPU) -> Iterator[library.SelfCheck]:
    """Small cases through the compiled operator and through the reference."""
    filter = setup_filter([1, 3, 3, 1])
    cases: dict[str, dict[str, Any]] = {
        "2x up": {"filter": filter, "up": 2, "padding": (2, 1, 2, 1), "gain": 4.0},
        "2x down": {"filter": filter, "down": 2, "padding": 1},
        "full filter": {"filter": torch.arange(1.0, 10.0).view(3, 3) / 45, "padding": 1},
    }
    for dtype, tolerance in (
        (torch.float32, 1e-5),
        (torch.bfloat16, 0.02),
        (torch.float16, 0.003),
        (torch.float64, 1e-12),
    ):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = (
                torch.linspace(-1, 1, 2 * 20 * 9 * 7)
                .sin()
                .view(2, 20, 9, 7)
                .to(dtype, memory_format=layout)
            )
            for name, options in cases.items():
                with library.path(library.compiled_path(device)):
                    result = upfirdn2d(x.to(device), **options)
                title = (
                    f"upfirdn2d, {name}, {str(dtype).removeprefix('torch.')},"
                    f" {str(layout).removeprefix('torch.')}"
                )
                yield library.SelfCheck(title, result, upfirdn2d_reference(x, **options), tolerance)
