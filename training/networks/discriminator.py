"""The dual discriminator: final picture and raw rendering, conditioned on the camera (EG3D, section
3.4; Karras et al. 2020).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dnnlib.tables import look_up
from torch_utils.sample_random import randn
from training.cameras import LABEL_SIZE
from training.config.settings import ModelConfig
from training.networks.arguments import check_labels, check_tensor
from training.networks.layers import Conv2d, FullyConnected, camera_condition, resize_image
from training.networks.stylegan2 import MappingNetwork, block_resolutions, channels_at

LAST_RESOLUTION = 4
RESIDUAL_GAIN = math.sqrt(0.5)


def to_block_format(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` as a block's convolutions take it: channels-last in low precision, contiguous in fp32.

    In fp32 the double backward of R1 is faster on contiguous tensors, and its bias gradients, which
    are differences of nearly equal numbers, then agree with the released models' to 1e-5 instead of
    1e-3.
    """
    return x.to(
        dtype=dtype,
        memory_format=torch.contiguous_format if dtype == torch.float32 else torch.channels_last,
    )


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the resolution: (N, in_channels, H, W) -> (N, out_channels, H/2,
    W/2).

    `img_channels` > 0 makes the first block, which starts from the picture.
    """

    def __init__(
        self, in_channels: int, out_channels: int, img_channels: int, conv_clamp: float | None
    ) -> None:
        super().__init__()
        self.conv_dtype = torch.float32
        if img_channels:
            self.fromrgb = Conv2d(img_channels, in_channels, 1, conv_clamp=conv_clamp)
        self.has_fromrgb = img_channels > 0
        self.conv0 = Conv2d(in_channels, in_channels, 3, conv_clamp=conv_clamp)
        self.conv1 = Conv2d(in_channels, out_channels, 3, down=2, conv_clamp=conv_clamp)
        self.skip = Conv2d(in_channels, out_channels, 1, bias=False, activation="linear", down=2)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block; output in its convolution dtype."""
        x = to_block_format(x, self.conv_dtype)
        if self.has_fromrgb:
            x = self.fromrgb(x)
        shortcut = self.skip(x, gain=RESIDUAL_GAIN)
        return shortcut + self.conv1(self.conv0(x), gain=RESIDUAL_GAIN)


def append_minibatch_std(x: Tensor, group_size: int, batches: int = 1) -> Tensor:
    """Append the mean standard deviation within groups of samples as one more channel (Karras et
    al. 2018, section 3).

    Args:
        x: (batches * N, C, H, W). With G = min(group_size, N), a group is the samples n, n + N/G, n
            + 2N/G, ... of a batch.
        batches: How many batches `x` holds, one after the other; their statistics are apart.

    Raises:
        ValueError: if the group size does not divide the batch.
    """
    batch, (channels, height, width) = len(x) // batches, x.shape[1:]
    group = min(group_size, batch)
    if batch % group:
        raise ValueError(
            f"minibatch standard deviation: a batch of {batch} does not divide into groups of"
            f" {group}"
        )
    groups = x.reshape(batches, group, batch // group, channels, height, width)
    variance = (groups - groups.mean(dim=1, keepdim=True)).square().mean(dim=1)
    deviation = (variance + 1e-8).sqrt().mean(dim=(2, 3, 4))
    return torch.cat(
        [x, deviation.repeat(1, group).reshape(-1, 1, 1, 1).expand(-1, 1, height, width)], dim=1
    )


class DiscriminatorEpilogue(nn.Module):
    """Features at 4x4 to a vector: (N, channels, 4, 4) -> (N, cmap_dim)."""

    def __init__(
        self, channels: int, cmap_dim: int, mbstd_group_size: int, conv_clamp: float | None
    ) -> None:
        super().__init__()
        self.mbstd_group_size = mbstd_group_size
        self.conv = Conv2d(channels + 1, channels, 3, conv_clamp=conv_clamp)
        self.fc = FullyConnected(channels * LAST_RESOLUTION**2, channels, activation="lrelu")
        self.out = FullyConnected(channels, cmap_dim)

    def forward(self, x: Tensor, batches: int) -> Tensor:
        """Run the head in fp32."""
        x = append_minibatch_std(to_block_format(x, torch.float32), self.mbstd_group_size, batches)
        return self.out(self.fc(self.conv(x).flatten(1)))


class Discriminator(nn.Module):
    """Scores pairs of final picture and raw rendering: higher = more real."""

    judges_raw = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = copy.deepcopy(config)
        options = self.config.discriminator
        self.c_noise = options.c_noise
        self.channels = 4 if config.rendering.alpha == "judge" else 3
        self.cmap_dim = channels_at(LAST_RESOLUTION, options.channel_base, options.channel_max)
        self.resolutions = block_resolutions(config.resolution)[:0:-1]
        img_channels = (1 + self.judges_raw) * self.channels
        for index, size in enumerate(self.resolutions):
            channels, next_channels = (
                channels_at(r, options.channel_base, options.channel_max) for r in (size, size // 2)
            )
            self.add_module(
                f"b{size}",
                DiscriminatorBlock(
                    channels, next_channels, 0 if index else img_channels, options.conv_clamp
                ),
            )
        self.mapping = MappingNetwork(
            0,
            LABEL_SIZE,
            self.cmap_dim,
            num_ws=None,
            num_layers=options.mapping_layers,
            lr_multiplier=options.mapping_lr_multiplier,
        )
        channels_4 = channels_at(LAST_RESOLUTION, options.channel_base, options.channel_max)
        self.b4 = DiscriminatorEpilogue(
            channels_4, self.cmap_dim, options.mbstd_group_size, options.conv_clamp
        )

    def forward(
        self,
        image: Tensor,
        image_raw: Tensor,
        c: Tensor,
        batches: int = 1,
        c_std: Tensor | None = None,
    ) -> Tensor:
        """Logits (N, 1).

        Args:
            image: (N, 3, resolution, resolution); if it judges alpha (N, 4, ...).
            image_raw: (N, 3, r, r) or (N, 4, r, r), resized to the resolution of `image`.
            c: (N, 25) camera labels.
            batches: The N samples are so many batches, one after the other, which know nothing of
                each other: faster than in turn.
            c_std: (batches, 1, 25) standard deviation of c over the batches that these samples
                are a part of; None = of c itself.

        Raises:
            ValueError: if the group size of the minibatch statistics does not divide a batch.
            UserError: for pictures or labels of another shape.
        """
        resolution = self.config.resolution
        check_tensor("image", image, "N", self.channels, resolution, resolution)
        check_tensor("image_raw", image_raw, "N", self.channels, "r", "r")
        check_labels(c)
        x = image
        if self.judges_raw:
            x = torch.cat([image, resize_image(image_raw, image.shape[-1])], dim=1)
        for size in self.resolutions:
            x = self.get_submodule(f"b{size}")(x)
        x = self.b4(x, batches)
        if self.c_noise > 0:
            parts = c.unflatten(0, (batches, -1))
            std = (
                parts.std(dim=1, keepdim=True, correction=min(1, parts.shape[1] - 1))
                if c_std is None
                else c_std
            )
            c = c + randn(*c.shape, dtype=c.dtype, device=c.device) * (
                std * self.c_noise
            ).expand_as(parts).flatten(0, 1)
        told = self.mapping(None, camera_condition(c, self.config.rendering))
        return (x * told).sum(dim=1, keepdim=True) / math.sqrt(self.cmap_dim)

    def layers(self) -> list[Conv2d]:
        """Layers from the highest resolution down, in the order in which freeze-D counts them."""
        blocks = [self.get_submodule(f"b{size}") for size in self.resolutions]
        return [
            layer for block in blocks for layer in block.children() if isinstance(layer, Conv2d)
        ]

    def set_conv_dtype(self, dtype: torch.dtype, highest: int | None = None) -> None:
        """Run the convolutions of the `highest` resolutions (None = all) in `dtype`, the rest in
        fp32.
        """
        for index, size in enumerate(self.resolutions):
            block = self.get_submodule(f"b{size}")
            assert isinstance(block, DiscriminatorBlock)
            block.conv_dtype = dtype if highest is None or index < highest else torch.float32


class SingleDiscriminator(Discriminator):
    """Scores final pictures; the raw rendering is not looked at."""

    judges_raw = False


DISCRIMINATORS: dict[str, Callable[[ModelConfig], Any]] = {
    "dual": Discriminator,
    "single": SingleDiscriminator,
}
"""By name in `discriminator.kind`. A module has `forward`, `layers`, `set_conv_dtype` and `c_noise`
as `Discriminator`.
"""


def make_discriminator(config: ModelConfig) -> Any:
    """The discriminator that `config` names.

    Raises:
        UserError: for a name that is not in the table.
    """
    return look_up(DISCRIMINATORS, config.discriminator.kind, "discriminator.kind")(config)
