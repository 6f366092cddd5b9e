"""Leaky ReLU applied at a higher sampling rate, so that it creates no aliases (Karras et al. 2021, "Alias-free GANs", section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.upfirdn2d import upfirdn2d


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
        up_filter, down_filter: FIR filters of sum one.
        padding: Zeros around the upsampled image: one number, (x, y) or (x0, x1, y0, y1); negative numbers crop.

    Returns:
        (N, C, H', W') in the dtype of `x`, with the sizes that `upfirdn2d` gives for both filters in turn.
    """
    x = bias_act(x, bias)
    x = upfirdn2d(x, up_filter, up=up, padding=padding, gain=up**2, flip_filter=flip_filter)
    x = bias_act(x, act="lrelu", alpha=slope, gain=gain, clamp=clamp)
    return upfirdn2d(x, down_filter, down=down, flip_filter=flip_filter)
