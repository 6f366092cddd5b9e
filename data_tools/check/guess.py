"""Guess the mistake behind implausible camera poses: wrong camera axes, inverted matrices, another
up axis or scale, an off-centre target.

Poses that are read in the right way agree with each other: the cameras look at one point in front
of them, which is near the origin, from a distance of a few units, upright. `reading_penalty` says
how far a set is from that; ways of reading it are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_tools.check.report import Report
from data_tools.sources.base import OPENGL_TO_OPENCV, Array
from data_tools.world import AXES, axis_scores, look_at_point, place, up_direction
from training.cameras import BOX_PER_VIEW, FFHQ_FOCAL, SRN_CARS_FOCAL
from training.config.presets import HEADS_FOCAL, HEADS_RADIUS, make_config

FEWEST = 4  # poses from which anything can be told
CLEARLY_BETTER = 1.5  # gap of penalties
CONVERGING = 0.5  # misses of the common point, in scatters of the positions
ONE_PLACE = 0.02  # scatter of the positions, in distances from the origin
USUAL_RADIUS = 2.0  # of published orbits, 1.3 to 2.7
CENTRED = 0.35  # distance of the common point from the origin, in box sides; FFHQ has 0.28
# of published scenes 0.7 to 2; wide phone lenses at the usual radius come to 6
USUAL_BOX = (0.3, 6.5)
RADIUS_TOLERANCE = 1.35
SHIFTED_UP, UPRIGHT = 0.3, 0.7
# Rigs whose focal length gives them away, with the radii of their orbits.
KNOWN_RIGS = (
    ("the face models' (FFHQ, AFHQ)", FFHQ_FOCAL, 2.7, 2.7),
    ("the built-in heads'", HEADS_FOCAL, HEADS_RADIUS, HEADS_RADIUS),
    ("the ShapeNet cars'", SRN_CARS_FOCAL, 1.3, 1.7),
)
FOCAL_TOLERANCE = 0.002
# side of a preset's box in visible widths; published scenes have 0.96 to 1.58
PRESET_BOX = (0.6, 2.5)


class Mistake(NamedTuple):
    """What poses look like: a code, a sentence, and the options of `dataset_tool.py convert` that
    mend it.
    """

    code: str
    message: str
    options: str


Reading = tuple[bool, bool]  # inverse matrices, OpenGL axes
READINGS: dict[Reading, Mistake] = {
    (False, True): Mistake(
        "opengl-axes",
        "the camera axes look like OpenGL's (y up, z backward): the cameras look away from the"
        " object",
        "--camera-axes opengl",
    ),
    (True, False): Mistake(
        "world2cam",
        "the matrices look like world-to-camera instead of camera-to-world",
        "--poses world2cam",
    ),
    (True, True): Mistake(
        "world2cam-opengl",
        "the matrices look like world-to-camera with OpenGL axes, instead of camera-to-world with"
        " OpenCV axes",
        "--poses world2cam --camera-axes opengl",
    ),
}


@dataclass(frozen=True)
class Rig:
    """Where a set of cameras looks: the common point, the median distance to it, whether there is
    one, and by how much it is missed.
    """

    point: Array
    radius: float
    converges: bool
    miss: float
    ahead: bool


def rig_of(cam2world: Array) -> Rig:
    """Summary of camera-to-world matrices (M, 4, 4). Where the cameras have no common point, the
    origin stands for it.
    """
    origins, forward = cam2world[:, :3, 3], cam2world[:, :3, 2]
    scatter = float(np.sqrt(((origins - origins.mean(0)) ** 2).sum(1).mean()))
    point, radius = look_at_point(cam2world)
    converges = bool(np.sqrt((_misses(origins, forward, point) ** 2).mean()) < CONVERGING * scatter)
    if not converges:
        point, radius = np.zeros(3), float(np.median(np.linalg.norm(origins, axis=1)))
    ahead = bool(np.median(((point - origins) * forward).sum(1)) > 0)
    return Rig(point, radius, converges, float(np.median(_misses(origins, forward, point))), ahead)


def _misses(origins: Array, forward: Array, point: Array) -> Array:
    """Distances (M,) of optical axes from a point."""
    offset = point - origins
    return np.linalg.norm(offset - (offset * forward).sum(1, keepdims=True) * forward, axis=1)


def read_as(cam2world: Array, reading: Reading) -> Array:
    """The cameras (M, 4, 4), if their matrices were inverted or had OpenGL axes."""
    inverse, opengl = reading
    matrices = np.asarray(np.linalg.inv(cam2world), dtype=np.float64) if inverse else cam2world
    return matrices @ OPENGL_TO_OPENCV if opengl else matrices


def reading_penalty(cam2world: Array) -> float:
    """How far cameras (M, 4, 4) are from a set that makes sense (0)."""
    rig = rig_of(cam2world)
    origins = cam2world[:, :3, 3]
    scatter, distance = (
        float(np.linalg.norm(origins.std(0))),
        float(np.median(np.linalg.norm(origins, axis=1))),
    )
    scores = axis_scores(cam2world)
    return sum(
        (
            4.0 * (not rig.ahead),
            2.5 * (not rig.converges) + min(rig.miss / max(rig.radius, 1e-9), 1.0),
            2.0 * (scatter < ONE_PLACE * distance),
            min(float(np.linalg.norm(rig.point)) / max(rig.radius, 1e-9), 2.0),
            min(abs(math.log(max(rig.radius, 1e-9) / USUAL_RADIUS)), 3.0),
            0.25 * (max(scores, key=lambda name: scores[name]) != "y"),
        )
    )


def best_reading(cam2world: Array) -> Reading:
    """The way of reading matrices (M, 4, 4) that makes the most sense; as they are, unless another
    is clearly better.
    """
    penalties = {
        reading: reading_penalty(read_as(cam2world, reading))
        for reading in ((False, False), *READINGS)
    }
    best = min(penalties, key=lambda reading: penalties[reading])
    return best if penalties[(False, False)] - penalties[best] > CLEARLY_BETTER else (False, False)


def guess_mistakes(cam2world: Array, focal: float | None, preset: str, report: Report) -> None:
    """Warn in `report` of what matrices (M, 4, 4) of a data set with median focal length `focal`
    look like.
    """
    if len(cam2world) < FEWEST:
        return
    apart = np.abs(cam2world - cam2world[0]).max((0, 1))
    apart[3] /= np.abs(cam2world[:, :3, 3]).max() or 1.0  # of places, in their own size
    if apart.max() < 1e-6:
        report.add(
            "warning",
            "one-camera",
            "all pictures have the same camera; nothing can be learnt about the other sides",
        )
        return
    reading = best_reading(cam2world)
    if reading in READINGS:
        _warn(report, READINGS[reading])
        cam2world = read_as(cam2world, reading)
    up = _upward(cam2world)
    if up != "y":
        where = "the direction in which the cameras stand upright" if up == "cameras" else up
        options = f"--up {up}" if not up.startswith("-") else f"--up={up}"
        _warn(
            report,
            Mistake("up", f"the world's upward axis looks like {where} instead of y", options),
        )
        cam2world = place(cam2world, up, recentre=False, radius=1.0, pivot=(0, 0, 0)).apply(
            cam2world
        )
    for mistake in _place_and_scale(rig_of(cam2world), focal, preset):
        _warn(report, mistake)


def _warn(report: Report, mistake: Mistake) -> None:
    report.add(
        "warning",
        mistake.code,
        mistake.message,
        mend=f"convert {mistake.options}",
        options=mistake.options,
    )


def _upward(cam2world: Array) -> str:
    """The upward axis that cameras (M, 4, 4) agree on: "y" unless another is clearly better;
    "cameras" if that is no axis.
    """
    scores = axis_scores(cam2world)
    mean_up = -cam2world[:, :3, 1].mean(0)
    direction = up_direction(cam2world)
    score = float(mean_up @ direction - np.sqrt(((cam2world[:, :3, 0] @ direction) ** 2).mean()))
    if score - scores["y"] < SHIFTED_UP or mean_up[1] > SHIFTED_UP + 0.2:
        return "y"
    best = max(scores, key=lambda name: scores[name])
    if scores[best] - scores["y"] < SHIFTED_UP:
        return "y"
    return best if direction @ np.array(AXES[best]) > 0.95 or scores[best] > UPRIGHT else "cameras"


def _place_and_scale(rig: Rig, focal: float | None, preset: str) -> Iterator[Mistake]:
    """What does not fit the model's box around the origin."""
    box = BOX_PER_VIEW * rig.radius / focal if focal else rig.radius
    offset = float(np.linalg.norm(rig.point))
    scale = _scale(rig, focal, box, preset) if focal else None
    # Recentring without a radius would choose one.
    recentre = "--recentre " + (scale.options if scale else f"--radius {rig.radius:.4g}")
    if rig.converges and offset > CENTRED * box:
        where = ", ".join(f"{value:.3g}" for value in rig.point)
        message = (
            f"the cameras look at ({where}), far from the origin, around which the model's box of"
            f" side {box:.3g} lies"
        )
        yield Mistake("off-centre", message, recentre)
    elif rig.miss > 0.5 * box or not rig.ahead:
        message = (
            f"the cameras look past the origin, by {rig.miss:.3g} (median), where the model's box"
            f" of side {box:.3g} lies"
        )
        yield Mistake("misses", message, recentre)
    if scale:
        yield scale


def _scale(rig: Rig, focal: float, box: float, preset: str) -> Mistake | None:
    if preset != "auto":
        return _preset_scale(rig, focal, preset)
    for owner, its_focal, low, high in KNOWN_RIGS:
        if abs(focal / its_focal - 1) < FOCAL_TOLERANCE:
            if low / RADIUS_TOLERANCE < rig.radius < high * RADIUS_TOLERANCE:
                return None
            message = (
                f"the focal length {focal:.4g} is {owner}, but the orbit's radius {rig.radius:.4g}"
                f" is not about {high:g}"
            )
            return Mistake("scale", message, f"--radius {high:g}")
    if USUAL_BOX[0] < box < USUAL_BOX[1]:
        return None
    message = f"the model's box would have a side of {box:.3g}; settings are made for about 1"
    return Mistake("scale", message, f"--radius {focal / BOX_PER_VIEW:.3g}")


def _preset_scale(rig: Rig, focal: float, preset: str) -> Mistake | None:
    """Whether the published scene of a preset suits the cameras: its depths hold the object, its
    box fills the view.
    """
    rendering = make_config(preset, 64, "published").model.rendering  # type: ignore[arg-type]
    near, far = rendering.ray_start, rendering.ray_end
    fills = PRESET_BOX[0] < rendering.box_warp * focal / rig.radius < PRESET_BOX[1]
    depths, radius = "", rendering.box_warp * focal / BOX_PER_VIEW
    if near != "auto" and far != "auto":
        fills = fills and near < rig.radius < far
        depths, radius = f"depths {near:g} to {far:g} and ", (near + far) / 2
    if fills:
        return None
    message = (
        f"--cfg {preset} renders {depths}a box of side {rendering.box_warp:g}, but the cameras are"
        f" {rig.radius:.3g} away and see a width of {rig.radius / focal:.3g}"
    )
    return Mistake("scale", message, f"--radius {radius:.3g}")
