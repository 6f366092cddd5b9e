"""Pose, camera and crop of a face: exact on points made from known poses, and consistent with one
another.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from data_tools.faces.convert import cut_out, pick_face, share_outside
from data_tools.faces.pose import (
    FACE_FOCAL,
    FACE_PIVOT,
    FACE_RADIUS,
    VISIBLE_WIDTH,
    Crop,
    FacePose,
    camera_of,
    canonical_face,
    face_crop,
    face_label,
    pose_from_landmarks,
    pose_from_mesh,
)
from training.cameras import look_at_pose, orbit_angles
from training.data.labels import label_problems

FRONTAL = np.diag([1.0, -1.0, -1.0])  # head to camera of a face that looks into it

ANGLE = st.floats(-1.2, 1.2)
DECIMETRE = FACE_FOCAL * VISIBLE_WIDTH  # times a depth in world units, of a decimetre at the pivot


def turned(yaw: float, pitch: float, roll: float = 0.0) -> FacePose:
    return FacePose.from_angles(yaw, pitch, roll, (100.0, 80.0), 30.0)


@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(1e-2, 1e3),
    x=st.floats(-1e3, 1e3),
    y=st.floats(-1e3, 1e3),
)
@settings(max_examples=40)
def test_landmarks_made_from_a_pose_give_it_back(
    seed: int, scale: float, x: float, y: float
) -> None:
    """Seven points about any middle, in any pose."""
    random = np.random.RandomState(seed)
    model, rotation = random.randn(7, 3), Rotation.random(random_state=random).as_matrix()
    found = pose_from_landmarks(scale * model @ rotation.T + (x, y, 55), model)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-9)
    np.testing.assert_allclose([*found.centre, found.scale], [x, y, scale], rtol=1e-9, atol=1e-7)


def test_noisy_landmarks_give_the_best_rotation() -> None:
    """Against scipy's solution of the same least-squares problem; noise as large as the face would
    invite a reflection.
    """
    for seed in range(20):
        random = np.random.RandomState(seed)
        model = random.randn(6, 3)
        seen = model @ Rotation.random(random_state=random).as_matrix().T + random.randn(6, 3)
        best, _ = Rotation.align_vectors(seen - seen.mean(0), model - model.mean(0))
        found = pose_from_landmarks(seen, model)
        np.testing.assert_allclose(found.rotation, best.as_matrix(), atol=1e-7)
        turned = (model - model.mean(0)) @ best.as_matrix().T
        offsets = seen - seen.mean(0)
        smaller, own, larger = (
            ((offsets - found.scale * factor * turned) ** 2).sum() for factor in (0.999, 1, 1.001)
        )
        assert own < min(smaller, larger)


def test_mesh_in_a_known_pose() -> None:
    """Mediapipe's own landmarks, whose depths are too flat."""
    pose = turned(0.4, -0.2, 0.3)
    seen = pose.scale * canonical_face() @ pose.rotation.T + (*pose.centre, 0)
    found = pose_from_mesh(seen / (1, 1, 1.1))
    np.testing.assert_allclose(found.rotation, pose.rotation, atol=1e-9)
    assert (*found.centre, found.scale) == pytest.approx((*pose.centre, pose.scale), rel=1e-9)


@pytest.mark.parametrize(
    "landmarks",
    [
        np.zeros((5, 3)),
        np.full((5, 3), np.nan),
        np.ones((4, 3)),
        np.outer(np.arange(5.0), (1, 2, 3)),
    ],
)
def test_landmarks_that_are_no_face(landmarks: np.ndarray) -> None:
    with pytest.raises(ValueError, match="landmarks must"):
        pose_from_landmarks(landmarks, np.random.RandomState(0).randn(5, 3))


def test_canonical_face_is_a_face() -> None:
    """Symmetric, upright, its nose toward the camera, the eyes where the published crops have
    them.
    """
    face = canonical_face()
    assert face.shape == (478, 3)
    left, right, nose, chin = face[468], face[473], face[1], face[152]
    np.testing.assert_allclose(left, (-0.31, 0.29, 0.13), atol=1e-3)
    np.testing.assert_allclose(right, (0.31, 0.29, 0.13), atol=1e-3)
    assert nose[2] > left[2] + 0.2
    assert chin[1] < nose[1] < left[1]
    distances = np.linalg.norm(face[:, None] * (-1, 1, 1) - face[None], axis=2)
    assert distances.min(0).max() < 1e-3


# --------------------------------------------------------------------------------------------------
# Camera


def test_a_frontal_face_is_seen_from_the_front() -> None:
    np.testing.assert_allclose(turned(0, 0).rotation, FRONTAL, atol=1e-12)
    label = face_label(turned(0, 0))
    expected = np.diag([1.0, -1.0, -1.0, 1.0])
    expected[2, 3] = FACE_RADIUS
    np.testing.assert_allclose(label[:16].reshape(4, 4), expected, atol=1e-12)
    np.testing.assert_allclose(label[16:], [4.2647, 0, 0.5, 0, 4.2647, 0.5, 0, 0, 1], atol=1e-4)


@given(yaw=ANGLE, pitch=ANGLE, roll=ANGLE)
@settings(max_examples=60)
def test_camera_stands_on_the_sphere_and_looks_at_the_pivot(
    yaw: float, pitch: float, roll: float
) -> None:
    """Its direction from the pivot has the face's angles; the label is one that training
    accepts.
    """
    for keep_roll in (False, True):
        camera = camera_of(turned(yaw, pitch, roll), keep_roll)
        assert np.linalg.norm(camera[:3, 3]) == pytest.approx(FACE_RADIUS, abs=1e-9)
        away = camera[:3, 3] - FACE_PIVOT
        a, b, distance = orbit_angles(
            torch.from_numpy(np.vstack([np.c_[np.eye(3), away], (0, 0, 0, 1)]))
        )
        assert (float(a), float(b)) == pytest.approx((yaw, pitch), abs=1e-7)
        np.testing.assert_allclose(camera[:3, 2], -away / float(distance), atol=1e-9)
        label = face_label(turned(yaw, pitch, roll), keep_roll)
        assert not any(bad.any() for bad, _ in label_problems(label[None]))
    np.testing.assert_allclose(camera[:3, :3].T, turned(yaw, pitch, roll).rotation, atol=1e-9)
    upright = look_at_pose(
        torch.tensor(camera[:3, 3]), torch.tensor(FACE_PIVOT, dtype=torch.float64)
    ).numpy()
    np.testing.assert_allclose(camera_of(turned(yaw, pitch, roll)), upright, atol=1e-9)


@given(yaw=ANGLE, pitch=ANGLE, roll=ANGLE, x=st.floats(-1, 1), y=st.floats(-1, 1))
@settings(max_examples=60)
def test_the_crop_shows_what_its_camera_sees(
    yaw: float, pitch: float, roll: float, x: float, y: float
) -> None:
    """A point of the face at the pivot's distance: where the picture shows it, cut out, is where
    the label's camera projects it.
    """
    pose = turned(yaw, pitch, roll)
    for keep_roll in (False, True):
        camera, crop = camera_of(pose, keep_roll), face_crop(pose, keep_roll)
        depth = np.linalg.norm(camera[:3, 3] - FACE_PIVOT)
        offset = camera[:3, :3] @ (x, y, 0)  # decimetres, at right angles to the optical axis
        in_picture = np.array(pose.centre) + pose.scale * (pose.rotation @ offset)[:2]
        upper_left, upper_right, _, lower_left = crop.corners()
        axes = np.stack([upper_right - upper_left, lower_left - upper_left]) / crop.side
        u, v = axes @ (in_picture - upper_left) / crop.side
        point = np.array(FACE_PIVOT) + offset * depth / DECIMETRE
        seen = camera[:3, :3].T @ (point - camera[:3, 3])
        assert (u, v) == pytest.approx(
            (FACE_FOCAL * seen[0] / seen[2] + 0.5, FACE_FOCAL * seen[1] / seen[2] + 0.5), abs=1e-9
        )


def test_angles_mean_what_the_documentation_says() -> None:
    """Seen from its left, the picture's right: the nose points to the picture's left. From above:
    it points down. Roll: clockwise.
    """
    nose = lambda pose: pose.rotation @ (0.0, 0.0, 1.0)  # noqa: E731
    assert nose(turned(0.5, 0))[0] < -0.4
    assert nose(turned(0, 0.5))[1] > 0.4
    assert (turned(0, 0, 0.5).rotation @ (1.0, 0.0, 0.0))[1] > 0.4
    assert face_crop(turned(0, 0, 0.5)).angle == pytest.approx(0.5)


# --------------------------------------------------------------------------------------------------
# Pixels


def ramp(width: int, height: int) -> Image.Image:
    """Red tells x and green tells y, in quarters."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(
        np.stack([x / 4, y / 4, np.zeros_like(x)], axis=-1).round().astype(np.uint8)
    )


@pytest.mark.parametrize("angle", [0.0, 0.3, -1.2, math.pi / 2])
@pytest.mark.parametrize("side", [40.0, 90.7, 400.0])
def test_pixels_come_from_where_the_crop_says(angle: float, side: float) -> None:
    crop, n = Crop((500.3, 480.6), side, angle), 64
    pixels = np.asarray(cut_out(ramp(1000, 1000), crop, n)).astype(float)
    places = (np.arange(n) + 0.5) / n - 0.5
    u, v = np.meshgrid(places, places)
    x = crop.centre[0] + side * (u * math.cos(angle) - v * math.sin(angle)) - 0.5
    y = crop.centre[1] + side * (u * math.sin(angle) + v * math.cos(angle)) - 0.5
    np.testing.assert_allclose(pixels[..., 0], x / 4, atol=1.0)
    np.testing.assert_allclose(pixels[..., 1], y / 4, atol=1.0)
    assert abs(pixels[..., 0] - x / 4).mean() < 0.35


def test_fine_patterns_become_grey() -> None:
    """A checkerboard of single pixels, made eight times smaller, turned or not."""
    board = np.indices((800, 800)).sum(0) % 2 * 255
    picture = Image.fromarray(np.repeat(board[..., None], 3, axis=2).astype(np.uint8))
    for angle in (0.0, 0.4):
        pixels = np.asarray(cut_out(picture, Crop((400, 400), 512, angle), 64))
        assert abs(pixels.astype(float) - 127.5).max() < 8


def test_beyond_its_edges_a_picture_goes_on_mirrored() -> None:
    crop = Crop((20.0, 500.0), 100.0, 0.0)
    assert share_outside(crop, (1000, 1000)) == pytest.approx(0.3, abs=0.02)
    pixels = np.asarray(cut_out(ramp(1000, 1000), crop, 100)).astype(float)
    np.testing.assert_allclose(pixels[:, :30, 0], pixels[:, 30:60, 0][:, ::-1], atol=1)
    assert share_outside(Crop((500, 500), 1000, 0.0), (1000, 1000)) == 0
    assert share_outside(Crop((500, 500), 1000, math.pi / 4), (1000, 1000)) == pytest.approx(
        1 - 2 * (math.sqrt(2) - 1), abs=0.01
    )


def test_which_of_several_faces() -> None:
    near, large = FacePose(FRONTAL, (60.0, 40.0), 5.0), FacePose(FRONTAL, (10.0, 10.0), 9.0)
    assert pick_face([near, large], (100, 100), "largest") is large
    assert pick_face([near, large], (100, 100), "central") is near
