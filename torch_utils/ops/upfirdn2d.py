"""Zero-insertion upsampling, FIR filtering and decimation of images (Karras et al. 2018, 2020; Oppenheim & Schafer, chapter 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

IntPair = int | Sequence[int]

WIDEST_HALF_KERNEL = 14  # taps


def setup_filter(taps: Sequence[float] | Tensor, normalize: bool = True, separable: bool = False) -> Tensor:
    """FIR filter from `taps`: a vector stays one if `separable`, else becomes its outer product with itself.

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
        up, down: Factor, or (x, y) factors.
        padding: Zeros around the upsampled image: one number, (x, y) or (x0, x1, y0, y1); negative numbers crop.
        flip_filter: False = convolution, True = correlation.

    Returns:
        (N, C, (H*up_y + y0 + y1 - h) // down_y + 1, the same for W), dtype of `x`.

    Raises:
        ValueError: if the filter does not fit into the padded image or `padding` has another length.
    """
    up_x, up_y = _pair(up)
    down_x, down_y = _pair(down)
    filters = _filter_passes(filter, gain, flip_filter, x)
    x = _insert_zeros(x, up_x, up_y)
    x = F.pad(x, _four_paddings(padding))
    if x.shape[2] < max(f.shape[0] for f in filters) or x.shape[3] < max(f.shape[1] for f in filters):
        raise ValueError(f"filter of {tuple(filters[-1].shape)} taps does not fit into the padded image of {tuple(x.shape[2:])} pixels")
    if len(filters) == 2:
        row, column = filters
        return _depthwise(_depthwise(x, row, (1, down_x)), column, (down_y, 1))
    return _depthwise(x, filters[0], (down_y, down_x))


def filter2d(x: Tensor, filter: Tensor) -> Tensor:
    """Convolve (N, C, H, W) with `filter`, (h, w) or separable (k,), zeros outside, same size."""
    height, width = filter.shape[0], filter.shape[-1]
    return upfirdn2d(x, filter, padding=(width // 2, (width - 1) // 2, height // 2, (height - 1) // 2))


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


def _four_paddings(padding: IntPair) -> tuple[int, int, int, int]:
    if isinstance(padding, int):
        return padding, padding, padding, padding
    if len(padding) == 2:
        x, y = padding
        return x, x, y, y
    if len(padding) != 4:
        raise ValueError(f"padding has {len(padding)} numbers; give 1, 2 (x, y) or 4 (x0, x1, y0, y1)")
    x0, x1, y0, y1 = padding
    return x0, x1, y0, y1


def _filter_passes(filter: Tensor | None, gain: float, flip_filter: bool, x: Tensor) -> list[Tensor]:
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

    Decimating afterwards computes more than it keeps, yet on CPUs it is several times faster than the backward pass of a strided
    depthwise convolution. Half-precision kernels of more than 14 taps are applied in fp32 there: oneDNN's depthwise convolution of
    channels-last images never returns for them (torch 2.14).
    """
    if kernel.numel() == 1:
        y = x * kernel[0, 0]
    else:
        is_unsafe = x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16) and max(kernel.shape) > WIDEST_HALF_KERNEL
        dtype = torch.float32 if is_unsafe else x.dtype
        weight = kernel.to(dtype).expand(x.shape[1], 1, *kernel.shape)
        y = F.conv2d(x.to(dtype), weight, groups=x.shape[1]).to(x.dtype)
    if stride == (1, 1):
        return y
    return y[:, :, :: stride[0], :: stride[1]].contiguous(memory_format=_layout(y))


def _layout(x: Tensor) -> torch.memory_format:
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_channels_last else torch.contiguous_format
