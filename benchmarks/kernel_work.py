"""What the CUDA kernels read, write and compute, from the tiles that their launches choose; the
tiles' sizes are read from the sources.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from torch_utils.ops import builder


@dataclass(frozen=True)
class KernelWork:
    """Of one launch: bytes of the tensors, bytes that blocks read and write (where tiles overlap
    more than once, mostly from caches), flops.
    """

    bytes: int
    moved: int
    flops: int


@functools.cache
def constant(source: str, pattern: str) -> int:
    """A number in csrc/cuda, as `pattern` (one group) finds it."""
    text = (builder.SOURCE_DIR / "cuda" / source).read_text()
    (found,) = set(re.findall(pattern, text))
    return int(found)


def inputs_for(outputs: int, up: int, down: int, taps: int) -> int:
    """As in fir_tile.h."""
    return ((outputs - 1) * down + taps + up - 1) // up


def shrunk(height: int, width: int, fits: Callable[[int, int], bool]) -> tuple[int, int]:
    """A tile, halved along its longer side until `fits(height, width)`."""
    while not fits(height, width) and (height > 4 or width > 4):
        height, width = (height // 2, width) if height >= width else (height, width // 2)
    return height, width


def upfirdn2d(
    samples: int, channels: int, size: int, result: int, *, up: int = 1, down: int = 1,
    taps: int = 4, itemsize: int = 4,
) -> KernelWork:  # fmt: skip
    """Of channels-last images by a filter that is no product."""
    lanes = constant("upfirdn2d.cu", r"kBlockChannels = (\d+)")
    good = constant("upfirdn2d.cu", r"kGoodBytes = (\d+) << 10") << 10

    def side(outputs: int) -> int:
        return inputs_for(outputs, up, down, taps)

    tile = r"choose_tiling<W>\(p, {}, kBlockChannels\)"
    height, width = shrunk(
        constant("upfirdn2d.cu", tile.format(r"(\d+), \d+")),
        constant("upfirdn2d.cu", tile.format(r"\d+, (\d+)")),
        lambda h, w: 4 * (taps**2 + side(h) * side(w) * lanes) <= good,
    )
    blocks = samples * math.ceil(channels / lanes)
    blocks *= math.ceil(result / height) * math.ceil(result / width)
    written = samples * channels * result**2
    return KernelWork(
        (samples * channels * size**2 + written) * itemsize,
        (blocks * side(height) * side(width) * lanes + written) * itemsize,
        2 * written * (taps // up) ** 2,
    )


def filtered_lrelu(
    samples: int, channels: int, size: int, *, taps: int = 12, itemsize: int = 2
) -> KernelWork:
    """Of channels-last images, twice up and down by filters that are products."""
    up = down = 2
    lanes = constant("filtered_lrelu.cu", r"kChannelsLastLanes = (\d+)")
    good = constant("filtered_lrelu.cu", r"kGoodBytes = (\d+) << 10") << 10
    side = constant("filtered_lrelu.cu", r"Size size\{(\d+), lanes == 1")

    def fine(outputs: int) -> int:
        return (outputs - 1) * down + max(taps, down)

    def coarse(outputs: int) -> int:
        return inputs_for(fine(outputs), up, 1, taps)

    def fits(h: int, w: int) -> bool:
        pixels = max(coarse(h) * coarse(w), fine(h) * fine(w))
        pixels += max(coarse(h) * fine(w), fine(h) * w)
        return 4 * (lanes * pixels + fine(h) * fine(w) + 2 * taps) <= good

    h, w = shrunk(side, side, fits)
    tiles = samples * channels * math.ceil(size / h) * math.ceil(size / w)
    products = (taps // up) * (coarse(h) * fine(w) + fine(h) * fine(w))
    products += taps * (fine(h) * w + h * w)
    both = samples * channels * size**2
    return KernelWork(
        2 * both * itemsize,
        (tiles * coarse(h) * coarse(w) + both) * itemsize,
        2 * tiles * products,
    )


def sample_flops(features: int, hidden: int, colors: int, *, backward: bool) -> int:
    """Of one sample of render_rays: look-ups of twelve texels, products with both layers.

    Forward, each sample's density is decoded first, and its colours once the weights of its ray are
    known, hidden layer and look-ups anew. Backward follows the rays once more, decodes for the
    gradients of the weights, then takes these back through layers and look-ups.
    """
    look_up, first, density, second = 12 * features, features * hidden, hidden, hidden * colors
    once = look_up + first + density + second
    return 2 * (4 * once if backward else once + look_up + first)


def render_rays(
    samples: int, rays: int, per_ray: int, features: int, resolution: int, *,
    hidden: int = 64, colors: int = 32, backward: bool = False,
) -> KernelWork:  # fmt: skip
    """Of fp32 planes; all samples seen."""
    planes = 3 * features * resolution**2
    tensors = 4 * samples * (planes + rays * (colors + 2)) * (2 if backward else 1)
    decodes = 2 if not backward else 3  # with the sums' additions
    return KernelWork(
        tensors,
        tensors + 4 * samples * rays * per_ray * 12 * features * decodes,
        samples * rays * per_ray * sample_flops(features, hidden, colors, backward=backward),
    )
