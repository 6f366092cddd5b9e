"""What follows from settings by arithmetic alone: sizes of blocks, the resolution of the moment."""

from __future__ import annotations

import math

from training.config.settings import Config, ModelConfig


def is_power_of_two(value: int) -> bool:
    """Whether a positive `value` is 1, 2, 4, ..."""
    return value & (value - 1) == 0


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


def fade(start: float, end: float, images: int, kimg: float) -> float:
    """Linear from `start` to `end` over the first `kimg` thousand images."""
    t = 1.0 if kimg <= 0 else min(images / (kimg * 1000), 1.0)
    return start + (end - start) * t


def cosine_fade(end: float, images: int, kimg: float) -> float:
    """From 1 to `end` along half a cosine over the first `kimg` thousand images (Huang et al. 2024,
    section 4.2).
    """
    return end + (1 - end) * (1 + math.cos(math.pi * fade(0, 1, images, kimg))) / 2


def rendering_resolution(config: Config, images: int) -> int:
    """Pixels of the neural rendering after `images` real images."""
    training, final = config.training, config.model.rendering.resolution
    initial = final if training.resolution_initial is None else training.resolution_initial
    return round(fade(initial, final, images, training.resolution_fade_kimg))
