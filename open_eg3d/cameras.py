"""Camera labels from angles in degrees and back, and in the conventions of other programs.

A label `c` is (..., 25): the 4x4 camera-to-world matrix and the 3x3 intrinsics, row by row, the
latter divided by the picture's size. Camera axes are OpenCV's: x to the picture's right, y down, z
forward. Only the camera's axes are converted here: the world stays as it is (ours has y upward, and
the front of faces at +z).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from dnnlib.console import UserError, brief
from training.cameras import (
    FFHQ_FOCAL,
    LABEL_SIZE,
    CameraSummary,
    cameras_of,
    orbit_angles,
    pack_label,
    pinhole_intrinsics,
    unpack_label,
)
from training.networks.generator import Generator

Angles = float | Sequence[float] | Tensor
Point = tuple[float, float, float]

OPENGL_AXES = (1.0, -1.0, -1.0)  # x right, y up, z backward, in OpenCV's axes
PYTORCH3D_AXES = (-1.0, -1.0, 1.0)  # x left, y up, z forward
LARGEST_SKEW = 1e-6


class CameraPose(NamedTuple):
    """Where a camera stands on its orbit; shapes (..., 3) and (...)."""

    position: Tensor
    yaw_degrees: Tensor
    pitch_degrees: Tensor
    radius: Tensor


class PyTorch3DCamera(NamedTuple):
    """Arguments of `pytorch3d.renderer.PerspectiveCameras`, in its NDC: R (..., 3, 3) multiplies
    row vectors, T (..., 3), focal_length (..., 2), principal_point (..., 2).
    """

    R: Tensor
    T: Tensor
    focal_length: Tensor
    principal_point: Tensor


class ColmapCamera(NamedTuple):
    """What COLMAP's images.txt and cameras.txt say: world-to-camera rotation as quaternion w, x, y,
    z (..., 4), translation (..., 3), and fx, fy, cx, cy (..., 4) in pixels of the model PINHOLE.
    """

    qvec: Tensor
    tvec: Tensor
    params: Tensor


# --------------------------------------------------------------------------------------------------
# Angles


def orbit_label(
    yaw_degrees: Angles,
    pitch_degrees: Angles = 0.0,
    *,
    radius: float = 2.7,
    pivot: Point = (0.0, 0.0, 0.0),
    center: Point = (0.0, 0.0, 0.0),
    focal: float = FFHQ_FOCAL,
) -> Tensor:
    """Labels (..., 25) of cameras on a sphere around `center` that look at `pivot`.

    Args:
        yaw_degrees, pitch_degrees: Numbers or values of one shape (...): 0, 0 is in front (+z),
            positive yaw to +x, positive pitch upward.
        radius: Of the sphere, world units.
        focal: Focal length over the picture's size; 4.2647 are 13.4 degrees from edge to edge.

    Raises:
        UserError: for angles that are no finite numbers, radius or focal length not above 0.
    """
    for name, value in (("radius", radius), ("focal", focal)):
        if not (isinstance(value, (int, float)) and 0 < value < float("inf")):
            raise UserError(f"{name} must be a number above 0, not {value!r}")
    intrinsics = tuple(pinhole_intrinsics(focal).flatten().tolist())
    orbit = CameraSummary(radius, pivot, center=center, intrinsics=intrinsics)
    return orbit.label(
        _radians("yaw_degrees", yaw_degrees), _radians("pitch_degrees", pitch_degrees)
    )


def view_label(
    generator: Generator, yaw_degrees: Angles | None = None, pitch_degrees: Angles | None = None
) -> Tensor:
    """Labels (..., 25) on the orbit of the cameras that a generator was trained with.

    Args:
        yaw_degrees, pitch_degrees: As for `orbit_label`; None = the mean of the training data.

    Raises:
        UserError: for angles that are no finite numbers.
    """
    cameras = cameras_of(generator)
    yaw = cameras.yaw if yaw_degrees is None else _radians("yaw_degrees", yaw_degrees)
    pitch = cameras.pitch if pitch_degrees is None else _radians("pitch_degrees", pitch_degrees)
    return cameras.label(yaw, pitch).to(next(generator.parameters()).device)


def label_pose(c: Tensor, center: Point = (0.0, 0.0, 0.0)) -> CameraPose:
    """Position, angles (degrees) and distance of cameras c (..., 25), seen from `center`: the
    inverse of `orbit_label`.

    Raises:
        UserError: for labels of another shape.
    """
    cam2world, _ = _unpack(c)
    cam2world[..., :3, 3] -= torch.tensor(center, dtype=torch.float64)
    yaw, pitch, radius = (value.float() for value in orbit_angles(cam2world))
    position = c[..., :16].unflatten(-1, (4, 4))[..., :3, 3]
    return CameraPose(position, yaw.rad2deg(), pitch.rad2deg(), radius)


def _radians(name: str, degrees: Any) -> Tensor:
    try:
        angles = torch.as_tensor(degrees, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{name} must be degrees, numbers of one shape, not {brief(degrees)!r}"
        ) from error
    if not angles.isfinite().all():
        raise UserError(f"{name} must be finite numbers of degrees")
    return angles.deg2rad()


def _unpack(c: Any) -> tuple[Tensor, Tensor]:
    """Matrices (..., 4, 4) and (..., 3, 3) of labels, float64, on the CPU."""
    if not isinstance(c, Tensor) or c.dim() < 1 or c.shape[-1] != LABEL_SIZE:
        what = tuple(c.shape) if isinstance(c, Tensor) else type(c).__name__
        raise UserError(f"c must be a tensor of camera labels (..., {LABEL_SIZE}), not {what}")
    return unpack_label(c.detach().cpu().double().clone())


def _matrix(name: str, value: Any, rows: int, columns: int) -> Tensor:
    """`value` as float64 (..., rows, columns); with rows 0 as (..., columns)."""
    shape = (rows, columns) if rows else (columns,)
    tensor = torch.as_tensor(value, dtype=torch.float64)
    if tensor.shape[-len(shape) :] != shape:
        wanted = ", ".join(map(str, shape))
        raise UserError(f"{name} must have shape (..., {wanted}), not {tuple(tensor.shape)}")
    return tensor


# --------------------------------------------------------------------------------------------------
# Other programs


def to_opengl(c: Tensor) -> Tensor:
    """Camera-to-world matrices (..., 4, 4) in OpenGL's camera axes, also those of Blender and of
    NeRF's transforms.json: x right, y up, z backward.
    """
    return _turned(_unpack(c)[0], OPENGL_AXES).float()


def from_opengl(cam2world: Any, intrinsics: Any) -> Tensor:
    """Labels (..., 25) of camera-to-world matrices (..., 4, 4) in OpenGL's camera axes, and
    intrinsics (..., 3, 3) divided by the picture's size.

    Raises:
        UserError: for values of another shape, here and below.
    """
    matrix = _turned(_matrix("cam2world", cam2world, 4, 4), OPENGL_AXES)
    return pack_label(matrix, _matrix("intrinsics", intrinsics, 3, 3)).float()


def to_pytorch3d(c: Tensor) -> PyTorch3DCamera:
    """Cameras of PyTorch3D: camera axes x left, y up, z forward; a point x of the world is at
    x R + T.

    Raises:
        UserError: for skewed cameras, which it does not have.
    """
    cam2world, intrinsics = _unpack(c)
    rotation, translation = _world_to_camera(cam2world)
    axes = torch.tensor(PYTORCH3D_AXES, dtype=torch.float64)
    focal, middle = _pinhole(intrinsics, "PyTorch3D").float().split(2, dim=-1)
    return PyTorch3DCamera(
        (rotation.mT * axes).float(), (translation * axes).float(), 2 * focal, 1 - 2 * middle
    )


def from_pytorch3d(R: Any, T: Any, focal_length: Any, principal_point: Any = (0.0, 0.0)) -> Tensor:
    """Labels (..., 25) of what `PerspectiveCameras` takes in NDC, shapes as in
    `PyTorch3DCamera`.
    """
    axes = torch.tensor(PYTORCH3D_AXES, dtype=torch.float64)
    rotation = (_matrix("R", R, 3, 3) * axes).mT
    translation = _matrix("T", T, 0, 3) * axes
    focal = _matrix("focal_length", focal_length, 0, 2)
    middle = _matrix("principal_point", principal_point, 0, 2)
    return _label(rotation, translation, focal / 2, (1 - middle) / 2)


def to_colmap(c: Tensor, resolution: int) -> ColmapCamera:
    """Cameras of COLMAP for pictures with `resolution` pixels per side; its camera axes are ours.

    Raises:
        UserError: for skewed cameras, which the model PINHOLE does not have.
    """
    cam2world, intrinsics = _unpack(c)
    rotation, translation = _world_to_camera(cam2world)
    turns = Rotation.from_matrix(rotation.reshape(-1, 3, 3).numpy()).as_quat(
        canonical=True, scalar_first=True
    )
    qvec = torch.from_numpy(turns).reshape(*rotation.shape[:-2], 4)
    params = _pinhole(intrinsics, "COLMAP's model PINHOLE") * resolution
    return ColmapCamera(qvec.float(), translation.float(), params.float())


def from_colmap(qvec: Any, tvec: Any, params: Any, resolution: int) -> Tensor:
    """Labels (..., 25) of what COLMAP says of pictures with `resolution` pixels per side, shapes as
    in `ColmapCamera`.
    """
    turns = _matrix("qvec", qvec, 0, 4)
    matrices = Rotation.from_quat(turns.reshape(-1, 4).numpy(), scalar_first=True).as_matrix()
    rotation = torch.from_numpy(np.ascontiguousarray(matrices)).reshape(*turns.shape[:-1], 3, 3)
    focal, middle = (_matrix("params", params, 0, 4) / resolution).split(2, dim=-1)
    return _label(rotation, _matrix("tvec", tvec, 0, 3), focal, middle)


def _turned(cam2world: Tensor, axes: tuple[float, ...]) -> Tensor:
    """Camera-to-world matrices (..., 4, 4) with the camera's axes multiplied by signs."""
    return cam2world * torch.tensor([*axes, 1.0], dtype=torch.float64)


def _world_to_camera(cam2world: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation (..., 3, 3) and translation (..., 3) of the inverse of (..., 4, 4)."""
    rotation = cam2world[..., :3, :3].mT
    return rotation, -(rotation @ cam2world[..., :3, 3:])[..., 0]


def _pinhole(intrinsics: Tensor, program: str) -> Tensor:
    """fx, fy, cx, cy (..., 4) of intrinsics (..., 3, 3)."""
    if (intrinsics[..., 0, 1].abs() > LARGEST_SKEW).any():
        raise UserError(f"c has skewed cameras (intrinsics[0, 1] is not 0); {program} has none")
    return torch.stack([intrinsics[..., i, j] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))], dim=-1)


def _label(rotation: Tensor, translation: Tensor, focal: Tensor, middle: Tensor) -> Tensor:
    """Labels (..., 25) of a world-to-camera motion in OpenCV's axes and normalised intrinsics."""
    cam2world = torch.eye(4, dtype=torch.float64).repeat(*rotation.shape[:-2], 1, 1)
    cam2world[..., :3, :3] = rotation.mT
    cam2world[..., :3, 3] = -(rotation.mT @ translation[..., None])[..., 0]
    focal, middle = torch.broadcast_tensors(focal, middle)
    intrinsics = torch.eye(3, dtype=torch.float64).repeat(*focal.shape[:-1], 1, 1)
    intrinsics[..., :2, :2] = torch.diag_embed(focal)
    intrinsics[..., :2, 2] = middle
    return pack_label(cam2world, intrinsics).float()
