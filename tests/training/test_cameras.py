"""Camera labels against closed forms and independent float64 formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from training.cameras import (
    CameraSummary,
    look_at_pose,
    mirror_label,
    nearest_point_to_rays,
    orbit_angles,
    orbit_pose,
    pack_label,
    pinhole_intrinsics,
    unpack_label,
    viewing_rays,
)

COORDINATES = st.floats(-3, 3)
POINTS = st.tuples(COORDINATES, COORDINATES, COORDINATES)
YAWS = st.floats(-math.pi, math.pi)
PITCHES = st.floats(-1.5, 1.5)
RADII = st.floats(0.5, 5)


def reference_look_at(position, target):
    """Columns right, down, forward, position, from cross products in numpy."""
    position, target = np.array(position), np.array(target)
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0, 1, 0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(forward, right), forward, position], axis=1)
    return pose


def project(point, label):
    """Picture coordinates (u, v) of a world point, u to the right and v down, 0..1 across the
    picture.
    """
    label = np.asarray(label, dtype=np.float64)
    world_to_camera = np.linalg.inv(label[:16].reshape(4, 4))
    image = label[16:].reshape(3, 3) @ (world_to_camera @ np.append(point, 1))[:3]
    return image[:2] / image[2]


def random_labels(count, seed=0):
    """Labels of cameras that look at random points through skewed, off-centre, anisotropic lenses,
    float64.
    """
    rng = np.random.default_rng(seed)
    labels = []
    for _ in range(count):
        pose = reference_look_at(rng.normal((0, 0, 6)), rng.normal(size=3) * 0.3)
        intrinsics = [
            rng.uniform(1, 4),
            rng.uniform(-0.2, 0.2),
            rng.uniform(0.3, 0.7),
            0,
            rng.uniform(1, 4),
            rng.uniform(0.3, 0.7),
            0,
            0,
            1,
        ]
        labels.append([*pose.flatten(), *intrinsics])
    return torch.tensor(labels, dtype=torch.float64)


# --------------------------------------------------------------------------------------------------
# Labels


def test_label_is_matrix_then_intrinsics_row_by_row():
    cam2world = torch.arange(16.0).reshape(4, 4)
    intrinsics = torch.arange(16.0, 25.0).reshape(3, 3)
    label = pack_label(cam2world, intrinsics)
    assert torch.equal(label, torch.arange(25.0))
    assert all(
        torch.equal(a, b) for a, b in zip(unpack_label(label), (cam2world, intrinsics), strict=True)
    )


def test_packing_broadcasts_over_leading_dimensions():
    cam2world = torch.randn(5, 1, 4, 4)
    intrinsics = torch.randn(3, 3, 3)
    labels = pack_label(cam2world, intrinsics)
    assert labels.shape == (5, 3, 25)
    assert torch.equal(labels[4, 2], pack_label(cam2world[4, 0], intrinsics[2]))


def test_pinhole_intrinsics():
    assert pinhole_intrinsics(4.25).tolist() == [[4.25, 0, 0.5], [0, 4.25, 0.5], [0, 0, 1]]
    several = pinhole_intrinsics(torch.tensor([[1.0, 2.0]]))
    assert several.shape == (1, 2, 3, 3)
    assert torch.equal(several[0, 1], pinhole_intrinsics(2.0))


# --------------------------------------------------------------------------------------------------
# Poses


@given(POINTS, POINTS)
def test_look_at_agrees_with_cross_products(position, target):
    direction = np.subtract(target, position)
    assume(np.hypot(direction[0], direction[2]) > 1e-2)
    pose = look_at_pose(
        torch.tensor(position, dtype=torch.float64), torch.tensor(target, dtype=torch.float64)
    )
    assert np.allclose(pose.numpy(), reference_look_at(position, target), atol=1e-10)


@given(POINTS, POINTS)
def test_look_at_is_a_proper_rotation_without_roll(position, target):
    assume(np.linalg.norm(np.subtract(target, position)) > 1e-2)
    pose = look_at_pose(
        torch.tensor(position, dtype=torch.float64), torch.tensor(target, dtype=torch.float64)
    ).numpy()
    rotation = pose[:3, :3]
    # Within 1e-6 of the vertical the world's x serves as right, which is that far from orthogonal.
    assert np.allclose(rotation.T @ rotation, np.eye(3), atol=2e-6)
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert rotation[1, 0] == pytest.approx(0, abs=1e-9), "the picture's right is horizontal"
    assert rotation[1, 1] <= 2e-6, "the picture's down points down"
    assert pose[3].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("height", [2.0, -2.0])
def test_looking_straight_down_or_up_keeps_the_worlds_x_to_the_right(height):
    pose = look_at_pose(torch.tensor([0.0, height, 0.0]), torch.zeros(3))
    assert pose[:3, 0].tolist() == [1, 0, 0]
    assert pose[:3, 2].tolist() == [0, -math.copysign(1, height), 0]
    assert torch.linalg.det(pose[:3, :3]) == 1


def test_looked_at_point_is_in_the_middle_and_up_is_up():
    label = pack_label(
        look_at_pose(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.3, 0.2, -0.1])),
        pinhole_intrinsics(2.0),
    )
    assert project((0.3, 0.2, -0.1), label) == pytest.approx((0.5, 0.5), abs=1e-5)
    assert project((0.3, 0.4, -0.1), label)[1] < 0.5


def test_front_camera_sees_x_to_the_right_and_y_up():
    pose = orbit_pose(0.0, 0.0, 2.7)
    assert torch.equal(
        pose, torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 2.7], [0, 0, 0, 1]])
    )
    label = pack_label(pose, pinhole_intrinsics(2.7))
    assert project((0.1, 0.2, 0.0), label) == pytest.approx((0.6, 0.3), abs=1e-6)


@given(YAWS, PITCHES, RADII, st.tuples(*[st.floats(-0.3, 0.3)] * 3))
def test_orbit_pose_is_a_point_of_the_sphere_looking_at_the_pivot(yaw, pitch, radius, pivot):
    position = radius * np.array(
        [math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)]
    )
    assume(np.hypot(position[0] - pivot[0], position[2] - pivot[2]) > 0.05)
    pose = orbit_pose(yaw, pitch, radius, pivot)
    assert np.allclose(pose.numpy(), reference_look_at(position, pivot), atol=5e-5)


def test_orbit_poses_of_a_batch_are_those_of_its_members():
    yaw, pitch, radius = torch.rand(3, 1), torch.rand(4), torch.rand(3, 4) + 1
    pivot = torch.tensor([0.0, 0.1, 0.2])
    poses = orbit_pose(yaw, pitch, radius, pivot)
    assert poses.shape == (3, 4, 4, 4)
    for i in range(3):
        for j in range(4):
            single = orbit_pose(
                float(yaw[i, 0]), float(pitch[j]), float(radius[i, j]), (0.0, 0.1, 0.2)
            )
            assert torch.allclose(poses[i, j], single, atol=1e-6)


@given(YAWS, PITCHES, RADII)
def test_orbit_angles_invert_orbit_pose(yaw, pitch, radius):
    found = orbit_angles(orbit_pose(yaw, pitch, radius))
    assert math.cos(float(found[0]) - yaw) == pytest.approx(1, abs=1e-5)
    assert float(found[1]) == pytest.approx(pitch, abs=2e-5 / math.cos(pitch))
    assert float(found[2]) == pytest.approx(radius, rel=1e-6)


# --------------------------------------------------------------------------------------------------
# Mirroring


def test_mirrored_label_is_the_formula():
    flip = np.diag([-1.0, 1, 1, 1])
    for label, mirrored in zip(
        random_labels(5).numpy(), mirror_label(random_labels(5)).numpy(), strict=True
    ):
        assert np.allclose(
            mirrored[:16].reshape(4, 4), flip @ label[:16].reshape(4, 4) @ flip, atol=1e-15
        )
        fx, s, cx, _, fy, cy = label[16:22]
        assert np.allclose(mirrored[16:], [fx, -s, 1 - cx, 0, fy, cy, 0, 0, 1], atol=1e-15)


def test_mirrored_camera_sees_the_mirrored_world_mirrored():
    labels = random_labels(20, seed=1)
    points = np.random.default_rng(2).normal(size=(20, 3)) * 0.4
    for label, mirrored, point in zip(labels, mirror_label(labels), points, strict=True):
        u, v = project(point, label)
        assert project(point * (-1, 1, 1), mirrored) == pytest.approx((1 - u, v), abs=1e-9)


def test_mirroring_twice_changes_nothing_and_never_the_argument():
    labels = random_labels(5)
    copy = labels.clone()
    assert torch.allclose(mirror_label(mirror_label(labels)), labels, atol=1e-15)
    assert torch.equal(labels, copy)


@given(YAWS, PITCHES)
def test_mirrored_orbit_camera_is_the_camera_of_opposite_yaw(yaw, pitch):
    mirrored = mirror_label(
        pack_label(orbit_pose(yaw, pitch, 2.7, (0.1, 0.0, 0.2)), pinhole_intrinsics(3.0))
    )
    assert torch.allclose(
        mirrored,
        pack_label(orbit_pose(-yaw, pitch, 2.7, (-0.1, 0.0, 0.2)), pinhole_intrinsics(3.0)),
        atol=1e-5,
    )


# --------------------------------------------------------------------------------------------------
# Rays


def test_viewing_rays_are_the_optical_axes():
    pose = look_at_pose(
        torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 2.0]]), torch.tensor([0.0, 0.0, 1.0])
    )
    origins, directions = viewing_rays(pose)
    assert origins.tolist() == [[1, 2, 3], [0, 0, 2]]
    assert torch.allclose(directions, torch.tensor([[-1 / 3, -2 / 3, -2 / 3], [0, 0, -1]]))


@given(POINTS, st.integers(2, 20), st.integers(0, 1000))
def test_lines_through_a_point_meet_there(point, count, seed):
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    assume(np.linalg.svd(directions)[1][1] > 0.1)
    origins = np.array(point) - directions * rng.uniform(1, 3, (count, 1))
    assert np.allclose(
        nearest_point_to_rays(torch.from_numpy(origins), torch.from_numpy(directions)).numpy(),
        point,
        atol=1e-8,
    )


def test_nearest_point_to_skew_lines_is_the_least_squares_solution():
    rng = np.random.default_rng(0)
    origins, directions = rng.normal(size=(30, 3)), rng.normal(size=(30, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rows, values = [], []
    for origin, direction in zip(origins, directions, strict=True):
        across = np.linalg.svd(direction[None])[2][1:]  # two unit vectors across the line
        rows.append(across)
        values.append(across @ origin)
    expected = np.linalg.lstsq(np.concatenate(rows), np.concatenate(values), rcond=None)[0]
    found = nearest_point_to_rays(torch.from_numpy(origins), torch.from_numpy(directions))
    assert np.allclose(found.numpy(), expected, atol=1e-10)


def test_parallel_lines_give_the_best_point_nearest_to_the_origin():
    origins = torch.tensor([[1.0, 2.0, 5.0], [-1.0, 2.0, 7.0]])
    directions = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, -1.0]])
    assert torch.allclose(
        nearest_point_to_rays(origins, directions), torch.tensor([0.0, 2.0, 0.0]), atol=1e-6
    )


def test_the_grid_of_a_summary_covers_the_ranges():
    cameras = CameraSummary(
        2.7, (0.0, 0.0, 0.0), yaw_range=(-0.6, 0.6), pitch_range=(-0.2, 0.2), yaw=0.1
    )
    yaw, pitch, _ = orbit_angles(unpack_label(cameras.grid(5, 3))[0])
    expected = [(a, b) for a in (-0.6, -0.3, 0.0, 0.3, 0.6) for b in (-0.2, 0.0, 0.2)]
    np.testing.assert_allclose(torch.stack([yaw, pitch], dim=1), expected, atol=1e-6)
