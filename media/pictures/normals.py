"""Normals of what a camera sees: those of the density's level surface where the rays end."""

from __future__ import annotations

import torch
from torch import Tensor

from media import DensityModel, RenderOutput
from training.cameras import unpack_label
from training.rendering.rays import sample_rays

# distance of the differences that a gradient is made of, in texels of the planes: less shows the
# texels' edges
NORMAL_STEP = 2.0


@torch.no_grad()
def surface_normals(
    generator: DensityModel, planes: Tensor, c: Tensor, out: RenderOutput
) -> Tensor:
    """Outward unit normals (N, 3, r, r) in world axes where the rays of cameras c (N, 25) end; 0
    where the density is constant. Planes are those of N samples, or of one that all cameras see.
    """
    planes = planes.expand(len(c), *planes.shape[1:])
    origins, directions = sample_rays(*unpack_label(c.float()), out.image_depth.shape[-1])
    points = origins + directions * out.image_depth.flatten(2).transpose(1, 2).to(origins)
    step = NORMAL_STEP * generator.rendering.box_warp / planes.shape[-1]
    offsets = torch.cat([torch.eye(3), -torch.eye(3)]).to(points) * step
    sigma = generator.query_density(
        (points[:, None] + offsets[None, :, None]).flatten(1, 2), planes
    )
    ahead, behind = sigma.view(len(c), 2, 3, -1).unbind(dim=1)
    return torch.nn.functional.normalize(behind - ahead, dim=1).unflatten(
        2, out.image_depth.shape[-2:]
    )


def in_camera(normals: Tensor, c: Tensor) -> Tensor:
    """World normals (N, 3, r, r) in the axes of cameras c (N, 25): to the picture's right, up, and
    towards the camera.
    """
    rotation = unpack_label(c.float())[0][:, :3, :3]
    seen = torch.einsum("nwc,nwij->ncij", rotation, normals)
    return seen * seen.new_tensor([1.0, -1.0, -1.0])[:, None, None]
