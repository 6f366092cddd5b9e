"""Ray casting: cameras, antialiasing, interpolation and depth against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_tools.heads import dataset as heads
from data_tools.heads.render import Mesh, Raycaster, camera_rays, vertex_normals
from training.cameras import orbit_pose, pinhole_intrinsics

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("embreex")

BLACK = (0, 0, 0)


def coloured_mesh(vertices: np.ndarray, faces: np.ndarray, colours: np.ndarray) -> Mesh:
    return Mesh(vertices, faces, vertex_normals(vertices, faces), colours)


def flat(attributes: np.ndarray, _normals: np.ndarray) -> np.ndarray:
    return attributes


def camera(yaw: float, pitch: float) -> tuple[np.ndarray, np.ndarray]:
    pose = orbit_pose(
        torch.tensor(yaw).deg2rad(), torch.tensor(pitch).deg2rad(), heads.HEADS_RADIUS
    )
    return pose.double().numpy(), pinhole_intrinsics(heads.HEADS_FOCAL).double().numpy()


def project(point: np.ndarray, cam2world: np.ndarray, focal: float, resolution: int) -> np.ndarray:
    """Pixel coordinates (column, row; centres of pixels at whole numbers) by the textbook pinhole
    formula.
    """
    x, y, z = np.linalg.inv(cam2world)[:3] @ np.append(point, 1)
    return np.array([focal * x / z + 0.5, focal * y / z + 0.5]) * resolution - 0.5


def test_rays_follow_the_label_convention():
    rng = np.random.default_rng(0)
    pose, intrinsics = camera(31, -12)
    intrinsics = intrinsics + np.array([[0.2, 0.07, 0.03], [0, -0.3, -0.05], [0, 0, 0]])
    origin, directions = camera_rays(pose, intrinsics, 16)
    for index in rng.choice(256, 20, replace=False):
        row, column = divmod(int(index), 16)
        local = np.linalg.inv(intrinsics) @ [(column + 0.5) / 16, (row + 0.5) / 16, 1]
        world = pose[:3, :3] @ local
        np.testing.assert_allclose(directions[index], world / np.linalg.norm(world), atol=1e-12)
    np.testing.assert_array_equal(origin, pose[:3, 3])


@pytest.mark.parametrize(("yaw", "pitch"), [(0, 0), (40, 15), (-33, -20), (10, 20)])
def test_known_points_land_on_their_pixels(yaw: float, pitch: float):
    points = np.array([[0.2, 0.25, 0.2], [-0.15, -0.2, 0.3], [0.05, 0.1, 0.38]])
    ball = trimesh.creation.icosphere(subdivisions=2, radius=0.02)
    vertices = np.concatenate([ball.vertices + point for point in points])
    faces = np.concatenate([ball.faces + index * len(ball.vertices) for index in range(3)])
    mesh = coloured_mesh(vertices, faces, np.repeat(np.eye(3), len(ball.vertices), axis=0))
    pose, intrinsics = camera(yaw, pitch)
    image = Raycaster(mesh).render(pose, intrinsics, 128, flat, BLACK).image.astype(float)
    rows, columns = np.mgrid[:128, :128]
    for channel, point in enumerate(points):
        weight = image[..., channel] / image[..., channel].sum()
        found = np.array([(weight * columns).sum(), (weight * rows).sum()])
        np.testing.assert_allclose(found, project(point, pose, heads.HEADS_FOCAL, 128), atol=0.15)


def test_depth_of_a_plane_is_exact_along_the_ray():
    corners = np.array([[-3, -3, 0.1], [3, -3, 0.1], [3, 3, 0.1], [-3, 3, 0.1]], dtype=float)
    mesh = coloured_mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]), np.ones((4, 3)))
    pose, intrinsics = camera(25, 10)
    picture = Raycaster(mesh).render(pose, intrinsics, 32, flat, BLACK)
    origin, directions = camera_rays(pose, intrinsics, 32)
    expected = (0.1 - origin[2]) / directions[:, 2]
    assert picture.mask.all()
    np.testing.assert_allclose(picture.depth.reshape(-1), expected, rtol=2e-7)


def test_depth_of_a_sphere_agrees_with_its_closed_form():
    ball = trimesh.creation.icosphere(subdivisions=6, radius=0.4)
    pose, intrinsics = camera(-20, 5)
    mesh = coloured_mesh(
        np.asarray(ball.vertices), np.asarray(ball.faces), np.ones((len(ball.vertices), 3))
    )
    picture = Raycaster(mesh).render(pose, intrinsics, 64, flat, BLACK)
    origin, directions = camera_rays(pose, intrinsics, 64)
    along = directions @ origin
    discriminant = along**2 - (origin @ origin - 0.4**2)
    expected = (-along - np.sqrt(np.maximum(discriminant, 0))).reshape(64, 64)
    inside, outside = (discriminant > 0.02).reshape(64, 64), (discriminant < -1e-3).reshape(64, 64)
    assert inside.sum() > 1000
    np.testing.assert_allclose(picture.depth[inside], expected[inside], atol=3e-4)
    assert picture.mask[inside].all()
    assert not picture.mask[outside].any()
    assert (picture.depth[outside] == 0).all()


def test_pixels_average_the_rays_inside_them():
    # The right edge of a white half plane, seen from the front at distance 2.7, cuts a pixel column
    # at a third.
    resolution, column = 32, 20
    edge = ((column + 1 / 3) / resolution - 0.5) / heads.HEADS_FOCAL * heads.HEADS_RADIUS
    corners = np.array([[-3, -3, 0], [edge, -3, 0], [edge, 3, 0], [-3, 3, 0]], dtype=float)
    mesh = coloured_mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]), np.ones((4, 3)))
    image = Raycaster(mesh).render(*camera(0, 0), resolution, flat, BLACK).image[..., 0]
    assert (image[:, :column] == 255).all()
    assert (image[:, column] == 85).all()
    assert (image[:, column + 1 :] == 0).all()


def test_colours_and_normals_are_interpolated():
    triangle = np.array([[-1, -1, 0], [1, -1, 0], [0, 1.5, 0]], dtype=float)
    mesh = coloured_mesh(triangle, np.array([[0, 1, 2]]), np.eye(3))
    pose, intrinsics = camera(0, 0)
    seen_normals = []

    def shader(attributes: np.ndarray, normals: np.ndarray) -> np.ndarray:
        seen_normals.append(normals)
        return attributes

    image = Raycaster(mesh).render(pose, intrinsics, 33, shader, BLACK, supersampling=1).image
    # The middle pixel looks at the origin; its barycentric coordinates solve a 3x3 system.
    weights = np.linalg.solve(np.column_stack([triangle[:, :2], np.ones(3)]).T, [0, 0, 1])
    np.testing.assert_allclose(image[16, 16] / 255, weights, atol=1 / 255)
    np.testing.assert_allclose(
        seen_normals[0], np.broadcast_to([0, 0, 1.0], seen_normals[0].shape), atol=1e-12
    )


def test_even_supersampling_has_no_middle_ray():
    mesh = coloured_mesh(np.eye(3), np.array([[0, 1, 2]]), np.eye(3))
    with pytest.raises(ValueError, match="odd"):
        Raycaster(mesh).render(*camera(0, 0), 8, flat, BLACK, supersampling=2)
