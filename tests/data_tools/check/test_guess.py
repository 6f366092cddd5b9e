"""Which mistake poses look like: good sets of every kind cause no alarm, and each mistake is
recognised in each of them.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.check.guess import guess_mistakes
from data_tools.check.report import Report
from tests.data_tools.scenes import OPENGL, UP_AXES, look_at, orbit

Array = np.ndarray
ROOT = Path(__file__).resolve().parents[3]


def heads() -> Array:
    """The cameras of the archive in the repository."""
    with zipfile.ZipFile(ROOT / "tests" / "data" / "heads64.zip") as archive:
        labels = json.loads(archive.read("dataset.json"))["labels"]
    return np.array([label[:16] for _, label in labels]).reshape(-1, 4, 4)


def portraits(pivot: tuple[float, float, float], spread: float, count: int = 300) -> Array:
    """As FFHQ's and AFHQ's labels: mostly from the front, on the sphere around the origin, looking
    at a point near it, not quite.
    """
    random = np.random.RandomState(1)
    yaw, pitch = random.randn(2, count) * [[0.3 * spread], [0.15 * spread]]
    directions = np.stack(
        [np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)], axis=1
    )
    up = np.array([0.0, 1, 0])
    return np.stack(
        [look_at(2.7 * d, np.array(pivot) + 0.01 * random.randn(3), up) for d in directions]
    )


def facing_forward(jitter: float) -> Array:
    """As a hand-held array of views: side by side, all looking along -z."""
    random = np.random.RandomState(2)
    places = np.concatenate(
        [random.uniform(-0.4, 0.4, (80, 2)), random.uniform(2.3, 2.5, (80, 1))], axis=1
    )
    aims = places + np.concatenate([jitter * random.randn(80, 2), -np.ones((80, 1))], axis=1)
    return np.stack(
        [
            look_at(place, aim, np.array([0.0, 1, 0]))
            for place, aim in zip(places, aims, strict=True)
        ]
    )


GOOD: dict[str, tuple[Array, float]] = {
    "heads": (heads(), 3.1),
    "FFHQ": (portraits((0, 0, 0.2), 1.0), 4.2647),
    "AFHQ": (portraits((0, 0, -0.06), 0.8), 4.2647),
    "cars": (orbit(200, pitch=80, radius=1.3), 131.25 / 128),
    "cars at 1.7": (orbit(200, pitch=20, radius=1.7), 131.25 / 128),
    "a car, from above": (orbit(400, pitch=60, radius=2.0), 1.4),
    "hemisphere": (np.stack([c for c in orbit(300, pitch=89, radius=2.0) if c[1, 3] > 0]), 1.4),
    "forward": (facing_forward(0.0), 1.2),
    "forward, shaky": (facing_forward(0.05), 1.2),
    "towards the middle": (orbit(50, yaw=12, pitch=6), 2.0),
    "narrow": (orbit(50, yaw=4, pitch=2), 4.2647),
    "from one side": (orbit(50, yaw=20, pitch=10), 2.0),
    "six": (orbit(6), 2.0),
}
SEEN_AROUND = [name for name in GOOD if not name.startswith(("forward", "narrow"))]


def codes(cam2world: Array, focal: float | None, preset: str = "auto") -> list[str]:
    report = Report("x")
    guess_mistakes(cam2world, focal, preset, report)
    return [finding.code for finding in report.findings]


def options(cam2world: Array, focal: float) -> list[str]:
    report = Report("x")
    guess_mistakes(cam2world, focal, "auto", report)
    return [finding.options for finding in report.findings]


@pytest.mark.parametrize("name", GOOD)
def test_good_sets_cause_no_alarm(name: str):
    cam2world, focal = GOOD[name]
    assert codes(cam2world, focal) == []
    rng = np.random.RandomState(0)
    assert (
        codes(cam2world[rng.permutation(len(cam2world))[: max(len(cam2world) // 2, 5)]], focal)
        == []
    )


@pytest.mark.parametrize("name", GOOD)
def test_opengl_axes(name: str):
    cam2world, focal = GOOD[name]
    assert options(cam2world @ OPENGL, focal) == ["--camera-axes opengl"]


@pytest.mark.parametrize("name", SEEN_AROUND)
def test_world_to_camera(name: str):
    cam2world, focal = GOOD[name]
    assert options(np.linalg.inv(cam2world), focal) == ["--poses world2cam"]
    assert options(np.linalg.inv(cam2world @ OPENGL), focal) == [
        "--poses world2cam --camera-axes opengl"
    ]


def turned(cam2world: Array, up: str) -> Array:
    """The same scene in a world in which `up` is up."""
    axis = np.array(UP_AXES[up], dtype=float)
    side = np.roll(axis, 1)
    rotation = np.stack([side, axis, np.cross(side, axis)], axis=1)
    result = cam2world.copy()
    result[:, :3] = rotation @ cam2world[:, :3]
    return result


@pytest.mark.parametrize("up", ["z", "-z", "x", "-x", "-y"])
@pytest.mark.parametrize("name", GOOD)
def test_another_upward_axis(name: str, up: str):
    cam2world, focal = GOOD[name]
    expected = f"--up {up}" if len(up) == 1 else f"--up={up}"
    assert options(turned(cam2world, up), focal) == [expected]


def test_an_upward_direction_that_is_no_axis():
    cam2world = orbit(100, yaw=60)
    rotation = np.linalg.qr(np.array([[1.0, 0.9, 0.3], [-0.7, 1, 0.8], [0.4, -0.9, 1]]))[0]
    cam2world[:, :3] = rotation * np.sign(np.linalg.det(rotation)) @ cam2world[:, :3]
    assert options(cam2world, 3.1) == ["--up cameras"]


@pytest.mark.parametrize("name", SEEN_AROUND)
@pytest.mark.parametrize("shift", [(3, 0, 0), (0, -2, 1), (0, 0, 4), (1, 2, 3), (50, 20, -80)])
def test_object_far_from_the_origin(name: str, shift: Any):
    cam2world, focal = GOOD[name]
    moved = cam2world.copy()
    moved[:, :3, 3] += shift
    assert [option for option in options(moved, focal) if option.startswith("--recentre --radius")]
    assert not {"opengl-axes", "up"} & set(codes(moved, focal))


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("scale", [1e-9, 1e-6, 0.01, 0.1, 10, 1000, 1e6])
def test_wrong_scale(name: str, scale: float):
    cam2world, focal = GOOD[name]
    scaled = cam2world.copy()
    scaled[:, :3, 3] *= scale
    assert codes(scaled, focal) == ["scale"]


@pytest.mark.parametrize("name", ["heads", "FFHQ", "AFHQ", "cars"])
def test_known_rigs_at_twice_their_radius(name: str):
    cam2world, focal = GOOD[name]
    scaled = cam2world.copy()
    scaled[:, :3, 3] *= 2
    assert codes(scaled, focal) == ["scale"]


def test_presets():
    """A scene suits its own preset and not another's."""
    presets = {"heads": "heads", "FFHQ": "ffhq", "AFHQ": "afhq", "cars": "shapenet"}
    for name, preset in presets.items():
        assert codes(*GOOD[name], preset) == []
    assert codes(*GOOD["cars"], "ffhq") == ["scale"]
    assert codes(*GOOD["FFHQ"], "shapenet") == ["scale"]


def test_two_mistakes_at_once():
    cam2world = turned(orbit(60, radius=27), "z") @ OPENGL
    assert codes(cam2world, 3.1) == ["opengl-axes", "up", "scale"]


def test_nothing_is_told_from_a_few_or_equal_cameras():
    assert codes(orbit(3) @ OPENGL, 2.0) == []
    assert codes(np.repeat(orbit(1), 10, axis=0), 2.0) == ["one-camera"]
    sliding = np.repeat(orbit(1), 10, axis=0)
    sliding[:, 0, 3] += 0.1 * np.arange(10)
    for scale in (1e-7, 1, 1e6):
        sliding[:, :3, 3] *= scale
        assert "one-camera" not in codes(sliding, 2.0)


def test_without_a_focal_length_poses_are_still_judged():
    assert codes(orbit(50), None) == []
    assert codes(orbit(50) @ OPENGL, None) == ["opengl-axes"]
