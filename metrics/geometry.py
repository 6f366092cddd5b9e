"""Cameras as far as 3D metrics need them: points from depth, and where a camera sees a point.

Labels `c` have 25 numbers: the row-major 4x4 camera-to-world matrix (axes x right, y down, z
forward), then the row-major 3x3 intrinsics in units of the picture's side. Depth is the distance
from the camera along the ray through a pixel's centre. Pixel (i, j) of n x n has u = (j + 0.5) / n,
v = (i + 0.5) / n.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def split_label(c: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (N, 25) as camera-to-world matrices (N, 4, 4) and intrinsics (N, 3, 3)."""
    return c[:, :16].reshape(-1, 4, 4), c[:, 16:25].reshape(-1, 3, 3)


def pixel_rays(c: Tensor, resolution: int) -> Tensor:
    """Unit directions (N, 3, n, n) in the world of labels' (N, 25) rays through pixels' centres."""
    cam2world, intrinsics = split_label(c)
    centres = (torch.arange(resolution, dtype=c.dtype, device=c.device) + 0.5) / resolution
    v, u = torch.meshgrid(centres, centres, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)]).flatten(1)
    local = torch.linalg.solve(intrinsics, pixels.expand(len(c), -1, -1))
    return F.normalize(cam2world[:, :3, :3] @ local, dim=1).unflatten(2, (resolution, resolution))


def points_of_depth(depth: Tensor, c: Tensor) -> Tensor:
    """World points (N, 3, n, n) that cameras (N, 25) see at distances `depth` (N, 1, n, n)."""
    return c[:, (3, 7, 11)][:, :, None, None] + depth * pixel_rays(c, depth.shape[-1])


def straight_depth(depth: Tensor, c: Tensor) -> Tensor:
    """Depths (N, 1, n, n) along the optical axis instead of along the rays."""
    axes = F.normalize(c[:, [2, 6, 10]], dim=1)
    along = torch.einsum("nchw,nc->nhw", pixel_rays(c, depth.shape[-1]), axes)
    return depth * along[:, None]


def project(points: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Where cameras (N, 25) see world points (N, 3, n, n).

    Returns:
        Positions (N, 2, n, n) = (u, v) in units of the picture's side, and distances (N, 1, n, n)
        from the camera, which are negative for points behind it; positions there mean nothing.
    """
    cam2world, intrinsics = split_label(c)
    offsets = points - c[:, (3, 7, 11)][:, :, None, None]
    local = torch.einsum("nji,njhw->nihw", cam2world[:, :3, :3], offsets)
    z = local[:, 2:]
    picture = torch.einsum("nij,njhw->nihw", intrinsics, local)
    safe = torch.where(z.abs() > 1e-12, z, 1e-12)
    return picture[:, :2] / safe, offsets.norm(dim=1, keepdim=True) * z.sign()


def sample_at(pictures: Tensor, positions: Tensor) -> Tensor:
    """Bilinear values (N, C, h, w) of pictures (N, C, n, n) at (u, v) positions (N, 2, h, w); the
    border is continued outside.
    """
    grid = (positions * 2 - 1).permute(0, 2, 3, 1)
    return F.grid_sample(
        pictures, grid, mode="bilinear", padding_mode="border", align_corners=False
    )


def view_angle(first: Tensor, second: Tensor) -> float:
    """Angle in radians between the optical axes of two labels (25,)."""
    axes = [F.normalize(c[[2, 6, 10]].double(), dim=0) for c in (first, second)]
    return float(torch.acos((axes[0] @ axes[1]).clamp(-1, 1)))
