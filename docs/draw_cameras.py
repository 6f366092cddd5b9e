"""Draws docs/media/cameras.png: python docs/draw_cameras.py. Every camera in it is computed by
training/cameras.py.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parents[1]))

from training.cameras import mirror_label, orbit_pose, pack_label, pinhole_intrinsics, unpack_label

Array = NDArray[np.float64]
Project = Callable[[Sequence[float] | Array], Array]
Colour = tuple[int, int, int]

TARGET = Path(__file__).parent / "media" / "cameras.png"
WIDTH, HEIGHT = 1240, 960
SUPERSAMPLING = 3
YAW, PITCH, RADIUS = 30.0, 25.0, 2.7

BLACK, GREY, PALE, ORANGE = (30, 30, 30), (120, 120, 120), (205, 205, 205), (200, 110, 0)
AXIS_COLOURS: tuple[Colour, ...] = ((200, 40, 40), (30, 140, 60), (40, 80, 200))


class Canvas:
    """Lines, arrows and text in units of final pixels, drawn larger and reduced."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING), "white")
        self.draw = ImageDraw.Draw(self.image)

    def line(
        self, points: Sequence[Array], colour: Colour = BLACK, width: float = 1.5, dash: float = 0
    ) -> None:
        """Connected straight lines; `dash` is the length of dashes and gaps, 0 for a solid line."""
        for start, end in pairwise(points):
            count = max(int(np.hypot(*(end - start)) / dash), 1) if dash else 1
            for index in range(0, count, 2):
                self._stroke(
                    start + (end - start) * index / count,
                    start + (end - start) * min(index + 1, count) / count,
                    colour,
                    width,
                )

    def arrow(self, start: Array, end: Array, colour: Colour = BLACK, width: float = 2.0) -> None:
        """A line with a head at `end`."""
        self._stroke(start, end, colour, width)
        along = (end - start) / max(np.hypot(*(end - start)), 1e-9)
        across = np.array([-along[1], along[0]])
        corners = [end + along * 3, end - along * 9 + across * 4.5, end - along * 9 - across * 4.5]
        self.draw.polygon([tuple(corner * SUPERSAMPLING) for corner in corners], fill=colour)

    def dot(self, centre: Array, radius: float, colour: Colour = BLACK) -> None:
        """A filled disc."""
        low, high = (centre - radius) * SUPERSAMPLING, (centre + radius) * SUPERSAMPLING
        self.draw.ellipse([*low, *high], fill=colour)

    def text(
        self, place: Array, text: str, colour: Colour = BLACK, size: float = 17, anchor: str = "mm"
    ) -> None:
        """Text at `place`; `anchor` as in Pillow."""
        font = ImageFont.load_default(size * SUPERSAMPLING)
        self.draw.text(tuple(place * SUPERSAMPLING), text, fill=colour, font=font, anchor=anchor)

    def save(self, path: Path) -> None:
        """Write a PNG of few colours."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).quantize(
            64, dither=Image.Dither.NONE
        ).save(path, optimize=True)

    def _stroke(self, start: Array, end: Array, colour: Colour, width: float) -> None:
        points = [tuple(start * SUPERSAMPLING), tuple(end * SUPERSAMPLING)]
        self.draw.line(points, fill=colour, width=round(width * SUPERSAMPLING))


def at(x: float, y: float) -> Array:
    """A place on the canvas."""
    return np.array([x, y], dtype=np.float64)


def degrees_pose(yaw: float, pitch: float, radius: float) -> Array:
    """Camera-to-world matrix (4, 4) of an orbit camera."""
    return orbit_pose(math.radians(yaw), math.radians(pitch), radius).double().numpy()


def view_from(yaw: float, pitch: float, scale: float, origin: Array) -> Project:
    """Parallel projection of world points to the canvas, as seen from an orbit position."""
    rotation = degrees_pose(yaw, pitch, 1.0)[:3, :3]

    def project(point: Sequence[float] | Array) -> Array:
        # x right, y down, as on the canvas
        in_view = np.asarray(point, dtype=np.float64) @ rotation
        return origin + scale * in_view[:2]

    return project


def draw_camera(
    canvas: Canvas,
    project: Project,
    cam2world: Array,
    depth: float,
    half: float,
    axis: float,
    names: str = "xyz",
) -> None:
    """Frustum of a camera up to `depth`, of half width `half` there, and the named camera axes."""
    position, rotation = cam2world[:3, 3], cam2world[:3, :3]
    corners = [
        position + rotation @ [sx * half, sy * half, depth]
        for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]
    for corner in corners:
        canvas.line([project(position), project(corner)], GREY, 1.2)
    canvas.line([project(corner) for corner in [*corners, corners[0]]], GREY, 1.2)
    for index, name in enumerate("xyz"):
        if name in names:
            end = position + rotation[:, index] * axis
            canvas.arrow(project(position), project(end), AXIS_COLOURS[index], 2.6)
            canvas.text(
                project(position + rotation[:, index] * axis * 1.2), name, AXIS_COLOURS[index], 19
            )
    canvas.dot(project(position), 4)


def orbit_panel(canvas: Canvas) -> None:
    """The world's axes, the box and one camera on the orbit."""
    canvas.text(at(30, 28), "1. World and orbit", size=21, anchor="lm")
    canvas.text(
        at(30, 54),
        "camera axes (OpenCV): x right, y down, z forward; world: y up; drawn: yaw 30, pitch 25",
        GREY,
        15,
        "lm",
    )
    project = view_from(-50, 24, 118, at(205, 300))
    cube = [[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]
    for first in cube:
        for second in cube:
            if sum(a != b for a, b in zip(first, second, strict=True)) == 1:
                canvas.line([project(first), project(second)], PALE, 1)
    canvas.text(project([-0.5, -0.5, -0.5]) + at(0, 22), "box, side box_warp", GREY, 15)
    world = (
        ([1.2, 0, 0], "x", at(6, -14)),
        ([0, 1.55, 0], "y (up)", at(0, -14)),
        ([0, 0, 3.2], "z", at(12, 10)),
    )
    for tip, name, shift in world:
        canvas.arrow(project([0, 0, 0]), project(tip), BLACK, 2)
        canvas.text(project(tip) + shift, name, size=19)
    cam2world = degrees_pose(YAW, PITCH, RADIUS)
    orbit = [project(degrees_pose(yaw, 0, RADIUS)[:3, 3]) for yaw in range(-25, 86, 3)]
    canvas.line(orbit, PALE, 1.5)
    angles_and_radius(canvas, project, cam2world)
    draw_camera(canvas, project, cam2world, depth=0.75, half=0.25, axis=0.62)


def angles_and_radius(canvas: Canvas, project: Project, cam2world: Array) -> None:
    """Arcs of yaw and pitch, and the optical axis from the camera to the pivot."""
    origin, foot = project([0, 0, 0]), project(degrees_pose(YAW, 0, RADIUS)[:3, 3])
    canvas.line([origin, foot], GREY, 1.2, dash=6)
    canvas.line([project(cam2world[:3, 3]), origin], GREY, 1.2, dash=6)
    yaws = [project(degrees_pose(yaw, 0, 1.7)[:3, 3]) for yaw in np.linspace(0, YAW, 12)]
    pitches = [
        project(degrees_pose(YAW, pitch, RADIUS)[:3, 3]) for pitch in np.linspace(0, PITCH, 12)
    ]
    for arc in (yaws, pitches):
        canvas.line(arc[:-1], ORANGE, 2)
        canvas.arrow(arc[-2], arc[-1], ORANGE, 2)
    canvas.text(project(degrees_pose(YAW / 2, 0, 1.95)[:3, 3]), "yaw", ORANGE, 17)
    canvas.text(pitches[2] + at(12, 4), "pitch", ORANGE, 17, "lm")
    canvas.text(project(cam2world[:3, 3] * 0.55) + at(6, 18), "radius", GREY, 15)


def pixel_panel(canvas: Canvas) -> None:
    """Pixel centres of a 4 x 4 picture."""
    canvas.text(at(690, 28), "2. Picture: pixel centres", size=21, anchor="lm")
    canvas.text(
        at(690, 54), "pixel (i, j) of n x n: u = (j + 0.5) / n, v = (i + 0.5) / n", GREY, 15, "lm"
    )
    left, top, side, n = 770, 120, 300, 4
    cell, (i, j) = side / n, (1, 2)
    corner = at(left + j * cell, top + i * cell) * SUPERSAMPLING
    canvas.draw.rectangle([*corner, *(corner + cell * SUPERSAMPLING)], fill=(255, 236, 205))
    for k in range(n + 1):
        canvas.line([at(left + k * cell, top), at(left + k * cell, top + side)], PALE)
        canvas.line([at(left, top + k * cell), at(left + side, top + k * cell)], PALE)
    for index in range(n * n):
        canvas.dot(at(left + (index % n + 0.5) * cell, top + (index // n + 0.5) * cell), 3, GREY)
    canvas.arrow(at(left, top), at(left + side + 45, top), AXIS_COLOURS[0])
    canvas.arrow(at(left, top), at(left, top + side + 40), AXIS_COLOURS[1])
    canvas.text(at(left + side + 62, top), "u", AXIS_COLOURS[0], 19)
    canvas.text(at(left, top + side + 54), "v", AXIS_COLOURS[1], 19)
    canvas.text(at(left - 14, top - 12), "0", size=16)
    canvas.text(at(left + side, top - 14), "1", size=16)
    canvas.text(at(left - 14, top + side), "1", size=16)
    canvas.text(at(left + 2.5 * cell, top + 1.5 * cell - 18), "i = 1, j = 2", size=13)
    canvas.text(at(left + 2.5 * cell, top + 1.5 * cell + 18), "(0.625, 0.375)", size=11)
    canvas.line(
        [at(left + side / 2 - 9, top + side / 2), at(left + side / 2 + 9, top + side / 2)],
        ORANGE,
        2.5,
    )
    canvas.line(
        [at(left + side / 2, top + side / 2 - 9), at(left + side / 2, top + side / 2 + 9)],
        ORANGE,
        2.5,
    )
    canvas.text(at(left + side + 16, top + side / 2), "(cx, cy) = (0.5, 0.5)", ORANGE, 15, "lm")


def intrinsics_panel(canvas: Canvas) -> None:
    """A pinhole camera from above."""
    canvas.text(at(30, 508), "3. Intrinsics, in units of the picture's width", size=21, anchor="lm")
    canvas.text(at(30, 534), "seen from above; a larger fx is a narrower view", GREY, 15, "lm")
    camera, unit = at(70, 735), 210.0
    fx, u = 1.7, 0.78
    plane = camera[0] + fx * unit
    canvas.arrow(camera, at(plane + 130, camera[1]), AXIS_COLOURS[2])
    canvas.text(at(plane + 146, camera[1]), "z", AXIS_COLOURS[2], 19)
    canvas.arrow(camera, at(camera[0], camera[1] + 90), AXIS_COLOURS[0])
    canvas.text(at(camera[0], camera[1] + 106), "x", AXIS_COLOURS[0], 19)
    for edge in (-0.5, 0.5):
        canvas.line([camera, camera + at(fx, edge) * unit], GREY, 1.2)
        canvas.text(
            at(plane - 4, camera[1] + edge * unit + 16 * np.sign(edge)),
            f"u = {edge + 0.5:.0f}",
            size=15,
        )
    canvas.line([at(plane, camera[1] - unit / 2), at(plane, camera[1] + unit / 2)], BLACK, 2.5)
    canvas.line([camera, camera + at(fx, u - 0.5) * unit * 1.07], ORANGE, 2)
    canvas.dot(at(plane, camera[1] + (u - 0.5) * unit), 4, ORANGE)
    canvas.text(at(plane - 10, camera[1] + (u - 0.5) * unit + 13), "u", ORANGE, 17)
    canvas.text(at(plane + 12, camera[1] - 14), "u = cx", size=15, anchor="lm")
    canvas.text(
        at(plane + 34, camera[1] + (u - 0.5) * unit), "x / z = (u - cx) / fx", ORANGE, 16, "lm"
    )
    low = camera[1] - unit / 2 - 44
    for start, end in ((camera[0], plane), (plane, camera[0])):
        canvas.arrow(at(start, low), at(end, low), GREY, 1.3)
    canvas.text(at((camera[0] + plane) / 2, low - 14), "fx", size=17)
    canvas.text(at(plane - 14, camera[1] - unit * 0.3), "1", size=17)
    canvas.text(at(30, 890), "visible width at distance d: d / fx", BLACK, 16, "lm")
    canvas.text(
        at(30, 916), "field of view: 2 atan(1 / (2 fx));  FFHQ: fx = fy = 4.2647", BLACK, 16, "lm"
    )


def mirror_panel(canvas: Canvas) -> None:
    """A camera and its mirror image, from above."""
    canvas.text(at(690, 508), "4. Mirrored picture, mirrored camera", size=21, anchor="lm")
    canvas.text(
        at(690, 534),
        "seen from above: M -> F M F with F = diag(-1, 1, 1, 1), cx -> 1 - cx, s -> -s",
        GREY,
        15,
        "lm",
    )
    origin, scale = at(935, 640), 92.0

    def project(point: Sequence[float] | Array) -> Array:
        return origin + scale * at(point[0], point[2])

    canvas.line([at(origin[0], 570), at(origin[0], 930)], ORANGE, 1.5, dash=7)
    canvas.text(at(origin[0] + 8, 578), "x = 0", ORANGE, 15, "lm")
    canvas.arrow(project([0, 0, 0]), project([2.2, 0, 0]))
    canvas.arrow(project([0, 0, 0]), project([0, 0, 1.2]))
    canvas.text(project([2.35, 0, 0]), "x", size=19)
    canvas.text(project([0.14, 0, 1.3]), "z", size=19)
    label = pack_label(orbit_pose(math.radians(YAW), 0.0, RADIUS), pinhole_intrinsics(2.0))
    for c, text, shift in (
        (label, "yaw 30", at(40, 34)),
        (mirror_label(label), "yaw -30", at(-50, 34)),
    ):
        cam2world = unpack_label(c)[0].double().numpy()
        canvas.line([project(cam2world[:3, 3]), project([0, 0, 0])], PALE, 1.2, dash=6)
        draw_camera(canvas, project, cam2world, depth=0.7, half=0.26, axis=0.8, names="xz")
        canvas.text(project(cam2world[:3, 3]) + shift, text, size=16)


def main() -> None:
    """Draw the four panels."""
    canvas = Canvas()
    for panel in (orbit_panel, pixel_panel, intrinsics_panel, mirror_panel):
        panel(canvas)
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    canvas.save(target)
    print(f"wrote {target.name}")


if __name__ == "__main__":
    main()
