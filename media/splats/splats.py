"""Clouds of 3D Gaussians, and what a camera sees of them (Kerbl et al. 2023, "3D Gaussian splatting
for real-time radiance field rendering", sections 4 and 6; Zwicker et al. 2001, "EWA splatting").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_utils.ops.rasterize_gaussians import rasterize_gaussians
from training.cameras import unpack_label

# variance added on the picture plane, square pixels, so that no Gaussian falls between pixels
BLUR = 0.3
LEAST_SHARE = 1e-4  # of a Gaussian's area in the blurred one's: gradients stay finite
NEAREST = 1e-3  # depth in front of the camera, world units, below which nothing is drawn
PICTURE_MARGIN = 0.3  # picture sides beside the picture where the projection is still linearised


@dataclass(frozen=True)
class Splats:
    """N Gaussians of one identity, in world units and world axes (docs/cameras.md).

    Attributes:
        positions: Means (N, 3), world units.
        scales: Standard deviations (N, 3) along the Gaussian's own axes, world units.
        rotations: Unit quaternions (N, 4), w x y z, from the Gaussian's own axes to the world's.
        opacities: Alpha at the mean (N,), in [0, 1].
        colors: sRGB colours (N, 3) in [0, 1], the same from all sides.
    """

    positions: Tensor
    scales: Tensor
    rotations: Tensor
    opacities: Tensor
    colors: Tensor

    def render(self, label: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
        """Picture (3, resolution, resolution) in front of black, and alpha (1, same), that a camera
        (25,) sees; both in [0, 1]. Differentiable.

        What the blur widens it makes fainter, so that an object is as large and as opaque at every
        resolution (Yu et al. 2024, "Mip-Splatting", section 4.2).
        """
        means, covariances, depths = self._project(label.to(self.positions), resolution)
        a, b, c = covariances.unbind(-1)
        area = a * c - b * b
        a, c = a + BLUR, c + BLUR
        blurred = a * c - b * b
        conics = torch.stack([c, -b, a], dim=-1) / blurred[:, None]
        opacities = self.opacities * (area / blurred).clamp(min=LEAST_SHARE).sqrt()
        order = depths.detach().argsort()
        order = order[depths[order] > NEAREST]
        image, alpha = rasterize_gaussians(
            means[order],
            conics[order],
            opacities[order],
            self.colors[order],
            resolution,
            resolution,
        )
        return image.movedim(-1, 0), alpha[None]

    def _project(self, label: Tensor, resolution: int) -> tuple[Tensor, Tensor, Tensor]:
        """Means (N, 2) in pixels, covariances (N, 3) as xx, xy, yy in square pixels, depths
        (N,).
        """
        cam2world, intrinsics = unpack_label(label)
        to_camera, pixels = cam2world[:3, :3].T, intrinsics[:2] * resolution
        x, y, depths = ((self.positions - cam2world[:3, 3]) @ to_camera.T).unbind(-1)
        z = depths.clamp(min=NEAREST)
        flat = torch.stack([x / z, y / z, torch.ones_like(z)], dim=-1)
        means = flat @ pixels.T
        # the derivative is taken inside of the picture: far beside it Gaussians would grow without
        # bounds
        edge = PICTURE_MARGIN * resolution
        inside = means.clamp(-edge, resolution + edge) - pixels[:, 2]
        jacobian = torch.stack(
            [
                (pixels[:, :2] / z[:, None, None])[..., 0],
                (pixels[:, :2] / z[:, None, None])[..., 1],
                -inside / z[:, None],
            ],
            dim=-1,
        )
        axes = (jacobian @ to_camera) @ (rotation_matrices(self.rotations) * self.scales[:, None])
        p, q = axes.unbind(1)
        return (
            means,
            torch.stack([(p * p).sum(-1), (p * q).sum(-1), (q * q).sum(-1)], dim=-1),
            depths,
        )


def rotation_matrices(quaternions: Tensor) -> Tensor:
    """Rotations (N, 3, 3) of quaternions (N, 4), w x y z, of any length."""
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
