"""Augmentation in front of the discriminator (Karras et al. 2020, "Training Generative Adversarial
Networks with Limited Data").

The pipeline is that of appendix B: geometry (one warp), then colour, each transform with its own
chance p. What is done to which image is drawn and turned into matrices in `augment_transforms`;
here it is done. Images are (N, 3 * T, H, H) with H = W and values in [-1, 1].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from torch_utils import determinism
from torch_utils.devices import is_asynchronous, upload
from training.gan.augment_transforms import (
    CPU,
    TRANSFORMS,
    TransformParameters,
    colour_matrix,
    draw_parameters,
    warp_matrix,
)

# Low-pass filter of the sym6 wavelet (Daubechies, "Ten Lectures on Wavelets", table 6.3):
# orthonormal to its even shifts, sum sqrt(2).
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
# Where the filter sits, in taps: its delay for slow signals. Ignoring it would move turned pictures
# by a part of a pixel.
SYM6_CENTRE = sum(tap * value for tap, value in enumerate(SYM6)) / sum(SYM6)
# Positions up to this many pixels outside the image are read as they are from the (reflected, then
# supersampled) image: as far as the downsampling filter looks. An undistorted image so comes back
# exactly, borders included; folding these positions at the border would not do, because the filter
# is not symmetric.
MARGIN = 3
# First supersampled column: the neighbour of position -MARGIN on its far side (column k lies at (k
# - SYM6_CENTRE) / 2 pixels).
FIRST_COLUMN = math.floor(SYM6_CENTRE - 2 * MARGIN)


def reflect(position: Tensor, size: int) -> Tensor:
    """Coordinates in pixels, any number, folded into [0, size - 1] by mirrors on the first and the
    last pixel's centre.
    """
    return (size - 1) - (torch.remainder(position, 2 * (size - 1)) - (size - 1)).abs()


@functools.lru_cache(maxsize=16)
@torch.inference_mode(mode=False)  # what is kept here must serve gradients later
def resampling_matrices(
    size: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The sym6 filter as matrices: an image X of `size` x `size` is supersampled by 2 as A X A^T; Y
    is low-passed and reduced as B Y B^T.

    Dense matrices beat 12-tap convolutions of single channels up to 256 pixels and are not far
    behind at 512.

    Returns:
        A (2 size + 12, size): from a row of pixels, reflected at its ends, to columns FIRST_COLUMN,
            FIRST_COLUMN + 1, ... of its supersampled version; column k lies at (k - SYM6_CENTRE) /
            2 pixels.
        B (size, 2 size + 10): from columns 0, 1, ... of a supersampled row back to pixels.
    """
    taps, values = torch.arange(len(SYM6)), torch.tensor(SYM6, dtype=torch.float64)
    pixels = torch.arange(-len(SYM6), size + len(SYM6))
    columns = 2 * pixels[:, None] + taps - FIRST_COLUMN
    up = torch.zeros(2 * size + len(SYM6), size, dtype=torch.float64)
    inside = (columns >= 0) & (columns < len(up))
    rows = reflect(pixels, size)[:, None].expand_as(columns)
    up.index_put_(
        (columns[inside], rows[inside]), values.expand_as(columns)[inside], accumulate=True
    )
    pixels = torch.arange(size)[:, None]
    down = torch.zeros(size, 2 * size + len(SYM6) - 2, dtype=torch.float64)
    down[pixels, 2 * pixels + taps] = values
    return upload(up.to(dtype), device), upload(down.to(dtype), device)


def sampling_grid(matrices: Tensor, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Where each pixel of the supersampled result comes from in the supersampled source.

    Returns:
        (N, 2 size + 10, 2 size + 10, 2), in the units of `grid_sample` with align_corners, for
        `matrices` (N, 3, 3) as `warp` takes them.
    """
    centre = (size - 1) / 2
    # without a look at whether there is one, for which a GPU would be waited for: there always is
    inverse = torch.linalg.inv_ex(matrices).inverse[:, :2].to(device, dtype)
    steps = (
        torch.arange(2 * size + len(SYM6) - 2, dtype=dtype, device=device) - SYM6_CENTRE
    ) / 2 - centre
    along_x, along_y, offset = (inverse[:, None, None, :, i] for i in range(3))
    source = along_x * steps[:, None] + (along_y * steps[:, None, None] + offset) + centre
    outside = (source < -MARGIN) | (source > size - 1 + MARGIN)
    source = torch.where(outside, reflect(source, size), source)
    columns = 2 * source + (SYM6_CENTRE - FIRST_COLUMN)
    return columns * (2 / (2 * size + len(SYM6) - 1)) - 1


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Move the content of images (N, C, H, H) by pixel coordinate matrices (N, 3, 3);
    differentiable twice in `images`.

    Supersample by 2 with the sym6 low-pass filter, sample bilinearly with reflected borders,
    low-pass and reduce (appendix B).
    """
    size = images.shape[-1]
    up, down = resampling_matrices(size, images.dtype, images.device)
    grid = sampling_grid(matrices, size, images.dtype, images.device)
    fine = up @ images @ up.T
    return down @ determinism.grid_sample(fine, grid, align_corners=True) @ down.T


def turn(images: Tensor, x_flip: Tensor, quarter_turns: Tensor) -> Tensor:
    """Mirror images (N, C, H, H) left-right where `x_flip` (N,), then turn them anticlockwise by
    `quarter_turns` (N,) x 90 degrees.

    Whole pixels change places, so these need no resampling and stay out of the warp.
    """
    steps: tuple[tuple[Tensor, Callable[[Tensor], Tensor]], ...] = (
        (x_flip, lambda x: x.flip(3)),
        (quarter_turns % 4 >= 2, lambda x: x.flip(2, 3)),
        (quarter_turns % 2 == 1, lambda x: x.rot90(1, (2, 3))),
    )
    for where, change in steps:
        if is_asynchronous(where.device) or where.any():
            images = torch.where(
                where.to(images.device)[:, None, None, None], change(images), images
            )
    return images


def recolour(images: Tensor, matrices: Tensor) -> Tensor:
    """Apply RGB matrices (N, 4, 4) to every three channels of images (N, 3 * T, H, W)."""
    matrices = matrices.to(images.device, images.dtype)[:, None]
    pixels = images.unflatten(1, (-1, 3)).flatten(3)
    return (matrices[..., :3, :3] @ pixels + matrices[..., :3, 3:]).reshape(images.shape)


def augment(images: Tensor, parameters: TransformParameters) -> Tensor:
    """Transform images (N, 3 * T, H, H) by given parameters; samples with neutral ones come out bit
    for bit.

    Parameters on the CPU tell which samples need what; a GPU does all to all of them, and chooses.
    """
    images = turn(images, parameters.x_flip, parameters.quarter_turns)
    matrices = warp_matrix(parameters)
    is_moved, colours = _differs(matrices), colour_matrix(parameters)
    is_coloured = _differs(colours)
    if is_asynchronous(matrices.device):
        images = torch.where(_per_image(is_moved), warp(images, matrices), images)
        return torch.where(_per_image(is_coloured), recolour(images, colours), images)
    moved = is_moved.nonzero()[:, 0]
    if len(moved):
        index = moved.to(images.device)
        images = images.index_copy(0, index, warp(images[index], matrices[moved]))
    return recolour(images, colours) if is_coloured.any() else images


def _differs(matrices: Tensor) -> Tensor:
    """Which (N,) of `matrices` (N, d, d) are not the identity."""
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    return (matrices != identity).flatten(1).any(1)


def _per_image(where: Tensor) -> Tensor:
    return where[:, None, None, None]


class AugmentPipe(nn.Module):
    """Random transforms in front of the discriminator, each with probability `p` (a buffer, so that
    checkpoints and copies carry it).
    """

    p: Tensor
    is_used = True  # else p stays 0

    def __init__(self, p: float = 0.0, transforms: Collection[str] = TRANSFORMS) -> None:
        """Start with probability `p` in [0, 1]; `transforms` names those that may happen (fields of
        TransformParameters).

        Raises:
            ValueError: for names of transforms that do not exist.
        """
        super().__init__()
        unknown = sorted(set(transforms) - TRANSFORMS)
        if unknown:
            raise ValueError(
                f"unknown transform {unknown[0]!r}; known are {', '.join(sorted(TRANSFORMS))}"
            )
        self.transforms = frozenset(transforms)
        self.register_buffer("p", torch.tensor(float(p)))

    def forward(self, images: Tensor) -> Tensor:
        """Augment images (N, C, H, H), C = 3, or 6 with two RGB images under one transform; at p =
        0 the very input is returned.

        Raises:
            ValueError: for other shapes.
        """
        if images.ndim != 4 or images.shape[1] % 3 or images.shape[2] != images.shape[3]:
            raise ValueError(
                f"expected images of shape (N, 3 * T, H, H), found {tuple(images.shape)}"
            )
        if self.is_off():
            return images
        where = images.device if is_asynchronous(images.device) else CPU
        p = self.p.clamp(max=1) if is_asynchronous(where) else min(float(self.p), 1.0)
        return augment(
            images, draw_parameters(len(images), images.shape[-1], p, self.transforms, where)
        )

    def is_off(self) -> bool:
        """Whether nothing is done to any image. A GPU is not asked what p is at the moment, for it
        would have to be waited for.
        """
        return not self.is_used or (not is_asynchronous(self.p.device) and float(self.p) <= 0)
