"""Compressed tri-planes: 8 bits per value, neighbours predicted, deflated. `page/planes.js` is the
inverse.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEVELS = 255
CHANNELS_A_TEXEL = 4  # a texture has four channels; empty ones fill up the last


@dataclass(frozen=True)
class QuantizedPlanes:
    """Planes as whole numbers: value = (code - zero) * scale. Zero itself is a code, since that is
    what lies outside the planes.
    """

    codes: NDArray[np.uint8]  # (3, C, H, W), C a multiple of four
    scale: NDArray[np.float32]  # (3, C), one for each channel of each plane
    zero: NDArray[np.uint8]  # (3, C)

    def values(self) -> Tensor:
        """The planes (1, 3, C, H, W), fp32, that the page renders."""
        codes, zero = (
            torch.from_numpy(array.astype(np.float32)) for array in (self.codes, self.zero)
        )
        return ((codes - zero[..., None, None]) * torch.from_numpy(self.scale)[..., None, None])[
            None
        ]


def quantize(planes: Tensor) -> QuantizedPlanes:
    """Planes (1, 3, C, H, W) to 8 bits, each channel of each plane over its own range; empty
    channels fill up to a multiple of four.

    The error is at most half a step, 1/510 of the range, plus as much where zero moves to its
    nearest code.
    """
    values = planes.detach()[0].float().cpu()
    missing = -values.shape[1] % CHANNELS_A_TEXEL
    values = torch.nn.functional.pad(values, (0, 0, 0, 0, 0, missing))
    low = values.amin(dim=(2, 3)).clamp(max=0)
    high = values.amax(dim=(2, 3)).clamp(min=0)
    scale = (high - low) / LEVELS
    scale = scale.where(scale > 0, 1.0)
    zero = (-low / scale).round()
    codes = (values / scale[..., None, None] + zero[..., None, None]).round().clamp(0, LEVELS)
    return QuantizedPlanes(
        codes.to(torch.uint8).numpy(), scale.numpy(), zero.to(torch.uint8).numpy()
    )


def pack(codes: NDArray[np.uint8]) -> bytes:
    """Compress codes (..., H, W): each minus its prediction, left + above - above left, modulo 256,
    with zeros outside, as zlib data.
    """
    rest = codes.copy()
    rest[..., 1:] -= codes[..., :-1]
    across = rest.copy()
    rest[..., 1:, :] -= across[..., :-1, :]
    return zlib.compress(rest.tobytes(), 9)


def unpack(data: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The inverse of `pack`: codes of `shape` (..., H, W)."""
    rest = np.frombuffer(zlib.decompress(data), dtype=np.uint8).reshape(shape)
    return rest.cumsum(axis=-2, dtype=np.uint8).cumsum(axis=-1, dtype=np.uint8)
