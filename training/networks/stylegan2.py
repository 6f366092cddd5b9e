"""StyleGAN2 generator parts: mapping network and skip-architecture synthesis (Karras et al. 2020,
sections 2 and 4).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from torch_utils.ops.modulation import modulated_lrelu
from torch_utils.ops.upfirdn2d import setup_filter, upsample2d
from torch_utils.sample_random import randn
from training.networks.layers import (
    RESAMPLE_TAPS,
    FullyConnected,
    modulated_conv2d,
    modulated_projection,
    normalize_2nd_moment,
    to_conv_format,
)

NoiseMode = Literal["random", "const", "none"]
NOISE_MODES: tuple[str, ...] = get_args(NoiseMode)
W_AVG_DECAY = 0.998


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Feature channels of the layers at `resolution`."""
    return min(channel_base // resolution, channel_max)


def block_resolutions(resolution: int) -> list[int]:
    """4, 8, ..., `resolution`."""
    return [4 << step for step in range(resolution.bit_length() - 2)]


class MappingNetwork(nn.Module):
    """Latents and camera labels to intermediate latents: (N, z_dim), (N, c_dim) -> (N, num_ws,
    w_dim).

    `z_dim` 0 leaves out the latent, `c_dim` 0 the camera, `num_ws` None the broadcast over layers
    and the running mean (the discriminator's form).
    """

    w_avg: Tensor

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None,
        num_layers: int,
        lr_multiplier: float,
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.num_ws, self.num_layers = z_dim, c_dim, num_ws, num_layers
        if c_dim:
            self.embed = FullyConnected(c_dim, w_dim)
        for index in range(num_layers):
            features = z_dim + (w_dim if c_dim else 0) if index == 0 else w_dim
            self.add_module(
                f"fc{index}",
                FullyConnected(features, w_dim, activation="lrelu", lr_multiplier=lr_multiplier),
            )
        if num_ws is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: Tensor | None,
        c: Tensor | None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_w_avg: bool = False,
    ) -> Tensor:
        """Map to ws (N, num_ws, w_dim), or (N, w_dim) where num_ws is None.

        Args:
            z: (N, z_dim), or None where the network has no latent.
            c: (N, c_dim) camera labels, or None where the network has no camera.
            truncation_psi: Pull towards the mean latent, 1 = none, 0 = the mean.
            truncation_cutoff: Number of layers that are truncated; None = all.
            update_w_avg: Let this batch move the running mean.
        """
        latent = [] if z is None else [normalize_2nd_moment(z.float())]
        camera = [] if c is None else [normalize_2nd_moment(self.embed(c.float()))]
        x = torch.cat([*latent, *camera], dim=1)
        for index in range(self.num_layers):
            x = self.get_submodule(f"fc{index}")(x)
        if self.num_ws is None:
            return x
        if update_w_avg:
            self.w_avg.lerp_(x.detach().mean(dim=0), 1 - W_AVG_DECAY)
        return self.truncate(
            x[:, None].expand(-1, self.num_ws, -1), truncation_psi, truncation_cutoff
        )

    def truncate(self, ws: Tensor, truncation_psi: float, truncation_cutoff: int | None) -> Tensor:
        """Latents ws (N, num_ws, w_dim) pulled towards the mean latent; arguments as above."""
        if truncation_psi == 1:
            return ws
        layers = ws.shape[1]
        truncated = layers if truncation_cutoff is None else min(truncation_cutoff, layers)
        psi = torch.ones(layers, 1, device=ws.device)
        psi[:truncated] = truncation_psi
        return self.w_avg + psi * (ws - self.w_avg)


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU: (N, in_channels, H, W), (N, w_dim) -> (N,
    out_channels, H*up, W*up).
    """

    resample_filter: Tensor
    noise_const: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        up: int,
        use_noise: bool,
        conv_clamp: float | None,
    ) -> None:
        super().__init__()
        self.up, self.use_noise, self.conv_clamp = up, use_noise, conv_clamp
        self.resolution = resolution
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("resample_filter", setup_filter(RESAMPLE_TAPS))
        if use_noise:
            self.noise_strength = nn.Parameter(torch.zeros([]))
            self.register_buffer("noise_const", torch.randn(resolution, resolution))

    def forward(self, x: Tensor, w: Tensor, noise_mode: NoiseMode) -> Tensor:
        """Apply the layer; output in the dtype of `x`."""
        x, factors = modulated_conv2d(
            x, self.weight, self.affine(w), up=self.up, resample_filter=self.resample_filter
        )
        return modulated_lrelu(
            x, factors, self._noise(x, noise_mode), self.bias, clamp=self.conv_clamp
        )

    def _noise(self, x: Tensor, noise_mode: NoiseMode) -> Tensor | None:
        if noise_mode not in NOISE_MODES:
            known = ", ".join(NOISE_MODES)
            raise ValueError(f"unknown noise_mode {noise_mode!r}; known are {known}")
        if not self.use_noise or noise_mode == "none":
            return None
        if noise_mode == "const":
            return (self.noise_const * self.noise_strength)[None, None]
        return randn(x.shape[0], 1, *x.shape[2:], device=x.device) * self.noise_strength


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to colours, without demodulation: (N, in_channels, H, W) -> (N,
    out_channels, H, W).
    """

    def __init__(
        self, in_channels: int, out_channels: int, w_dim: int, conv_clamp: float | None
    ) -> None:
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.weight_gain = 1 / math.sqrt(in_channels)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Apply the layer; output in the dtype of `x`."""
        x = modulated_projection(
            x, self.weight[:, :, 0, 0], self.affine(w) * self.weight_gain, self.bias
        )
        return x if self.conv_clamp is None else x.clamp(-self.conv_clamp, self.conv_clamp)


class SynthesisBlock(nn.Module):
    """Two synthesis layers and a colour output that is added to the upsampled sum of earlier ones.

    `in_channels` 0 makes the first block, which starts from a learned constant and has one layer.
    `up` 1 keeps the resolution.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        *,
        up: int = 2,
        use_noise: bool = True,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.up = up
        self.conv_dtype = torch.float32
        self.num_conv = 1 if in_channels == 0 else 2
        self.register_buffer("resample_filter", setup_filter(RESAMPLE_TAPS))
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(
                in_channels, out_channels, w_dim, resolution, up, use_noise, conv_clamp
            )
        self.conv1 = SynthesisLayer(
            out_channels, out_channels, w_dim, resolution, 1, use_noise, conv_clamp
        )
        self.torgb = ToRGB(out_channels, img_channels, w_dim, conv_clamp)

    def forward(
        self, x: Tensor | None, img: Tensor | None, ws: Tensor, noise_mode: NoiseMode
    ) -> tuple[Tensor, Tensor]:
        """Run the block.

        Args:
            x: (N, in_channels, H, W) features, None in the first block.
            img: (N, img_channels, H, W) colours so far, None in the first block.
            ws: (N, num_conv + 1, w_dim) latents of the layers and of the colour output.

        Returns:
            Features in the block's convolution dtype and the fp32 sum of colours, both at the
            block's resolution.
        """
        latents = iter(ws.unbind(dim=1))
        if x is None:
            x = to_conv_format(self.const.expand(ws.shape[0], -1, -1, -1), self.conv_dtype)
        else:
            x = self.conv0(to_conv_format(x, self.conv_dtype), next(latents), noise_mode)
        x = self.conv1(x, next(latents), noise_mode)
        color = self.torgb(x, next(latents)).float()
        if img is not None:
            color = color + (upsample2d(img, self.resample_filter) if self.up == 2 else img)
        return x, color


class SynthesisNetwork(nn.Module):
    """StyleGAN2 synthesis with skip connections: ws (N, num_ws, w_dim) -> (N, img_channels,
    resolution, resolution).
    """

    def __init__(
        self,
        w_dim: int,
        resolution: int,
        img_channels: int,
        channel_base: int,
        channel_max: int,
        use_noise: bool = True,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.resolutions = block_resolutions(resolution)
        self.num_ws = 2 * len(self.resolutions)
        in_channels = 0
        for size in self.resolutions:
            out_channels = channels_at(size, channel_base, channel_max)
            block = SynthesisBlock(
                in_channels,
                out_channels,
                w_dim,
                size,
                img_channels,
                use_noise=use_noise,
                conv_clamp=conv_clamp,
            )
            self.add_module(f"b{size}", block)
            in_channels = out_channels

    def forward(self, ws: Tensor, noise_mode: NoiseMode) -> Tensor:
        """Sum of the blocks' colours; a block's colour output shares the latent of the next block's
        first layer.
        """
        x: Tensor | None = None
        img: Tensor | None = None
        start = 0
        for size in self.resolutions:
            block = self.get_submodule(f"b{size}")
            assert isinstance(block, SynthesisBlock)
            x, img = block(x, img, ws[:, start : start + block.num_conv + 1], noise_mode)
            start += block.num_conv
        assert img is not None
        return img
