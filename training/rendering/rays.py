"""Camera rays and their intersection with the scene box."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_rays(cam2world: Tensor, intrinsics: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Rays through the pixel centres of square pictures, row by row.

    Args:
        cam2world: (N, 4, 4) camera-to-world matrices.
        intrinsics: (N, 3, 3), normalised by the picture size.
        resolution: Pixels a side.

    Returns:
        Origins and unit directions in the world, both (N, resolution^2, 3).
    """
    centers = (
        torch.arange(resolution, dtype=cam2world.dtype, device=cam2world.device) + 0.5
    ) / resolution
    v, u = (grid.flatten() for grid in torch.meshgrid(centers, centers, indexing="ij"))
    fx, fy, skew = (intrinsics[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 1)))
    cx, cy = intrinsics[:, 0, 2, None], intrinsics[:, 1, 2, None]
    x = (u - cx + cy * skew / fy - skew * v / fy) / fx
    y = ((v - cy) / fy).expand_as(x)
    in_camera = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    directions = torch.nn.functional.normalize(
        in_camera @ cam2world[:, :3, :3].transpose(1, 2), dim=-1
    )
    origins = cam2world[:, None, :3, 3].expand_as(directions)
    return origins, directions


def box_limits(
    ray_origins: Tensor, ray_directions: Tensor, box_side: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Distances at which rays enter and leave the cube of side `box_side` around the world's origin
    (Kay & Kajiya 1986).

    Args:
        ray_origins: (N, R, 3).
        ray_directions: (N, R, 3), of unit length.

    Returns:
        near, far, hit, each (N, R, 1). Rays that start inside have near = 0. A ray that misses gets
        limits of its own, around its nearest approach to the centre, so that its samples are finite
        and lie outside the cube.
    """
    half = box_side / 2
    inverse = 1 / torch.where(ray_directions == 0, 1e-20, ray_directions)
    lower, upper = (-half - ray_origins) * inverse, (half - ray_origins) * inverse
    near = torch.minimum(lower, upper).amax(dim=-1, keepdim=True).clamp(min=0)
    far = torch.maximum(lower, upper).amin(dim=-1, keepdim=True)
    hit = far > near
    approach = -(ray_origins * ray_directions).sum(dim=-1, keepdim=True).clamp(max=0)
    reach = half * 3**0.5
    return (
        torch.where(hit, near, (approach - reach).clamp(min=0)),
        torch.where(hit, far, approach + reach),
        hit,
    )
