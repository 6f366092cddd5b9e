"""Alias-free super-resolution: StyleGAN3-T layers in the place of StyleGAN2 blocks (Karras et al.
2021, section 3 and appendix C).

A feature map stands for a continuous signal. Each 3x3 convolution is followed by a leaky ReLU on a
grid of twice the sampling rate, between two low-pass filters, so that the nonlinearity makes no
frequencies that the grid folds back. What the layers draw then moves with the picture and does not
stick to the pixels. Rates and frequencies are per side of the picture: samples and cycles.

Cutoffs. In the paper, cutoffs grow geometrically from 2 at the generator's first layer to half the
output's rate, stopbands from 2^2.1 to 2^0.3 times that. A super-resolution is the end of such a
generator, not a whole one: with a first cutoff of 2 it would wipe out the picture that it is given.
So the paper's geometric line is kept for a generator of the output's size, and the super-resolution
enters it where the cutoff is the Nyquist frequency of its input. From there every block ends at the
highest point of the line whose stopband its rate still represents, with its first layer half-way;
the last layer ends at the output's Nyquist frequency (critically sampled). No layer has a cutoff
below what the input carries.

Rates are those of the standard blocks, at least twice the input's: a first block that keeps its
resolution could only suppress aliases by cutting away content of its input, so here its doubling
comes first.

Borders. Each map reaches 10 samples beyond the picture. Nothing is known out there, so the input is
continued by its border pixels, which, unlike zeros, draw no frame around the picture.

Colour. The picture is the input's colours, interpolated by the same kind of filter, plus what the
layers synthesise: a linear interpolation moves with its input, and the content of the raw picture
is kept whatever the layers have learned so far.

Left out: the paper's running mean of activation magnitudes. Demodulation and the gain of the leaky
ReLU keep four to six layers near unit variance, as in the standard network, and there is no state
that a forward pass changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.modulation import scale_channels
from torch_utils.ops.upfirdn2d import upfirdn2d
from training.config.settings import ModelConfig
from training.config.sizes import plan_blocks
from training.networks.layers import FullyConnected, modulated_conv2d, resize_image, to_conv_format
from training.networks.stylegan2 import ToRGB

FIRST_CUTOFF, FIRST_STOPBAND = 2.0, 2.0**2.1
LAST_STOPBAND_RATIO = 2.0**0.3
TAPS_PER_SAMPLE = 6
OVERSAMPLING = 2
MARGIN = 10


@dataclass(frozen=True)
class Band:
    """Sampling and frequency content of a feature map."""

    rate: int  # samples a side of the picture
    size: int  # samples a side of the map, margins included
    cutoff: float  # cycles a side, -6 dB
    half_width: float  # cycles a side from the cutoff to the end of the transition band


@dataclass(frozen=True)
class FrequencyLine:
    """Cutoff and stopband along a generator of `resolution` pixels: geometric in the position, 0 =
    its first layer, 1 = its last.
    """

    resolution: int

    @property
    def last_cutoff(self) -> float:
        """Nyquist frequency of the output."""
        return self.resolution / 2

    @property
    def last_stopband(self) -> float:
        """Stopband that goes with `last_cutoff`."""
        return self.last_cutoff * LAST_STOPBAND_RATIO

    def band(self, position: float, rate: int, margin: int) -> Band:
        """Band at `position` on a grid of `rate`: the transition reaches to the stopband, further
        where the grid has room.
        """
        cutoff = FIRST_CUTOFF * (self.last_cutoff / FIRST_CUTOFF) ** position
        stopband = FIRST_STOPBAND * (self.last_stopband / FIRST_STOPBAND) ** position
        return Band(rate, rate + 2 * margin, cutoff, max(stopband, rate / 2) - cutoff)

    def position_of_cutoff(self, frequency: float) -> float:
        """Where the cutoff is `frequency`."""
        return math.log(frequency / FIRST_CUTOFF) / math.log(self.last_cutoff / FIRST_CUTOFF)

    def position_of_stopband(self, frequency: float) -> float:
        """Where the stopband is `frequency`."""
        return math.log(frequency / FIRST_STOPBAND) / math.log(self.last_stopband / FIRST_STOPBAND)


def plan_bands(input_resolution: int, sizes: list[int]) -> list[Band]:
    """Band of the input, then of each of the two layers of each block; `sizes` are the blocks'
    output resolutions.
    """
    line = FrequencyLine(sizes[-1])
    position = line.position_of_cutoff(input_resolution / 2)
    bands = [line.band(position, input_resolution, MARGIN)]
    for index, size in enumerate(sizes):
        is_last = index == len(sizes) - 1
        rate = max(size, min(2 * input_resolution, sizes[-1]))
        highest = max(position, line.position_of_stopband(rate / 2))
        end = 1.0 if is_last else highest
        bands.append(line.band(min((position + end) / 2, highest), rate, MARGIN))
        bands.append(line.band(end, rate, 0 if is_last else MARGIN))
        position = end
    return bands


def kaiser_beta(taps: int, width: float) -> float:
    """Shape of the Kaiser window for a transition band of `width`, in units of the Nyquist
    frequency (Kaiser 1974; appendix C).
    """
    attenuation = 2.285 * (taps - 1) * math.pi * width + 7.95
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation > 21:
        return 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    return 0.0


def design_lowpass(taps: int, cutoff: float, half_width: float, rate: int) -> Tensor:
    """Kaiser-windowed sinc (taps,) of sum one for a grid of `rate` samples; `cutoff` and
    `half_width` in cycles of the same length.
    """
    time = (np.arange(taps) - (taps - 1) / 2) / rate
    kernel = np.sinc(2 * cutoff * time) * np.kaiser(taps, kaiser_beta(taps, 4 * half_width / rate))
    return torch.as_tensor(kernel / kernel.sum(), dtype=torch.float32)


def resampling_filter(band: Band, fine_rate: int) -> Tensor:
    """Filter between a map of `band` and a grid of `fine_rate`, a multiple of its rate: six taps a
    sample of the map.
    """
    factor = fine_rate // band.rate
    return design_lowpass(
        TAPS_PER_SAMPLE * factor if factor > 1 else 1, band.cutoff, band.half_width, fine_rate
    )


def centered_padding(in_size: int, up: int, out_size: int, down: int, taps: int) -> tuple[int, int]:
    """Padding (before, after) of the upsampled map with which input and output have the same
    centre.

    Upsampling puts sample i at the first of the `up` fine samples that it covers, half of `up` - 1
    before its centre. Filters delay by half their length; `taps` is the sum of the two lengths less
    one.
    """
    slack = (out_size - 1) * down + taps - in_size * up
    return (slack + up - 1) // 2, (slack - up + 1) // 2


class AliasFreeLayer(nn.Module):
    """Modulated 3x3 convolution, bias, filtered leaky ReLU: (N, in_channels, h, h), (N, w_dim) ->
    (N, out_channels, H, H).

    `source` and `target` are the bands of input and output, h and H their sizes.
    """

    up_filter: Tensor
    down_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        source: Band,
        target: Band,
        conv_clamp: float | None,
    ) -> None:
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        fine_rate = OVERSAMPLING * max(source.rate, target.rate)
        self.up, self.down = fine_rate // source.rate, fine_rate // target.rate
        self.register_buffer("up_filter", resampling_filter(source, fine_rate))
        self.register_buffer("down_filter", resampling_filter(target, fine_rate))
        taps = len(self.up_filter) + len(self.down_filter) - 1
        self.padding = centered_padding(source.size, self.up, target.size, self.down, taps) * 2

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Apply the layer; output in the dtype of `x`."""
        x, factors = modulated_conv2d(x, self.weight, self.affine(w))
        if factors is not None:
            x = scale_channels(x, factors)
        return filtered_lrelu(
            x,
            self.up_filter,
            self.down_filter,
            self.bias,
            up=self.up,
            down=self.down,
            padding=self.padding,
            clamp=self.conv_clamp,
        )


class AliasFreeBlock(nn.Module):
    """Two layers with the same latent; `bands` are those of the input and of the two outputs."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        bands: list[Band],
        conv_clamp: float | None,
    ) -> None:
        super().__init__()
        self.conv0 = AliasFreeLayer(
            in_channels, out_channels, w_dim, bands[0], bands[1], conv_clamp
        )
        self.conv1 = AliasFreeLayer(
            out_channels, out_channels, w_dim, bands[1], bands[2], conv_clamp
        )

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(N, in_channels, h, h), (N, w_dim) -> (N, out_channels, H, H)."""
        return self.conv1(self.conv0(x, w), w)


class ColorInterpolation(nn.Module):
    """Low-pass interpolation of a map of band `source` to a picture: (N, C, h, h) -> (N, C,
    resolution, resolution).
    """

    filter: Tensor

    def __init__(self, source: Band, resolution: int) -> None:
        super().__init__()
        self.up = resolution // source.rate
        self.register_buffer("filter", resampling_filter(source, resolution))
        self.padding = centered_padding(source.size, self.up, resolution, 1, len(self.filter)) * 2

    def forward(self, x: Tensor) -> Tensor:
        """Interpolate."""
        return upfirdn2d(x, self.filter, up=self.up, padding=self.padding, gain=self.up**2)


class AliasFreeSuperResolution(nn.Module):
    """StyleGAN3-T layers that all use the last latent: (N, C, r, r) features -> (N, 3, resolution,
    resolution).

    Takes the place of `SuperResolution` where `superresolution.kind` is `alias_free`; same blocks,
    channels and resize of the input.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        options, w_dim = config.superresolution, config.generator.w_dim
        self.antialias = options.antialias
        self.conv_dtype = torch.float32
        self.input_resolution, sizes, channels = plan_blocks(config)
        self.num_blocks = len(sizes)
        bands = plan_bands(self.input_resolution, sizes)
        self.color = ColorInterpolation(bands[0], sizes[-1])
        in_channels = config.generator.plane_channels
        for index, out_channels in enumerate(channels):
            block = AliasFreeBlock(
                in_channels,
                out_channels,
                w_dim,
                bands[2 * index : 2 * index + 3],
                options.conv_clamp,
            )
            self.add_module(f"block{index}", block)
            in_channels = out_channels
        self.torgb = ToRGB(in_channels, 3, w_dim, options.conv_clamp)

    def forward(self, features: Tensor, ws: Tensor, _noise_mode: str = "none") -> Tensor:
        """Enlarge as `SuperResolution` does; the layers have no noise, whatever the mode."""
        x = resize_image(features, self.input_resolution, self.antialias)
        x = F.pad(x, [MARGIN] * 4, mode="replicate")
        color = self.color(x[:, :3])
        x = to_conv_format(x, self.conv_dtype)
        for index in range(self.num_blocks):
            x = self.get_submodule(f"block{index}")(x, ws[:, -1])
        return color + self.torgb(x, ws[:, -1]).float()

    def set_conv_dtype(self, dtype: torch.dtype) -> None:
        """Run the layers in `dtype`; the input's colours stay fp32."""
        self.conv_dtype = dtype
