"""Camera labels, orbit poses and focal lengths (EG3D, section 4 and supplement; conventions drawn
in docs/cameras.md).

A camera label `c` has 25 numbers: the row-major 4x4 camera-to-world matrix, then the row-major 3x3
intrinsics normalised by the image size. Camera axes are OpenCV's (x right, y down, z forward); the
world's y axis points up. Every function takes and returns tensors with any leading batch
dimensions. Angles are radians unless named degrees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from dnnlib.console import UserError

Vector = tuple[float, float, float]

LABEL_SIZE = 25
FFHQ_FOCAL = 4.2647
SRN_CARS_FOCAL = 131.25 / 128  # of the ShapeNet cars of Scene Representation Networks
WORLD_UP = (0.0, 1.0, 0.0)
BOX_PER_VIEW = 1.2  # box side in visible widths
# radius of the orbit in box sides where a checkpoint knows no cameras, as for the published face
# models
ORBIT_PER_BOX = 2.7
KEPT_POSES = 1000
# mean resultant length of the yaws; below, cameras go all around and no side is the front
CONCENTRATED = 0.5
RANGE_QUANTILES = (0.01, 0.99)  # a few misjudged poses must not widen every video
DEFAULT_YAW_RANGE = (-0.5, 0.5)  # where nothing but an orbit is known (released snapshots)
DEFAULT_PITCH_RANGE = (-0.25, 0.25)


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
    pivot: Tensor | Vector = (0.0, 0.0, 0.0),
    center: Vector = (0.0, 0.0, 0.0),
) -> Tensor:
    """Camera-to-world matrices (..., 4, 4) of cameras on a sphere of `radius` around `center` that
    look at `pivot`.

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
    offset = torch.stack([a.sin() * b.cos(), b.sin(), a.cos() * b.cos()], dim=-1) * r[..., None]
    middle, target = (
        torch.as_tensor(point, dtype=offset.dtype, device=offset.device)
        for point in (center, pivot)
    )
    return look_at_pose(middle + offset, target)


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


# --------------------------------------------------------------------------------------------------
# The cameras of a data set, in short


def _centred(focal: float) -> tuple[float, ...]:
    """Nine intrinsics of a centred camera."""
    return (focal, 0.0, 0.5, 0.0, focal, 0.5, 0.0, 0.0, 1.0)


@dataclass(eq=False)
class CameraSummary:
    """The training data's cameras, as far as sampling, videos and metrics need them.

    A camera of the orbit sits at center + radius * (sin yaw cos pitch, sin pitch, cos yaw cos
    pitch) and looks at `pivot`. `intrinsics` are 9 numbers, row-major; `poses` (K, 25) are labels
    of the data.
    """

    radius: float
    pivot: Vector
    center: Vector = (0.0, 0.0, 0.0)
    intrinsics: tuple[float, ...] = _centred(FFHQ_FOCAL)
    yaw_range: tuple[float, float] = DEFAULT_YAW_RANGE
    pitch_range: tuple[float, float] = DEFAULT_PITCH_RANGE
    yaw: float = 0.0
    pitch: float = 0.0
    poses: Tensor = field(default_factory=lambda: torch.zeros(0, LABEL_SIZE))

    @classmethod
    def from_labels(cls, labels: Tensor) -> CameraSummary:
        """Summary of camera labels (M, 25).

        The pivot is the point nearest to all optical axes and the centre of the orbit; its radius
        is the median distance to it.
        """
        cam2world, _ = unpack_label(labels.double())
        origins, directions = viewing_rays(cam2world)
        pivot = nearest_point_to_rays(origins, directions)
        offsets = (origins - pivot).numpy()
        distances = np.linalg.norm(offsets, axis=1)
        yaw, yaw_range = _yaw_statistics(np.arctan2(offsets[:, 0], offsets[:, 2]))
        pitches = np.arcsin(np.clip(offsets[:, 1] / np.maximum(distances, 1e-12), -1, 1))
        return cls(
            radius=float(np.median(distances)),
            pivot=_vector(pivot),
            center=_vector(pivot),
            intrinsics=tuple(np.median(labels[:, 16:].double().numpy(), axis=0).tolist()),
            yaw_range=yaw_range,
            pitch_range=_span(pitches),
            yaw=yaw,
            pitch=float(pitches.mean()),
            poses=labels[fixed_choice(len(labels), KEPT_POSES)].float().clone(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values and one tensor, for checkpoints."""
        plain = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }
        return {**plain, "poses": self.poses.detach().cpu().float().clone()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CameraSummary:
        """The inverse of `to_dict`. Only `radius` and `pivot` are needed; a number `focal` may
        stand for `intrinsics`.

        Raises:
            UserError: for missing or unknown names and values of the wrong shape.
        """
        values = dict(values)
        if "focal" in values:
            values["intrinsics"] = _centred(values.pop("focal"))
        sizes = {"pivot": 3, "center": 3, "intrinsics": 9, "yaw_range": 2, "pitch_range": 2}
        try:
            for name, value in values.items():
                values[name] = (
                    _numbers(value, sizes[name])
                    if name in sizes
                    else value
                    if name == "poses"
                    else float(value)
                )
            summary = cls(**values)
            if summary.poses.shape[1:] != (LABEL_SIZE,):
                raise ValueError(f"poses have shape {tuple(summary.poses.shape)}")
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"the checkpoint's camera summary is damaged ({error}); take another checkpoint"
            ) from error
        return summary

    def label(
        self, yaw_radians: Tensor | Sequence[float] | float, pitch_radians: Tensor | float
    ) -> Tensor:
        """Label (..., 25) of the orbit's camera at two angles, whose shapes broadcast to (...)."""
        angles = (yaw_radians, pitch_radians)
        a, b = (torch.as_tensor(angle, dtype=torch.float64) for angle in angles)
        intrinsics = torch.tensor(self.intrinsics, dtype=torch.float64).reshape(3, 3)
        return pack_label(
            orbit_pose(a, b, self.radius, self.pivot, self.center), intrinsics
        ).float()

    def frontal_label(self) -> Tensor:
        """Label (25,) of the data's mean pose: what the mapping network is conditioned on when
        sampling, for every view.
        """
        return self.label(self.yaw, self.pitch)

    def default_yaws(self, count: int) -> list[float]:
        """`count` yaws, evenly over the data's range; around the full circle no view comes
        twice.
        """
        low, high = self.yaw_range
        if count == 1:
            return [self.yaw]
        if high - low > 2 * math.pi - 1e-6:
            return [low + (high - low) * (index + 0.5) / count for index in range(count)]
        return [low + (high - low) * index / (count - 1) for index in range(count)]

    def grid(self, yaws: int = 9, pitches: int = 3) -> Tensor:
        """Labels (yaws * pitches, 25) all over the data's range, those of one yaw together."""
        pitch = torch.linspace(*self.pitch_range, pitches, dtype=torch.float64).repeat(yaws)
        yaw = torch.tensor(self.default_yaws(yaws), dtype=torch.float64)
        return self.label(yaw.repeat_interleave(pitches), pitch)


def offset_labels(labels: Tensor, cameras: CameraSummary, turn: Tensor, shift: Tensor) -> Tensor:
    """Cameras (K, 25) turned and shifted (K, 3) each, in the tangent space of rigid motions.

    `turn` is in radians around the camera's right, down and forward axes, with the pivot as centre:
    pitch, yaw and roll. `shift` moves along these axes then, in units of the radius.
    """
    cam2world, intrinsics = unpack_label(labels)
    rotation, position = cam2world[:, :3, :3], cam2world[:, :3, 3]
    turns = torch.matrix_exp(_cross_matrices((rotation @ turn[:, :, None])[..., 0]))
    rotation, pivot = turns @ rotation, constant(cameras.pivot, labels)
    moved = pivot + (turns @ (position - pivot)[..., None])[..., 0]
    moved = moved + (rotation @ shift[..., None])[..., 0] * cameras.radius
    pose = torch.cat([torch.cat([rotation, moved[..., None]], 2), cam2world[:, 3:]], 1)
    return pack_label(pose, intrinsics)


def offsets_between(labels: Tensor, others: Tensor, cameras: CameraSummary) -> Tensor:
    """Turns and shifts (K, 6) that take cameras `labels` (K, 25) to `others` (K, 25): the inverse
    of `offset_labels`, for turns below 180 degrees.
    """
    (before, _), (after, _) = unpack_label(labels), unpack_label(others)
    pivot = constant(cameras.pivot, labels)
    turns = before[:, :3, :3].mT @ after[:, :3, :3]  # in the first camera's axes
    # the axis by the antisymmetric part, whose length is the sine of the angle
    axis = (
        torch.stack([turns[:, i, j] - turns[:, j, i] for i, j in ((2, 1), (0, 2), (1, 0))], 1) / 2
    )
    sine = axis.norm(dim=1, keepdim=True)
    cosine = (turns.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) - 1) / 2
    turn = axis * torch.atan2(sine, cosine) / sine.clamp(min=1e-12)
    turned = after[:, :3, :3] @ before[:, :3, :3].mT @ (before[:, :3, 3] - pivot)[..., None]
    shift = after[:, :3, :3].mT @ ((after[:, :3, 3] - pivot)[..., None] - turned)
    return torch.cat([turn, shift[..., 0] / cameras.radius], 1)


def constant(values: Sequence[float], like: Tensor) -> Tensor:
    """A tensor (N,) of some numbers, on the device of another, where no host waits for it."""
    return torch.stack([like.new_full((), value) for value in values])


def _cross_matrices(vectors: Tensor) -> Tensor:
    """Matrices (K, 3, 3) that take the cross product of vectors (K, 3) with what they multiply."""
    x, y, z = vectors.unbind(1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).unflatten(1, (3, 3))


class SceneBox(Protocol):
    """What `RenderingConfig` says about the box and the rays' limits."""

    box_warp: float
    ray_start: float | Literal["auto"]
    ray_end: float | Literal["auto"]


class HasCameras(Protocol):
    """A generator, as far as its cameras go."""

    cameras: dict[str, Any] | None

    @property
    def rendering(self) -> SceneBox:
        """The scene settings."""


def cameras_of(generator: HasCameras) -> CameraSummary:
    """Cameras of the training data; where the file tells none, an orbit around the box, which fills
    the picture.
    """
    if generator.cameras:
        return CameraSummary.from_dict(generator.cameras)
    rendering = generator.rendering
    radius = ORBIT_PER_BOX * rendering.box_warp
    if rendering.ray_start != "auto" and rendering.ray_end != "auto":
        radius = (rendering.ray_start + rendering.ray_end) / 2
    return CameraSummary.from_dict(
        {"radius": radius, "pivot": (0, 0, 0), "focal": BOX_PER_VIEW * radius / rendering.box_warp}
    )


def _numbers(values: Any, count: int) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != count:
        raise ValueError(f"{len(numbers)} numbers instead of {count}")
    return numbers


def _vector(point: Tensor) -> Vector:
    x, y, z = point.tolist()
    return x, y, z


def _span(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, RANGE_QUANTILES)
    return float(low), float(high)


def _yaw_statistics(yaws: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Mean yaw and range; the full circle with mean 0 where the cameras go around the object."""
    resultant = np.exp(1j * yaws).mean()
    if abs(resultant) <= CONCENTRATED:
        return 0.0, (-math.pi, math.pi)
    mean = float(np.angle(resultant))
    low, high = _span(np.angle(np.exp(1j * (yaws - mean))))
    return mean, (mean + low, mean + high)


def fixed_choice(count: int, limit: int) -> np.ndarray:
    """At most `limit` of `count` indices, ascending, the same every time.

    Random rather than every k-th: pictures often come in groups of equal order (the views of one
    object).
    """
    return np.sort(np.random.RandomState(0).permutation(count)[:limit])
