"""What the labels say about the scene: the cameras' orbit, the box around the object, the
background (SPEC section 4, `--cfg auto`).

Angles are radians, lengths world units, colours in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.console import UserError
from training.cameras import (
    FFHQ_FOCAL,
    LABEL_SIZE,
    look_at_pose,
    nearest_point_to_rays,
    pack_label,
    unpack_label,
    viewing_rays,
)
from training.config.settings import RenderingConfig
from training.data.dataset import ImageDataset
from training.networks.generator import Generator

KEPT_POSES = 1000
BORDER_PICTURES = 500
BOX_PER_VIEW = 1.2  # box side in visible widths
BACKGROUND_SHARE = 0.9  # of border pixels that must agree ...
BACKGROUND_TOLERANCE = 4  # ... to this many of 255 levels
# of the box side; portraits look at a point 0.28 of it before the middle of the head
OFF_CENTRE = 0.35
# mean resultant length of the yaws; below, cameras go all around and no side is the front
CONCENTRATED = 0.5
RANGE_QUANTILES = (0.01, 0.99)  # a few misjudged poses must not widen every video
DEFAULT_YAW_RANGE = (-0.5, 0.5)  # where nothing but an orbit is known (released snapshots)
DEFAULT_PITCH_RANGE = (-0.25, 0.25)

# radius of the orbit in box sides where a checkpoint knows no cameras, as for the published face
# models
ORBIT_PER_BOX = 2.7

Vector = tuple[float, float, float]


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
            poses=labels[_fixed_choice(len(labels), KEPT_POSES)].float().clone(),
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
                f"the checkpoint's camera summary is damaged ({error}); take another checkpoint or"
                " give --data"
            ) from error
        return summary

    def label(self, yaw_radians: Tensor | float, pitch_radians: Tensor | float) -> Tensor:
        """Label (..., 25) of the orbit's camera at two angles (numbers, or tensors of one shape
        (...)).
        """
        a, b = torch.broadcast_tensors(
            torch.as_tensor(yaw_radians, dtype=torch.float64),
            torch.as_tensor(pitch_radians, dtype=torch.float64),
        )
        direction = torch.stack([a.sin() * b.cos(), b.sin(), a.cos() * b.cos()], dim=-1)
        position = torch.tensor(self.center, dtype=torch.float64) + self.radius * direction
        cam2world = look_at_pose(position, torch.tensor(self.pivot, dtype=torch.float64))
        return pack_label(
            cam2world, torch.tensor(self.intrinsics, dtype=torch.float64).reshape(3, 3)
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


def cameras_of(generator: Generator) -> CameraSummary:
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


def _fixed_choice(count: int, limit: int) -> np.ndarray:
    """At most `limit` of `count` indices, ascending, the same every time.

    Random rather than every k-th: pictures often come in groups of equal order (the views of one
    object).
    """
    return np.sort(np.random.RandomState(0).permutation(count)[:limit])


# --------------------------------------------------------------------------------------------------
# Scene settings from data


@dataclass(eq=False)
class SceneFit:
    """Scene settings that suit a data set, and one-line `notes` on what looks odd about its
    cameras.
    """

    cameras: CameraSummary
    box_warp: float
    background: Vector | None
    notes: list[str] = field(default_factory=list)


def fit_scene(labels: Tensor, images: Tensor) -> SceneFit:
    """Scene settings from camera labels (M, 25) and some of the pictures (N, 3, H, W), uint8.

    Raises:
        UserError: if the cameras do not look at a common point from outside.
    """
    cameras = CameraSummary.from_labels(labels)
    box_warp = BOX_PER_VIEW * cameras.radius / cameras.intrinsics[0]
    origins, directions = viewing_rays(unpack_label(labels.double())[0])
    to_pivot = torch.tensor(cameras.pivot, dtype=torch.float64) - origins
    along = (to_pivot * directions).sum(-1)
    if along.median() <= 1e-6:
        raise UserError(
            "the cameras do not look at a common point; choose the scene by hand: --cfg or --set"
            " rendering.box_warp=SIZE"
        )
    miss = float((to_pivot - along[:, None] * directions).norm(dim=-1).median())
    return SceneFit(cameras, box_warp, fit_background(images), _notes(cameras, box_warp, miss))


def fit_dataset_scene(dataset: ImageDataset) -> SceneFit:
    """`fit_scene` of a data set, with the border pixels of up to 500 pictures."""
    return fit_scene(
        dataset.labels, dataset.read(_fixed_choice(len(dataset.file_names), BORDER_PICTURES))[0]
    )


def apply_scene(rendering: RenderingConfig, fit: SceneFit) -> None:
    """Write the fitted box and background into `rendering`, with near and far limits taken from the
    box.
    """
    rendering.box_warp = fit.box_warp
    rendering.ray_start = rendering.ray_end = "auto"
    rendering.background = fit.background


def fit_background(images: Tensor) -> Vector | None:
    """Colour on which at least 90 % of all border pixels of `images` (N, 3, H, W), uint8, agree
    within 4/255, or None.
    """
    ring = torch.ones(images.shape[-2:], dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    border = images[:, :, ring].permute(0, 2, 1).reshape(-1, 3).numpy()
    centre = np.array([_best_level(channel) for channel in border.T])
    agreeing = border[(np.abs(border.astype(int) - centre) <= BACKGROUND_TOLERANCE).all(1)]
    if len(agreeing) < BACKGROUND_SHARE * len(border):
        return None
    red, green, blue = np.median(agreeing, axis=0) / 255
    return float(red), float(green), float(blue)


def _best_level(values: np.ndarray) -> int:
    """Level with the most of `values` (P,), uint8, within the tolerance."""
    counts = np.bincount(values, minlength=256)
    return int(
        np.convolve(counts, np.ones(2 * BACKGROUND_TOLERANCE + 1, dtype=int), mode="same").argmax()
    )


def _notes(cameras: CameraSummary, box_warp: float, miss: float) -> list[str]:
    """What the box, centred at the world's origin, may not fit; `miss` is the optical axes' median
    distance to the pivot.
    """
    notes = []
    if np.linalg.norm(cameras.pivot) > OFF_CENTRE * box_warp:
        where = f"({', '.join(f'{value:.3g}' for value in cameras.pivot)})"
        notes.append(
            f"the cameras look at {where}, far off the middle of a box of side {box_warp:.3g};"
            " shift the poses or set rendering.box_warp"
        )
    if miss > box_warp / 4:
        notes.append(
            f"the cameras' axes miss their common point by {miss:.3g} (median) in a box of side"
            f" {box_warp:.3g}; are the poses right?"
        )
    return notes
