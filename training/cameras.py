"""Camera labels, orbit poses and focal lengths (EG3D, section 4 and supplement; conventions drawn
in docs/cameras.md).

A camera label `c` has 25 numbers: the row-major 4x4 camera-to-world matrix, then the row-major 3x3
intrinsics normalised by the image size. Camera axes are OpenCV's (x right, y down, z forward); the
world's y axis points up. Every function takes and returns tensors with any leading batch
dimensions. Angles are radians unless named degrees.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LABEL_SIZE = 25
FFHQ_FOCAL = 4.2647
SRN_CARS_FOCAL = 131.25 / 128  # of the ShapeNet cars of Scene Representation Networks
WORLD_UP = (0.0, 1.0, 0.0)


def pack_label(cam2world: Tensor, intrinsics: Tensor) -> Tensor:
    """Join (..., 4, 4) camera-to-world matrices and (..., 3, 3) intrinsics into labels (...,
    25).
    """
    batch = torch.broadcast_shapes(cam2world.shape[:-2], intrinsics.shape[:-2])
    return torch.cat(
        [cam2world.expand(*batch, 4, 4).flatten(-2), intrinsics.expand(*batch, 3, 3).flatten(-2)],
        dim=-1,
    )


def unpack_label(c: Tensor) -> tuple[Tensor, Tensor]:
    """Split labels (..., 25) into camera-to-world matrices (..., 4, 4) and intrinsics (..., 3,
    3).
    """
    return c[..., :16].unflatten(-1, (4, 4)), c[..., 16:25].unflatten(-1, (3, 3))


def scale_label(c: Tensor, factor: float) -> Tensor:
    """Labels (..., 25) of the same cameras in a world that is `factor` times as large."""
    scale = torch.ones(LABEL_SIZE, dtype=c.dtype, device=c.device)
    scale[[3, 7, 11]] = factor
    return c * scale


def look_at_pose(position: Tensor, target: Tensor) -> Tensor:
    """Camera-to-world matrices (..., 4, 4) of cameras at `position` (..., 3) that look at `target`
    (..., 3) without roll.

    Looking straight up or down leaves the roll undefined; the picture's right then is the world's x
    axis.
    """
    position, target = torch.broadcast_tensors(position, target)
    forward = torch.nn.functional.normalize(target - position, dim=-1)
    down = (
        torch.tensor(WORLD_UP, dtype=position.dtype, device=position.device)
        .neg()
        .expand_as(forward)
    )
    right = torch.linalg.cross(down, forward, dim=-1)
    length = right.norm(dim=-1, keepdim=True)
    world_x = torch.tensor([1.0, 0.0, 0.0], dtype=position.dtype, device=position.device)
    right = torch.where(length > 1e-6, right / length.clamp(min=1e-12), world_x)
    down = torch.linalg.cross(forward, right, dim=-1)
    pose = torch.zeros(*position.shape[:-1], 4, 4, dtype=position.dtype, device=position.device)
    pose[..., :3, :] = torch.stack([right, down, forward, position], dim=-1)
    pose[..., 3, 3] = 1
    return pose


def orbit_pose(
    yaw: Tensor | float,
    pitch: Tensor | float,
    radius: Tensor | float,
    pivot: Tensor | tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Tensor:
    """Camera-to-world matrices (..., 4, 4) of cameras on a sphere of `radius` around the world's
    origin that look at `pivot`.

    Yaw 0, pitch 0 is on the +z axis; positive yaw moves towards +x, positive pitch towards +y.
    """
    device = next(
        (value.device for value in (yaw, pitch, radius) if isinstance(value, Tensor)), None
    )
    a, b, r = torch.broadcast_tensors(
        *(torch.as_tensor(value, device=device) for value in (yaw, pitch, radius))
    )
    a, b, r = (
        value.to(torch.promote_types(a.dtype, torch.promote_types(b.dtype, r.dtype)))
        for value in (a, b, r)
    )
    position = torch.stack([a.sin() * b.cos(), b.sin(), a.cos() * b.cos()], dim=-1) * r[..., None]
    return look_at_pose(
        position, torch.as_tensor(pivot, dtype=position.dtype, device=position.device)
    )


def orbit_angles(cam2world: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Yaw, pitch and radius (each of shape (...)) of the camera positions of (..., 4, 4), the
    inverse of `orbit_pose`.
    """
    x, y, z = cam2world[..., :3, 3].unbind(-1)
    radius = cam2world[..., :3, 3].norm(dim=-1)
    return torch.atan2(x, z), torch.asin((y / radius.clamp(min=1e-12)).clamp(-1, 1)), radius


def pinhole_intrinsics(focal: Tensor | float) -> Tensor:
    """Normalised intrinsics (..., 3, 3) of a centred camera with `focal` in units of the image
    size.
    """
    focal = torch.as_tensor(focal, dtype=torch.get_default_dtype())
    intrinsics = torch.zeros(*focal.shape, 3, 3, dtype=focal.dtype)
    intrinsics[..., 0, 0] = intrinsics[..., 1, 1] = focal
    intrinsics[..., :2, 2] = 0.5
    intrinsics[..., 2, 2] = 1
    return intrinsics


def focal_from_fov(fov_degrees: float) -> float:
    """Normalised focal length the released tools use for a field of view (they take the square root
    of 2 as 1.414).
    """
    return 1 / (1.414 * math.tan(math.radians(fov_degrees) / 2))


def mirror_label(c: Tensor) -> Tensor:
    """Label (..., 25) of the left-right mirrored picture of a world mirrored at x = 0: M -> F M F,
    cx -> 1 - cx, skew -> -skew.
    """
    cam2world, intrinsics = unpack_label(c)
    flip = torch.ones(4, 4, dtype=c.dtype, device=c.device)
    flip[0, 1:] = flip[1:, 0] = -1
    intrinsics = intrinsics.clone()
    intrinsics[..., 0, 1].neg_()
    intrinsics[..., 0, 2] = 1 - intrinsics[..., 0, 2]
    return pack_label(cam2world * flip, intrinsics)


def nearest_point_to_rays(origins: Tensor, directions: Tensor) -> Tensor:
    """Point (3,) with the least mean squared distance to the lines through `origins` (N, 3) along
    unit `directions` (N, 3).

    Where the lines do not determine it (all parallel), the point of least norm among the best ones.
    """
    eye = torch.eye(3, dtype=origins.dtype, device=origins.device)
    across = eye - directions[:, :, None] * directions[:, None, :]
    return (
        torch.linalg.pinv(across.mean(0), hermitian=True)
        @ (across @ origins[:, :, None]).mean(0)[:, 0]
    )


def viewing_rays(cam2world: Tensor) -> tuple[Tensor, Tensor]:
    """Optical axes of cameras (..., 4, 4): origins (..., 3) and unit directions (..., 3)."""
    return cam2world[..., :3, 3], torch.nn.functional.normalize(cam2world[..., :3, 2], dim=-1)
