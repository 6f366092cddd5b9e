"""Estimators of face poses as judges: their angles are the cameras', whichever estimator it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_tools.faces.angles import SMALLEST, FaceAngles, open_pose_estimator, viewing_angles
from data_tools.faces.pose import FacePose, camera_of
from dnnlib.console import UserError
from metrics.onnx_models import OnnxModel
from metrics.pose import camera_angles, pose_error
from metrics.processes import ALONE
from tests.metrics.networks import write_onnx
from tests.metrics.scenes import Scene, sampler_of

NAME = f"{__name__}:by_brightness"


def by_brightness(picture: np.ndarray) -> Sequence[FacePose]:
    """Poses whose angles are written in the picture's mean red and green; none where it is blue."""
    assert picture.shape == (SMALLEST, SMALLEST, 3)
    red, green, blue = picture.reshape(-1, 3).mean(0) / 255
    small = FacePose.from_angles(1.0, 0.0, 0.0, (0, 0), 1.0)
    return (
        []
        if blue > 0.5
        else [small, FacePose.from_angles(red - 0.5, green - 0.5, 0.3, (0, 0), 2.0)]
    )


def failing(_: np.ndarray) -> Sequence[FacePose]:
    raise RuntimeError("no light")


@given(st.floats(-3, 3), st.floats(-1.4, 1.4), st.floats(-3, 3))
def test_angles_are_those_of_the_camera(yaw: float, pitch: float, roll: float):
    pose = FacePose.from_angles(yaw, pitch, roll, (0, 0), 1.0)
    assert viewing_angles(pose) == pytest.approx((yaw, pitch), abs=1e-9)
    label = torch.from_numpy(
        np.concatenate([camera_of(pose, keep_roll=True).ravel(), np.zeros(9)])
    )[None]
    assert camera_angles(label)[0].tolist() == pytest.approx([yaw, pitch], abs=1e-9)


def test_pictures_become_angles():
    colours = torch.tensor([[0.7, 0.4, 0.0], [0.5, 0.5, 0.9], [0.2, 0.5, 0.1]]) * 2 - 1
    angles = open_pose_estimator(NAME)(colours[:, :, None, None].expand(-1, -1, 8, 8))
    assert angles.dtype == torch.float64
    assert angles[[0, 2]].tolist() == [
        pytest.approx(pair, abs=3e-3) for pair in ((0.2, -0.1), (-0.3, 0.0))
    ]
    assert angles[1].isnan().all()


def test_pictures_without_a_face_do_not_count():
    class Half:
        path, hash = "half", "0"

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            rows = torch.zeros(len(images), 2, dtype=torch.float64)
            rows[::2] = math.nan
            return rows

    values = pose_error(sampler_of(Scene(size=8, raw=8)), Half(), 6, 6, ALONE)
    assert values["found"] == 0.5
    cameras = camera_angles(sampler_of(Scene()).cameras(0, 6))[1::2]
    assert values["yaw_offset"] == pytest.approx(
        -math.degrees(math.atan2(cameras[:, 0].sin().mean(), cameras[:, 0].cos().mean()))
    )


def test_names_of_estimators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    matrix = np.zeros((48, 2))
    assert isinstance(open_pose_estimator(str(write_onnx(tmp_path / "a.onnx", matrix))), OnnxModel)
    assert len(FaceAngles(NAME).hash) == 64
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path))
    for name, words in (
        ("mediapipe", "faces --setup"),
        ("no.such:thing", "no.such"),
        (str(tmp_path / "b"), "cannot read"),
    ):
        with pytest.raises(UserError, match=words):
            open_pose_estimator(name)
    with pytest.raises(UserError, match="no light"):
        FaceAngles(f"{__name__}:failing")(torch.zeros(1, 3, 8, 8))
