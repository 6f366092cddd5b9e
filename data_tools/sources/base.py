"""What every reader hands over: pictures with poses in the source's own world and lenses in the
source's own units.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dnnlib.console import UserError, brief
from training.data.files import DataFiles, shown
from training.data.traits import Traits

Array = NDArray[np.float64]
CameraAxes = Literal["opencv", "opengl"]
PoseKind = Literal["cam2world", "world2cam"]
Unit = Literal["normalised", "pixels"]
AngleUnit = Literal["degrees", "radians"]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
LARGEST_NUMBER = 1e30  # as in training/data/labels.py, which needs torch
# a rotation this far from orthonormal was written with few digits; farther, it is none
ROUNDING = 0.02
SIZE_TOLERANCE = 0.01  # of proportions and focal lengths that a source gives twice
OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Lens:
    """A pinhole camera as its source states it.

    Attributes:
        fx, fy: focal lengths; one of them None = the pixels are square.
        cx, cy: principal point; None = the middle. skew: of the sensor's axes.
        unit: "normalised" (fx, skew, cx by the picture's width, fy, cy by its height) or "pixels".
        size: (width, height) the numbers refer to, which may not be the file's; None = the file's.
        angles: fields of view in x and y, radians, that the source gives beside the focal lengths.
    """

    fx: float | None
    fy: float | None = None
    cx: float | None = None
    cy: float | None = None
    skew: float = 0.0
    unit: Unit = "pixels"
    size: tuple[float, float] | None = None
    angles: tuple[float | None, float | None] = (None, None)

    def contradiction(self, width: int, height: int) -> str | None:
        """What the source says in two ways about a whole picture of that size, if they differ."""
        if self.size:
            w, h = self.size
            if abs(height - h * width / w) > 1 + SIZE_TOLERANCE * height:
                return (
                    f"is {width}x{height} but its camera is for {w:g}x{h:g} pixels; correct the"
                    " camera's size, or scale or turn the picture"
                )
        matrix = self.matrix(width, height)
        for axis, angle in enumerate(self.angles):
            focal = matrix[axis, axis]
            if angle and abs(0.5 / math.tan(angle / 2) / focal - 1) > SIZE_TOLERANCE:
                name, own = "xy"[axis], 2 * math.atan(0.5 / focal)
                return (
                    f"has a camera_angle_{name} of {angle:.5g} but its fl_{name} gives {own:.5g};"
                    " remove the wrong one"
                )
        return None

    def matrix(self, width: int, height: int) -> Array:
        """Normalised intrinsics (3, 3) for a whole picture of that size."""
        w, h = self.size or (width, height)
        scale_x, scale_y = (1 / w, 1 / h) if self.unit == "pixels" else (1.0, 1.0)
        if self.fx is None:
            fy = (self.fy or 0.0) * scale_y
            fx = fy * h / w
        else:
            fx = self.fx * scale_x
            fy = fx * w / h if self.fy is None else self.fy * scale_y
        cx = 0.5 if self.cx is None else self.cx * scale_x
        cy = 0.5 if self.cy is None else self.cy * scale_y
        return np.array([[fx, self.skew * scale_x, cx], [0, fy, cy], [0, 0, 1]])


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture: its file, camera-to-world matrix (4, 4) with OpenCV axes in the source's world,
    and lens.
    """

    name: str
    cam2world: Array
    lens: Lens


@dataclass(eq=False)
class Source:
    """Pictures with cameras.

    Attributes:
        kind: the format. up: the world's upward axis ("x" .. "-z"), "nearest" = the axis the
            cameras agree with, "cameras" = whatever direction they agree on. arbitrary: whether
            place and scale of the world mean nothing.
        upright: whether the cameras belong to pictures that are turned as their EXIF data say; None
            = whichever fits the lens.
        notes: one line each on what was not used. left_out: pictures that could not be read, with
            the reasons (`--skip-bad`). traits: of the pictures, where the source knows them.
    """

    kind: str
    files: DataFiles
    frames: list[Frame]
    up: str = "y"
    arbitrary: bool = False
    upright: bool | None = None
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    traits: Traits | None = None


@dataclass(frozen=True)
class ReadOptions:
    """What a reader cannot know. None = the format's own convention.

    Attributes:
        camera_axes, poses, intrinsics: how numbers in dataset.json, transforms.json or pose files
            are meant.
        angles: unit of a CSV's yaw and pitch (degrees). radius, focal, pivot: for columns that a
            CSV lacks. skip_bad: leave out pictures whose camera or file is missing or damaged.
    """

    camera_axes: CameraAxes | None = None
    poses: PoseKind | None = None
    intrinsics: Unit | None = None
    angles: AngleUnit | None = None
    radius: float | None = None
    focal: float | None = None
    pivot: tuple[float, float, float] | None = None
    skip_bad: bool = False


@contextlib.contextmanager
def skipping(source: Source, options: ReadOptions) -> Iterator[None]:
    """Reading one picture's camera: with `--skip-bad`, what fails is noted and left out."""
    try:
        yield
    except UserError as error:
        if not options.skip_bad:
            raise
        source.left_out.append(str(error))


def pose(matrix: Array, options: ReadOptions, where: str, *, axes: CameraAxes) -> Array:
    """Camera-to-world matrix (4, 4) with OpenCV axes from a source's matrix (3, 4) or (4, 4), its
    rotation freed of rounding errors.

    Raises:
        UserError: naming `where`, if it is no rigid motion.
    """
    if not (np.abs(matrix) < LARGEST_NUMBER).all():
        raise UserError(
            f"{where} has NaN or infinite numbers in its pose; estimate its camera again or leave"
            " the picture out"
        )
    full: Array = np.eye(4)
    full[: len(matrix)] = matrix
    if np.abs(full[3] - (0, 0, 0, 1)).max() > ROUNDING:
        raise UserError(
            f"{where}: the last row of its pose is not 0 0 0 1; write the matrix row by row"
        )
    full[3] = 0, 0, 0, 1
    full[:3, :3] = _rotation(full[:3, :3], where)
    if options.poses == "world2cam":
        full[:3, 3] = -full[:3, :3].T @ full[:3, 3]
        full[:3, :3] = full[:3, :3].T.copy()
    return full @ OPENGL_TO_OPENCV if (options.camera_axes or axes) == "opengl" else full


def _rotation(matrix: Array, where: str) -> Array:
    """The rotation nearest to `matrix` (3, 3)."""
    left, scales, right = np.linalg.svd(matrix)
    if np.abs(scales - 1).max() > ROUNDING:
        raise UserError(
            f"{where}: the rotation of its pose is not orthonormal; take scale and shear out of the"
            " matrix"
        )
    if np.linalg.det(matrix) < 0:
        raise UserError(
            f"{where}: the rotation of its pose has determinant -1; the axes are left-handed,"
            " negate one of them"
        )
    return matrix if np.abs(matrix @ matrix.T - np.eye(3)).max() < 1e-6 else left @ right


def number(value: object, where: str) -> float:
    """A number from JSON or text that is finite and not absurd.

    Raises:
        UserError: naming `where`.
    """
    try:
        result = (
            float(value)
            if isinstance(value, (int, float, str)) and not isinstance(value, bool)
            else math.nan
        )
    except (ValueError, OverflowError):
        result = math.nan
    if not abs(result) < LARGEST_NUMBER:
        raise UserError(f"{where} is {shown(brief(value))!r}, which is no usable number")
    return result


def number_grid(text: str, where: str) -> list[list[float]]:
    """Numbers of a text file, line by line, empty lines left out."""
    return [
        [number(word, where) for word in line.replace(",", " ").split()]
        for line in text.splitlines()
        if line.strip()
    ]
