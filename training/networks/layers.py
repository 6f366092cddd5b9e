"""Layers that generator and discriminator share (Karras et al. 2018-2020).

Convolutions run in the dtype and memory format of their input.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_utils.ops.bias_act import ActivationName, bias_act
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d

RESAMPLE_TAPS = (1, 3, 3, 1)


def normalize_2nd_moment(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Scale each row of (N, C) to a mean square of one."""
    return x * (x.square().mean(dim=1, keepdim=True) + eps).rsqrt()


def resize_image(x: Tensor, size: int, antialias: bool = True) -> Tensor:
    """Bilinear resize of (N, C, H, W) to (N, C, size, size), with a low-pass filter where it shrinks if `antialias`."""
    if x.shape[-2:] == (size, size):
        return x
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False, antialias=antialias)


def to_conv_format(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in the memory format and dtype in which convolutions are fast."""
    return x.to(dtype=dtype, memory_format=torch.channels_last)


class FullyConnected(nn.Module):
    """Linear layer with equalised learning rate: (N, in_features) -> (N, out_features).

    The stored weight has variance 1/lr_multiplier^2 and is used times lr_multiplier/sqrt(in_features); the bias times lr_multiplier.
    """

    def __init__(
        self, in_features: int, out_features: int, activation: ActivationName = "linear", lr_multiplier: float = 1.0, bias_init: float = 0.0
    ) -> None:
        super().__init__()
        self.activation: ActivationName = activation
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / lr_multiplier))
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        y = F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)
        return bias_act(y, act=self.activation)


class Conv2d(nn.Module):
    """Plain convolution with equalised learning rate, optionally followed by a 2x reduction; bias, activation, clamp.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, H/down, W/down).
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        bias: bool = True,
        activation: ActivationName = "lrelu",
        down: int = 1,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.activation: ActivationName = activation
        self.down = down
        self.conv_clamp = conv_clamp
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.register_buffer("resample_filter", setup_filter(RESAMPLE_TAPS))

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """Apply the layer; `gain` scales the output and the clamp."""
        weight = (self.weight * self.weight_gain).to(x.dtype)
        kernel_size = weight.shape[-1]
        if self.down == 1:
            x = F.conv2d(x, weight, padding=kernel_size // 2)
        elif kernel_size == 1:
            x = F.conv2d(upfirdn2d(x, self.resample_filter, down=self.down, padding=1), weight)
        else:
            x = F.conv2d(upfirdn2d(x, self.resample_filter, padding=2), weight, stride=self.down)
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        if self.activation == "linear":
            return bias_act(x, self.bias, gain=gain, clamp=clamp)
        return bias_act(x, self.bias, act=self.activation, gain=math.sqrt(2) * gain, clamp=clamp)


def modulated_conv2d(
    x: Tensor,  # (N, I, H, W)
    weight: Tensor,  # (O, I, k, k)
    styles: Tensor,  # (N, I)
    *,
    demodulate: bool = True,
    up: int = 1,
    resample_filter: Tensor | None = None,  # needed for up = 2
) -> Tensor:
    """Convolution whose weights are scaled by each sample's style and, if asked, normalised per output filter (StyleGAN2, section 2.2).

    Scaling inputs and outputs instead of weights is the same sum in another order, keeps one convolution for the whole batch,
    and lets it run in the dtype and memory format of `x`. In fp16, weights and styles are first scaled to a largest magnitude
    of one, which demodulation cancels, so that nothing overflows.

    Returns:
        (N, O, H*up, W*up), dtype of `x`.
    """
    if x.dtype == torch.float16 and demodulate:
        weight = weight / (weight.abs().amax(dim=(1, 2, 3), keepdim=True) * math.sqrt(weight[0].numel()))
        styles = styles / styles.abs().amax(dim=1, keepdim=True)
    x = x * styles.to(x.dtype)[:, :, None, None]
    kernel = weight.to(x.dtype)
    if up == 1:
        x = F.conv2d(x, kernel, padding=weight.shape[-1] // 2)
    else:
        assert resample_filter is not None, "upsampling needs a filter"
        x = F.conv_transpose2d(x, kernel.transpose(0, 1), stride=up)
        x = upfirdn2d(x, resample_filter, padding=1, gain=up**2)
    if demodulate:
        energy = styles.square() @ weight.square().sum(dim=(2, 3)).t()
        x = x * (energy + 1e-8).rsqrt().to(x.dtype)[:, :, None, None]
    return x
