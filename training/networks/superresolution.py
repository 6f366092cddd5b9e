"""Super-resolution: feature image and raw colours to the final image (EG3D, section 3.3 and
supplement).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.config.settings import ModelConfig
from training.config.sizes import plan_blocks
from training.networks.layers import resize_image
from training.networks.stylegan2 import SynthesisBlock


class SuperResolution(nn.Module):
    """Two or three StyleGAN2 blocks that all use the last latent: (N, C, r, r) features -> (N, 3,
    resolution, resolution).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        options = config.superresolution
        self.antialias = options.antialias
        self.input_resolution, sizes, channels = plan_blocks(config)
        self.num_blocks = len(sizes)
        in_channels, in_size = config.generator.plane_channels, self.input_resolution
        for index, (size, out_channels) in enumerate(zip(sizes, channels, strict=True)):
            block = SynthesisBlock(
                in_channels,
                out_channels,
                config.generator.w_dim,
                size,
                img_channels=3,
                up=size // in_size,
                use_noise=options.use_noise,
                conv_clamp=options.conv_clamp,
            )
            self.add_module(f"block{index}", block)
            in_channels, in_size = out_channels, size

    def forward(self, features: Tensor, ws: Tensor, noise_mode: str) -> Tensor:
        """Enlarge.

        Args:
            features: (N, C, r, r) rendered features in [-1, 1], the first three are the colour.
            ws: (N, num_ws, w_dim).

        Returns:
            (N, 3, resolution, resolution), fp32.
        """
        x = resize_image(features, self.input_resolution, self.antialias)
        rgb = x[:, :3]
        latents = ws[:, -1:].repeat(1, 3, 1)
        for index in range(self.num_blocks):
            x, rgb = self.get_submodule(f"block{index}")(x, rgb, latents, noise_mode)
        return rgb

    def set_conv_dtype(self, dtype: torch.dtype) -> None:
        """Run the blocks' convolutions in `dtype`."""
        for index in range(self.num_blocks):
            block = self.get_submodule(f"block{index}")
            assert isinstance(block, SynthesisBlock)
            block.conv_dtype = dtype


class NoSuperResolution(nn.Module):
    """Hands the rendering on: what is seen is what is rendered, from every side the same."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.resolution = config.resolution

    def forward(self, features: Tensor, _ws: Tensor, _noise_mode: str) -> Tensor:
        """The colours of features (N, C, r, r), resized where they have other than the picture's
        pixels: (N, 3, resolution, resolution).
        """
        return resize_image(features[:, :3], self.resolution)

    def set_conv_dtype(self, dtype: torch.dtype) -> None:
        """Nothing is convolved."""
