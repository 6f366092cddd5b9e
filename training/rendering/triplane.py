"""Features of 3D points from three axis-aligned planes (EG3D, section 3.2)."""

from __future__ import annotations

from torch import Tensor

from torch_utils.determinism import grid_sample
from torch_utils.ops.decode_points import PlaneAxes

# World coordinates that run along the width and the height of each plane. The released models have
# no plane that spans y-z.
PLANE_AXES: dict[str, tuple[tuple[int, int], ...]] = {
    "corrected": ((0, 1), (0, 2), (2, 1)),
    "released": ((0, 1), (0, 2), (2, 0)),
}


def sample(
    planes: Tensor, points: Tensor, box_warp: float, plane_axes: PlaneAxes = "corrected"
) -> Tensor:
    """Mean of the bilinear look-ups in the three planes; planes are zero outside.

    Args:
        planes: (N, 3, C, H, W), any memory format and precision; they span a cube of side
            `box_warp` around the world's origin.
        points: (N, M, 3) in the world.

    Returns:
        (N, M, C) of the points' dtype.
    """
    coordinates = points * (2 / box_warp)
    total: Tensor | None = None
    for index, axes in enumerate(PLANE_AXES[plane_axes]):
        grid = coordinates[:, None, :, list(axes)]
        features = grid_sample(planes[:, index].to(grid.dtype), grid, align_corners=False)
        total = features if total is None else total + features
    assert total is not None
    return total.squeeze(2).transpose(1, 2) / 3
