"""Deterministic results on a GPU, where PyTorch's fastest algorithms sum in an order that varies.

The compiled operators are deterministic without this: they sum integers, or in a fixed order.
"""

from __future__ import annotations

import functools
import os

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils.devices import is_asynchronous, upload


def use_deterministic_algorithms() -> None:
    """Use PyTorch's deterministic algorithms on GPUs from now on, and raise an error for operations
    that have none. To be called before anything is computed on a GPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
    torch.backends.cudnn.benchmark = False
    # no uninitialized memory is read; setattr, since mypy does not see properties of modules
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    torch.use_deterministic_algorithms(True)


def is_wanted(x: Tensor) -> bool:
    """Whether results computed from `x` have to be deterministic and are not so anyway, as they are
    on the CPU.
    """
    return torch.are_deterministic_algorithms_enabled() and is_asynchronous(x.device)


def resize(x: Tensor, size: int, antialias: bool) -> Tensor:
    """Bilinear resize of (N, C, H, W) to (N, C, size, size) by products with two matrices: the
    result of `F.interpolate`, whose gradient on CUDA is summed in an order that varies.
    """
    height, width = x.shape[-2:]
    rows, columns = (
        resize_matrix(side, size, antialias, x.dtype, x.device) for side in (height, width)
    )
    return rows @ x @ columns.T


@functools.lru_cache(maxsize=16)
@torch.inference_mode(mode=False)  # what is kept here must serve gradients later
@torch.no_grad()
def resize_matrix(
    size: int, to: int, antialias: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The matrix (to, size) of a bilinear resize along one axis: what it makes of unit vectors."""
    units = torch.eye(size, dtype=torch.float64)[None, None]
    resized = F.interpolate(
        units, size=(to, size), mode="bilinear", align_corners=False, antialias=antialias
    )
    return upload(resized[0, 0].to(dtype), device)


def grid_sample(images: Tensor, grid: Tensor, align_corners: bool) -> Tensor:
    """Bilinear samples (N, C, h, w) of images (N, C, H, W) at `grid` (N, h, w, 2), zeros outside.

    By `F.grid_sample`, or where determinism is wanted (`is_wanted`) by looking up pixels: the
    gradient of that is summed in a fixed order, and is differentiable any number of times.
    """
    if not is_wanted(images):
        return F.grid_sample(
            images, grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners
        )
    return look_up_pixels(images, grid, align_corners)


def look_up_pixels(images: Tensor, grid: Tensor, align_corners: bool) -> Tensor:
    """`grid_sample` by four look-ups of pixels."""
    count, _, height, width = images.shape
    edge = 1 if align_corners else 0  # from the middles of the outer pixels, or from their edges
    x, y = (
        ((grid[..., axis] + 1) * (size - edge) + edge - 1) / 2
        for axis, size in ((0, width), (1, height))
    )
    left, top = x.floor(), y.floor()
    rows = images.permute(0, 2, 3, 1).flatten(0, 2)  # a pixel of a sample each
    first = torch.arange(count, device=images.device)[:, None, None] * (height * width)
    result: Tensor | float = 0.0
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = left + dx, top + dy
        weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        place = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
        weight = torch.where(inside, weight, 0)[..., None].to(images.dtype)
        result = result + weight * rows[first + place]
    assert isinstance(result, Tensor)
    return result.permute(0, 3, 1, 2)
