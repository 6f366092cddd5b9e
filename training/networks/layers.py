"""Layers that generator and discriminator share (Karras et al. 2018-2020).

Convolutions run in the dtype and memory format of their input.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_utils import determinism
from torch_utils.ops.bias_act import ActivationName, bias_act
from torch_utils.ops.modulation import scale_channels
from torch_utils.ops.upfirdn2d import result_format, setup_filter, upfirdn2d
from training.cameras import scale_label
from training.config.settings import RenderingConfig

RESAMPLE_TAPS = (1, 3, 3, 1)


def normalize_2nd_moment(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Scale each row of (N, C) to a mean square of one."""
    return x * (x.square().mean(dim=1, keepdim=True) + eps).rsqrt()


def camera_condition(c: Tensor, rendering: RenderingConfig) -> Tensor:
    """Cameras (N, 25) as networks are conditioned on them: positions in the scene's unit."""
    return c if rendering.unit == 1 else scale_label(c, 1 / rendering.unit)


def resize_image(x: Tensor, size: int, antialias: bool = True) -> Tensor:
    """Bilinear resize of (N, C, H, W) to (N, C, size, size), with a low-pass filter where it
    shrinks if `antialias`.
    """
    if x.shape[-2:] == (size, size):
        return x
    if determinism.is_wanted(x):
        return determinism.resize(x, size, antialias)
    return F.interpolate(
        x, size=(size, size), mode="bilinear", align_corners=False, antialias=antialias
    )


def to_conv_format(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in the memory format and dtype in which convolutions are fast."""
    return x.to(dtype=dtype, memory_format=torch.channels_last)


def like_input(weight: Tensor, x: Tensor) -> Tensor:
    """`weight` in the dtype and memory format of the images `x`: a copy here saves two in the
    convolution and its backward pass.
    """
    return weight.to(dtype=x.dtype, memory_format=result_format(x))


class FullyConnected(nn.Module):
    """Linear layer with equalised learning rate: (N, in_features) -> (N, out_features).

    The stored weight has variance 1/lr_multiplier^2 and is used times
    lr_multiplier/sqrt(in_features); the bias times lr_multiplier.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: ActivationName = "linear",
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation: ActivationName = activation
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / lr_multiplier))
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        bias = self.bias if self.bias_gain == 1 else self.bias * self.bias_gain
        y = torch.addmm(bias, x.flatten(0, -2), self.weight.t(), alpha=self.weight_gain).unflatten(
            0, x.shape[:-1]
        )
        return bias_act(y, act=self.activation)


class Conv2d(nn.Module):
    """Plain convolution with equalised learning rate, optionally followed by a 2x reduction; bias,
    activation, clamp.

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
        weight = like_input(self.weight * self.weight_gain, x)
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
    up: int = 1,
    resample_filter: Tensor | None = None,  # needed for up = 2
) -> tuple[Tensor, Tensor | None]:
    """Convolution whose weights are scaled by each sample's style and normalised per output filter
    (StyleGAN2, section 2.2).

    Scaling the channels that enter and leave instead of the weights is the same sum in another
    order, keeps one convolution for the whole batch, and lets it run in the dtype and memory format
    of `x`. The scaling of what leaves is left to the caller, who has more to do in the same pass.
    One large picture alone is faster with scaled weights. In fp16, weights and styles are first
    scaled to a largest magnitude of one, which demodulation cancels, so that nothing overflows.

    Returns:
        The convolution, (N, O, H*up, W*up) in the dtype of `x`, and the factors (N, O) that its
        channels still need, None = none.
    """
    if x.dtype == torch.float16:
        weight = weight / (
            weight.abs().amax(dim=(1, 2, 3), keepdim=True) * math.sqrt(weight[0].numel())
        )
        styles = styles / styles.abs().amax(dim=1, keepdim=True)
    factors: Tensor | None = demodulation(weight, styles)
    if x.shape[0] == 1 and x[0, 0].numel() > weight[:, 0].numel():
        assert factors is not None
        weight, factors = weight * (factors[0, :, None] * styles)[..., None, None], None
    else:
        x = scale_channels(x, styles)
    if up == 1:
        return F.conv2d(x, like_input(weight, x), padding=weight.shape[-1] // 2), factors
    assert resample_filter is not None, "upsampling needs a filter"
    x = F.conv_transpose2d(x, like_input(weight.transpose(0, 1), x), stride=up)
    return upfirdn2d(x, resample_filter, padding=1, gain=up**2), factors


def demodulation(weight: Tensor, styles: Tensor) -> Tensor:
    """Factors (N, O) that bring the filters of `weight` (O, I, k, k), scaled by `styles` (N, I), to
    unit norm.
    """
    energy = weight.square().flatten(2).sum(dim=2)
    return (styles.square() @ energy.t() + 1e-8).rsqrt()


def modulated_projection(
    x: Tensor,  # (N, I, H, W), channels-last
    weight: Tensor,  # (O, I)
    styles: Tensor,  # (N, I)
    bias: Tensor,  # (O,)
) -> Tensor:
    """1x1 convolution with weights scaled by each sample's style, without demodulation: (N, O, H,
    W), channels-last.

    A product of matrices whose weights differ between samples, so that the picture itself is not
    scaled.
    """
    weights = (weight * styles[:, None]).to(x.dtype).transpose(1, 2)
    y = torch.baddbmm(bias.to(x.dtype), x.permute(0, 2, 3, 1).flatten(1, 2), weights)
    return y.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
