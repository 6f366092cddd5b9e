"""Camera paths and latent curves: closed, on the data's orbit, within its range; poses from
files.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnnlib.console import UserError
from media.videos.paths import (
    CAMERA_PATHS,
    camera_path,
    default_path,
    latent_loop,
    loop_times,
    read_poses,
)
from training.cameras import (
    CameraSummary,
    orbit_angles,
    orbit_pose,
    pack_label,
    pinhole_intrinsics,
    unpack_label,
)

FACES = CameraSummary(
    radius=2.7,
    pivot=(0.0, 0.0, 0.2),
    yaw_range=(-0.6, 0.8),
    pitch_range=(-0.2, 0.4),
    yaw=0.1,
    pitch=0.05,
)
CARS = CameraSummary(
    radius=1.3,
    pivot=(0.0, 0.0, 0.0),
    yaw_range=(-math.pi, math.pi),
    pitch_range=(0.0, 1.2),
    pitch=0.5,
)


def angles(labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    yaw, pitch, radius = (
        values.numpy() for values in orbit_angles(unpack_label(labels.double())[0])
    )
    return np.unwrap(yaw), pitch, radius


@given(st.sampled_from(CAMERA_PATHS), st.sampled_from([FACES, CARS]), st.integers(1, 40))
def test_paths_are_closed_and_look_at_the_pivot_from_the_orbit(
    kind: str, cameras: CameraSummary, frames: int
) -> None:
    labels = camera_path(kind, cameras, frames)
    assert labels.shape == (frames, 25)
    assert torch.equal(labels[0], labels[-1])
    np.testing.assert_allclose(angles(labels)[2], cameras.radius, rtol=1e-5)
    toward = np.array(cameras.pivot) - labels[:, [3, 7, 11]].numpy()
    toward /= np.linalg.norm(toward, axis=1, keepdims=True)
    np.testing.assert_allclose(labels[:, [2, 6, 10]], toward, atol=1e-5)


def test_circle_swings_over_the_datas_range() -> None:
    yaw, pitch, _ = angles(camera_path("circle", FACES, 401))
    np.testing.assert_allclose(
        [yaw.min(), yaw.max()], [0.1 - 0.8 * 0.7, 0.1 + 0.8 * 0.7], atol=1e-3
    )
    np.testing.assert_allclose(
        [pitch.min(), pitch.max()], [0.05 - 0.8 * 0.3, 0.05 + 0.8 * 0.3], atol=1e-3
    )
    np.testing.assert_allclose(
        ((yaw - 0.1) / 0.56) ** 2 + ((pitch - 0.05) / 0.24) ** 2, 1, atol=1e-4
    )
    assert (np.diff(yaw[:100]) > 0).all()


def test_wobble_stays_at_its_height_and_turn_goes_around_once() -> None:
    yaw, pitch, _ = angles(camera_path("wobble", FACES, 61, yaw=0.3, center=-0.1))
    np.testing.assert_allclose(pitch, -0.1, atol=1e-6)
    np.testing.assert_allclose([yaw.min(), yaw.max()], [-0.2, 0.4], atol=1e-3)
    yaw, pitch, _ = angles(camera_path("turn", CARS, 73))
    np.testing.assert_allclose(pitch, 0.5, atol=1e-6)
    np.testing.assert_allclose(np.diff(yaw), 2 * np.pi / 72, atol=1e-5)


def test_still_is_the_frontal_camera() -> None:
    assert torch.equal(camera_path("still", FACES, 3), FACES.frontal_label().repeat(3, 1))


def test_default_suits_the_data() -> None:
    assert default_path(FACES) == "circle"
    assert default_path(CARS) == "turn"
    yaw, _, _ = angles(camera_path("circle", CARS, 101))
    assert np.ptp(yaw) < 1.1  # a circle over the full circle would be dizzying
    with pytest.raises(ValueError, match="spiral"):
        camera_path("spiral", FACES, 2)


# --------------------------------------------------------------------------------------------------
# Poses from files


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_all_kinds_of_poses(tmp_path: Path) -> None:
    pose = orbit_pose(0.3, -0.1, 2.0)
    label = pack_label(pose, pinhole_intrinsics(3.0))
    content = [
        label.tolist(),
        pose.flatten().tolist(),
        pose.tolist(),
        {"yaw": 30, "pitch": 10},
        {"yaw": 30, "radius": 5.0},
    ]
    found = read_poses(write(tmp_path / "a.json", content), FACES)
    own = pack_label(pose, torch.tensor(FACES.intrinsics).reshape(3, 3))
    torch.testing.assert_close(found[:3], torch.stack([label, own, own]))
    torch.testing.assert_close(found[3], FACES.label(math.radians(30), math.radians(10)))
    _, _, radius = angles(found[4:])
    np.testing.assert_allclose(radius, 5.0, rtol=1e-6)


def test_a_dict_of_poses_and_a_data_sets_labels(tmp_path: Path) -> None:
    labels = [FACES.label(yaw, 0.0).tolist() for yaw in (-0.1, 0.2)]
    expected = torch.tensor(labels)
    torch.testing.assert_close(
        read_poses(write(tmp_path / "a.json", {"poses": labels}), FACES), expected
    )
    named = [[f"00000/{index}.png", label] for index, label in enumerate(labels)]
    torch.testing.assert_close(
        read_poses(write(tmp_path / "b.json", {"labels": named}), FACES), expected
    )


SKEWED = [1.0, 0.5, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2.7, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "no list of poses"),
        ({"frames": []}, "no list of poses"),
        ([[1, 2, 3]], "pose 0.*3 numbers"),
        ([{"yaw": 1}, {"jaw": 1}], "pose 1.*'jaw'"),
        ([{"yaw": "left"}], "pose 0"),
        ([{"yaw": 1}, {"yaw": 1, "radius": 0}], "pose 1.*radius"),
        ([{"yaw": 1, "radius": -2.7}], "pose 0.*radius"),
        ([SKEWED], "pose 0.*orthonormal"),
        ([{"yaw": float("nan")}], "pose 0.*NaN"),
        (["front"], "pose 0"),
        ([[[1, 2], [3]]], "pose 0"),
        ([None], "pose 0"),
    ],
)
def test_wrong_poses_are_one_line(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        read_poses(write(tmp_path / "a.json", content), FACES)
    assert "\n" not in str(error.value)
    assert "a.json" in str(error.value)


def test_files_that_are_no_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe[\0")
    with pytest.raises(UserError, match="not JSON"):
        read_poses(tmp_path / "a.json", FACES)
    with pytest.raises(UserError, match=r"missing\.json"):
        read_poses(tmp_path / "missing.json", FACES)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not JSON"):
        read_poses(tmp_path / "deep.json", FACES)


# --------------------------------------------------------------------------------------------------
# Latents


@given(st.integers(2, 6), st.integers(0, 100))
def test_loop_passes_through_all_seeds_and_closes_smoothly(count: int, seed: int) -> None:
    keys = torch.from_numpy(np.random.RandomState(seed).randn(count, 3, 4))
    loop = latent_loop(keys)
    for index, key in enumerate(keys):
        torch.testing.assert_close(loop(index / count)[0], key, atol=1e-12, rtol=0)
    assert torch.equal(loop(1.0), loop(0.0))
    step = 1e-4
    before, at, after = loop(1 - step), loop(0.0), loop(step)
    speed = (after - before) / (2 * step)
    # no corner at the seam
    torch.testing.assert_close((at - before) / step, speed, atol=0.05 * count**2, rtol=0)
    curvature = (after - 2 * at + before) / step**2
    inside = (loop(2 * step) - 2 * after + at) / step**2
    # nor a jump of acceleration
    torch.testing.assert_close(curvature, inside, atol=0.1 * count**3, rtol=0.05)


def test_one_seed_stays() -> None:
    keys = torch.randn(1, 2, 3)
    assert torch.equal(latent_loop(keys)(0.3), keys)


def test_times_of_a_loop() -> None:
    assert loop_times(5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert loop_times(1) == [0.0]
