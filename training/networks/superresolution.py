"""Super-resolution: feature image and raw colours to the final image (EG3D, section 3.3 and
supplement).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.config.settings import ModelConfig
from training.networks.layers import resize_image
from training.networks.stylegan2 import SynthesisBlock


def block_sizes(resolution: int, input_resolution: int | None = None) -> tuple[int, list[int]]:
    """Input resolution and the resolution of each block's output.

    Blocks double from min(128, resolution / 2) until `resolution`; there are never fewer than two,
    so where one doubling is enough the first block keeps its resolution.
    """
    first = input_resolution or min(128, resolution // 2)
    sizes: list[int] = []
    while (first << len(sizes)) < resolution:
        sizes.append(first << (len(sizes) + 1))
    return first, sizes if len(sizes) > 1 else [first, *sizes]


def block_channels(resolution: int, sizes: list[int]) -> tuple[int, ...]:
    """Published channels: 256, 128, 64 at 256, 512, 1024; the last two blocks of smaller networks
    have 128 and 64.
    """
    if resolution > 256:
        return tuple(65536 // size for size in sizes)
    return tuple(min(64 << (len(sizes) - 1 - index), 256) for index in range(len(sizes)))


def plan_blocks(config: ModelConfig) -> tuple[int, list[int], tuple[int, ...]]:
    """Input resolution, and the output resolution and the channels of each block.

    Raises:
        ValueError: if `superresolution.channels` has another number of entries than there are
            blocks.
    """
    options = config.superresolution
    input_resolution, sizes = block_sizes(config.resolution, options.input_resolution)
    channels = (
        block_channels(config.resolution, sizes) if options.channels is None else options.channels
    )
    if len(channels) != len(sizes):
        raise ValueError(
            f"superresolution.channels has {len(channels)} entries, but there are {len(sizes)}"
            f" blocks, at {sizes}"
        )
    return input_resolution, sizes, channels


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
