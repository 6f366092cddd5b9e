"""The world that cameras stand in: which way is up, where they look, how far away they are. All
arrays float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from data_tools.sources.base import Array
from dnnlib.console import UserError
from training.cameras import nearest_point_to_rays, viewing_rays

AXES: dict[str, tuple[float, float, float]] = {
    "x": (1, 0, 0),
    "y": (0, 1, 0),
    "z": (0, 0, 1),
    "-x": (-1, 0, 0),
    "-y": (0, -1, 0),
    "-z": (0, 0, -1),
}
# Rotations that turn an upward axis into +y: quarter turns, so that coordinates stay recognisable.
_UPRIGHT: dict[str, list[list[float]]] = {
    "y": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "-y": [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
    "z": [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
    "-z": [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
    "x": [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
    "-x": [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
}
DETERMINED = 4.0  # ratio of spreads above which the cameras' sides tell what is level
CONCENTRATED = 0.5  # mean resultant length of the yaws above which a set of cameras has a front


@dataclass(frozen=True)
class Placement:
    """A similarity of the world: x -> scale * rotation x + shift. `up` names the axis that became
    +y.
    """

    rotation: Array
    scale: float
    shift: Array
    up: str

    def apply(self, cam2world: Array) -> Array:
        """The same cameras (..., 4, 4) in the new world."""
        moved = cam2world.copy()
        moved[..., :3, :3] = self.rotation @ cam2world[..., :3, :3]
        moved[..., :3, 3] = cam2world[..., :3, 3] @ self.rotation.T * self.scale + self.shift
        return moved


def axis_scores(cam2world: Array) -> dict[str, float]:
    """How well each axis serves as upward axis of cameras (M, 4, 4): 1 = all stand upright and
    level, -1 = upside down.
    """
    right, up = cam2world[:, :3, 0], -cam2world[:, :3, 1]
    return {
        name: float((up @ np.array(axis)).mean() - np.sqrt(((right @ np.array(axis)) ** 2).mean()))
        for name, axis in AXES.items()
    }


def up_direction(cam2world: Array) -> Array:
    """The direction (3,) that cameras (M, 4, 4) agree to be up: at right angles to their sides,
    else their mean upward direction.
    """
    right, mean_up = cam2world[:, :3, 0], -cam2world[:, :3, 1].mean(0)
    spreads, directions = np.linalg.eigh(right.T @ right / len(right))
    if spreads[1] > DETERMINED * spreads[0]:
        level = directions[:, 0]
        mean_up = level if level @ mean_up >= 0 else -level
    return mean_up / max(np.linalg.norm(mean_up), 1e-12)


def look_at_point(cam2world: Array) -> tuple[Array, float]:
    """The point (3,) nearest to all optical axes of cameras (M, 4, 4), and the cameras' median
    distance to it.
    """
    origins, directions = viewing_rays(torch.from_numpy(cam2world))
    point = nearest_point_to_rays(origins, directions)
    return point.numpy(), float((origins - point).norm(dim=-1).median())


def place(
    cam2world: Array, up: str, *, recentre: bool, radius: float, pivot: tuple[float, float, float]
) -> Placement:
    """The similarity that puts cameras (M, 4, 4) into a y-up world, and with `recentre` around
    `pivot` at median distance `radius`.

    `up` is an axis, "nearest" or "cameras" (see `sources.base.Source`). Where the cameras alone say
    what is up, their mean direction from the pivot becomes the front.

    Raises:
        UserError: with `recentre`, if the cameras do not look at a common point in front of them.
    """
    if up == "nearest":
        scores = axis_scores(cam2world)
        up = max(scores, key=lambda name: scores[name])
    rotation = (
        _turn_to_y(up_direction(cam2world))
        if up == "cameras"
        else np.array(_UPRIGHT[up], dtype=np.float64)
    )
    if up == "cameras":
        rotation = _face_front(rotation, cam2world) @ rotation
    if not recentre:
        return Placement(rotation, 1.0, np.zeros(3), up)
    point, distance = look_at_point(cam2world)
    ahead = np.median(((point - cam2world[:, :3, 3]) * cam2world[:, :3, 2]).sum(-1))
    if distance <= 1e-9 * np.abs(cam2world[:, :3, 3]).max() or ahead <= 0.1 * distance:
        raise UserError(
            "the cameras do not look at a common point in front of them, so the scene cannot be"
            " recentred; try --camera-axes, --poses world2cam, or --no-recentre"
        )
    scale = radius / distance
    return Placement(rotation, scale, np.array(pivot) - scale * (rotation @ point), up)


def _turn_to_y(up: Array) -> Array:
    """The shortest rotation that turns the unit vector `up` into +y (Rodrigues' formula)."""
    if up[1] < -1 + 1e-9:
        return np.array(_UPRIGHT["-y"], dtype=np.float64)
    x, y, z = np.cross(up, [0.0, 1.0, 0.0])
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + up[1])


def _face_front(rotation: Array, cam2world: Array) -> Array:
    """The rotation about y that brings the cameras' mean direction to +z, where they have one."""
    backward = -cam2world[:, :3, 2] @ rotation.T
    mean = np.exp(1j * np.arctan2(backward[:, 0], backward[:, 2])).mean()
    yaw = float(np.angle(mean)) if abs(mean) > CONCENTRATED else 0.0
    cosine, sine = math.cos(yaw), math.sin(yaw)
    return np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
