"""Pictures of a data set's cameras: all of them in the world, and the world's axes drawn into the
data's pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_tools.check.check import CheckedData
from data_tools.sources.base import Array
from data_tools.world import look_at_point
from dnnlib.console import UserError
from dnnlib.files import atomic_write, make_dir
from dnnlib.numbers import counted
from training.cameras import BOX_PER_VIEW, orbit_pose
from training.data.files import DataFiles, shown
from training.data.pictures import open_picture

Project = Callable[[Array], Array]
Colour = tuple[int, int, int]

PANEL, TILE, TILES = 760, 220, 36
SUPERSAMPLING = 2
FRUSTUMS = 150  # cameras drawn with their pyramids; more would hide each other
BLACK, GREY, PALE = (30, 30, 30), (140, 140, 140), (205, 205, 205)
AXIS_COLOURS: tuple[Colour, ...] = ((220, 50, 50), (40, 170, 70), (60, 100, 230))
VIEWS = (
    (-35.0, 25.0, "from the front, a little above"),
    (0.0, 89.99, "from above; the front (+z) is below"),
)


def draw_checked(data: CheckedData, folder: Path) -> list[Path]:
    """Write cameras.png and contact.png into `folder`, from the labels that could be read.

    Raises:
        UserError: if there are no cameras to draw, or the folder cannot be written.
    """
    if not data.labels:
        raise UserError(f"{data.path} has no camera that could be drawn")
    labels = np.stack(list(data.labels.values()))
    box = box_side(labels)
    folder = make_dir(folder)
    pictures = {"cameras.png": draw_world(labels, box), "contact.png": draw_contact(data, box)}
    for name, picture in pictures.items():
        with atomic_write(folder / name) as file:
            picture.save(file, "PNG")
    return [folder / name for name in pictures]


def box_side(labels: Array) -> float:
    """Side of the box that a model of labels (M, 25) would span, as `--cfg auto` chooses it."""
    _, radius = look_at_point(labels[:, :16].reshape(-1, 4, 4))
    focal = float(np.median(labels[:, 16]))
    return BOX_PER_VIEW * radius / focal if 0 < focal < 100 else radius / 2


def draw_world(labels: Array, box: float) -> Image.Image:
    """All cameras of labels (M, 25), the world's axes and the model's box, from two sides."""
    cam2world = labels[:, :16].reshape(-1, 4, 4)
    size = PANEL * SUPERSAMPLING
    canvas = Image.new("RGB", (2 * size, size), "white")
    draw = ImageDraw.Draw(canvas)
    corners = np.concatenate([cam2world[:, :3, 3], _cube(box)])
    for panel, (yaw, pitch, title) in enumerate(VIEWS):
        project = _parallel_projection(yaw, pitch, corners, size, panel * size)
        _draw_box(draw, project, box, PALE)
        _draw_cameras(draw, project, labels, 0.08 * float(np.linalg.norm(np.ptp(corners, axis=0))))
        _draw_axes(draw, project, box * 0.75, 3 * SUPERSAMPLING)
        _write(
            draw,
            (panel * size + 12 * SUPERSAMPLING, 10 * SUPERSAMPLING),
            f"{counted(len(labels), 'camera')}, {title}",
            16,
        )
    return canvas.resize((2 * PANEL, PANEL), Image.Resampling.LANCZOS)


def _parallel_projection(yaw: float, pitch: float, points: Array, size: int, left: int) -> Project:
    """World points (..., 3) to the canvas, such that all of `points` (P, 3) fit into a square of
    `size` pixels.
    """
    rotation = orbit_pose(math.radians(yaw), math.radians(pitch), 1.0)[:3, :3].double().numpy()
    flat = points @ rotation[:, :2]
    low, high = flat.min(0), flat.max(0)
    scale = 0.84 * size / max(float((high - low).max()), 1e-9)

    def project(point: Array) -> Array:
        return (point @ rotation[:, :2] - (low + high) / 2) * scale + (left + size / 2, size / 2)

    return project


def _draw_cameras(
    draw: ImageDraw.ImageDraw, project: Project, labels: Array, length: float
) -> None:
    """Pyramids of up to `FRUSTUMS` cameras with a line for the optical axis, dots for the
    others.
    """
    chosen = set(np.linspace(0, len(labels) - 1, min(len(labels), FRUSTUMS)).astype(int).tolist())
    for index, label in enumerate(labels):
        cam2world = label[:16].reshape(4, 4)
        position, rotation = cam2world[:3, 3], cam2world[:3, :3]
        tip = project(position)
        if index in chosen:
            half = length * min(0.5 / max(label[16], 0.5), 0.5)
            corners = [
                position + rotation @ np.array([sx * half, sy * half, length])
                for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))
            ]
            for corner in corners:
                _line(draw, [tip, project(corner)], PALE)
            _line(draw, [project(corner) for corner in [*corners, corners[0]]], GREY)
            # The picture's upper edge, in the colour of up.
            _line(draw, [project(corners[0]), project(corners[1])], AXIS_COLOURS[1], 2)
        r = 2.0 * SUPERSAMPLING
        draw.ellipse([*(tip - r), *(tip + r)], fill=BLACK)


def draw_contact(data: CheckedData, box: float) -> Image.Image:
    """Up to `TILES` of the pictures with the world's axes and the model's box as their cameras see
    them.
    """
    names = [name for name in data.pictures if name in data.labels]
    chosen = [
        names[index] for index in np.linspace(0, len(names) - 1, min(len(names), TILES)).astype(int)
    ]
    columns = min(6, len(chosen))
    sheet = Image.new("RGB", (columns * TILE, -(-len(chosen) // columns) * TILE), "white")
    files = DataFiles(data.path)
    for index, name in enumerate(chosen):
        sheet.paste(
            _tile(files, name, data.labels[name], box),
            (index % columns * TILE, index // columns * TILE),
        )
    return sheet


def _tile(files: DataFiles, name: str, label: Array, box: float) -> Image.Image:
    side = TILE * SUPERSAMPLING
    try:
        picture = (
            open_picture(files.read(name), files.where(name))
            .convert("RGB")
            .resize((side, side), Image.Resampling.BICUBIC)
        )
    except (UserError, OSError, SyntaxError, ValueError):
        picture = Image.new("RGB", (side, side), GREY)  # the report names it
    draw = ImageDraw.Draw(picture)
    project = _camera_projection(label, side)
    _draw_box(draw, project, box, (255, 255, 255))
    _draw_axes(draw, project, box / 3, 3 * SUPERSAMPLING)
    _write(
        draw, (4 * SUPERSAMPLING, side - 16 * SUPERSAMPLING), shown(name)[-28:], 11, (255, 255, 0)
    )
    return picture.resize((TILE, TILE), Image.Resampling.LANCZOS)


def _camera_projection(label: Array, side: int) -> Project:
    """World points (..., 3) to pixels of a picture of `side` pixels; NaN for what is behind the
    camera.
    """
    world2cam = np.linalg.inv(label[:16].reshape(4, 4))
    intrinsics = label[16:25].reshape(3, 3)

    def project(point: Array) -> Array:
        in_camera = world2cam[:3, :3] @ point + world2cam[:3, 3]
        if in_camera[2] <= 0:
            return np.full(2, np.nan)
        return (intrinsics @ (in_camera / in_camera[2]))[:2] * side

    return project


def _cube(side: float) -> Array:
    return (
        np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]) * side
    )


def _draw_box(draw: ImageDraw.ImageDraw, project: Project, side: float, colour: Colour) -> None:
    corners = _cube(side)
    for index, first in enumerate(corners):
        for second in corners[index + 1 :]:
            if np.count_nonzero(first != second) == 1:
                _line(draw, [project(first), project(second)], colour)


def _draw_axes(draw: ImageDraw.ImageDraw, project: Project, length: float, width: int) -> None:
    for axis, (colour, name) in enumerate(zip(AXIS_COLOURS, "xyz", strict=True)):
        tip = project(np.eye(3)[axis] * length)
        _line(draw, [project(np.zeros(3)), tip], colour, width / SUPERSAMPLING)
        if np.isfinite(tip).all() and np.abs(tip).max() < 1e6:
            _write(draw, tip + 3 * SUPERSAMPLING, name, 15, colour)


def _line(
    draw: ImageDraw.ImageDraw, points: Sequence[Array], colour: Colour, width: float = 1
) -> None:
    """Connected straight lines, as far as they are in sight."""
    for start, end in pairwise(points):
        if np.isfinite([start, end]).all() and np.abs([start, end]).max() < 1e6:
            draw.line([tuple(start), tuple(end)], fill=colour, width=round(width * SUPERSAMPLING))


def _write(
    draw: ImageDraw.ImageDraw,
    place: Sequence[float] | Array,
    text: str,
    size: float,
    colour: Colour = BLACK,
) -> None:
    draw.text(
        (float(place[0]), float(place[1])),
        text,
        fill=colour,
        font=ImageFont.load_default(size * SUPERSAMPLING),
    )
