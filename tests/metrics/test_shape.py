"""Normals, neighbouring normals, heights of faces: on a sphere and on planes, whose shape is a
formula.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from metrics.detectors import Detector
from metrics.geometry import pixel_rays
from metrics.processes import ALONE
from metrics.reals import RealImages
from metrics.shape import (
    FACE_X,
    FACE_Y,
    asymmetry,
    camera_normals,
    effective_dimensions,
    face_heights,
    neighbour_angles,
    normal_pictures,
    normals_distance,
    real_surfaces,
    shape,
)
from tests.metrics.scenes import FOCAL, ORBIT, RADIUS, Scene, draw_camera, sampler_of
from training.cameras import orbit_pose, pack_label, pinhole_intrinsics


def camera(yaw: float = 0.0, pitch: float = 0.0) -> Tensor:
    pose = orbit_pose(torch.tensor(yaw).double(), torch.tensor(pitch).double(), ORBIT)
    return pack_label(pose, pinhole_intrinsics(FOCAL).double())[None].double()


def plane_depth(c: Tensor, normal: tuple[float, float, float], size: int = 64) -> Tensor:
    """Distances (N, 1, n, n) to the plane through (0, 0, 0.3) along the rays."""
    n = torch.tensor(normal, dtype=torch.float64)[None, :, None, None]
    rays = pixel_rays(c, size)
    offset = torch.tensor([0, 0, 0.3]).double() - c[:, (3, 7, 11)]
    return (offset[:, :, None, None] * n).sum(1, keepdim=True) / (rays * n).sum(1, keepdim=True)


def reals_of(scene: Scene, count: int, noise: float = 0.0) -> RealImages:
    """True depths of a scene, with bumps that differ between pictures."""
    random = np.random.RandomState(5)
    labels = torch.stack([draw_camera(random) for _ in range(count)])

    def read_depth(indices: np.ndarray) -> Tensor:
        c = labels[torch.from_numpy(indices)]
        out = scene.render(torch.zeros(len(c), 1, 4, 1, 1), torch.zeros(len(c), 1, 4), c, 32)
        bumps = [np.random.RandomState(index).randn(1, 32, 32) for index in indices]
        depth = out.image_depth.double() + noise * torch.from_numpy(np.stack(bumps))
        return torch.where(out.alpha > 0.5, depth, 0.0)

    return RealImages(count, 32, "key", lambda _: torch.zeros(0), labels, read_depth)


@pytest.mark.parametrize("view", [(0.0, 0.0), (0.5, -0.2)])
def test_normals_of_a_plane_are_its_own_in_the_cameras_axes(view: tuple[float, float]):
    c = camera(*view)
    normal = torch.nn.functional.normalize(torch.tensor([0.3, -0.2, 1.0]).double(), dim=0)
    normals = camera_normals(plane_depth(c, tuple(normal.tolist())), c)
    expected = c[0, :16].reshape(4, 4)[:3, :3].T @ normal
    assert expected[2] < 0  # towards the camera
    torch.testing.assert_close(
        normals, expected[None, :, None, None].expand_as(normals), atol=1e-9, rtol=0
    )
    assert neighbour_angles(normals).tolist() == pytest.approx([0, 1, 0, 1], abs=1e-5)


def test_normals_of_a_sphere_point_from_its_centre():
    c = camera(0.3, 0.1)
    scene = Scene(size=256, raw=256)
    out = scene.render(torch.zeros(1, 1, 4, 1, 1), torch.zeros(1, 1, 4), c)
    depth = torch.where(out.alpha > 0.5, out.image_depth.double(), 0.0)
    normals = camera_normals(depth, c)
    points = c[:, (3, 7, 11)][:, :, None, None] + depth * pixel_rays(c, 256)
    outward = torch.einsum("ji,njhw->nihw", c[0, :16].reshape(4, 4)[:3, :3], points) / RADIUS
    inside = normals.abs().sum(1) > 0
    facing = inside & (outward[:, 2, :-1, :-1] < -0.5)
    cosine = (normals * outward[:, :, :-1, :-1]).sum(1)
    assert facing.sum() > 5000
    assert cosine[facing].min() > math.cos(math.radians(2))
    assert not normals[:, :, 0, 0].any()


def test_angles_between_neighbours_by_hand_and_bands_show():
    """Rows tilted by 10 degrees to and fro: 20 degrees down, none across."""
    tilt = math.radians(10)
    rows = [[0, s * math.sin(tilt), -math.cos(tilt)] for s in (1, -1, 1, -1)]
    normals = torch.tensor(rows).double().T[None, :, :, None].expand(1, 3, 4, 5).clone()
    assert neighbour_angles(normals).tolist() == pytest.approx([20, 1, 0, 1])
    normals[:, :, 2:] = 0  # background: one pair of rows is left
    assert neighbour_angles(normals).tolist() == pytest.approx([20, 1, 0, 1])
    assert neighbour_angles(normals * 0).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("view", [(0.0, 0.0), (0.3, -0.2)])
def test_heights_of_a_face_do_not_depend_on_the_camera(view: tuple[float, float]):
    slope = 0.25
    c = camera(*view)
    heights = face_heights(plane_depth(c, (-slope, 0.0, 1.0)), c)
    x = torch.linspace(-FACE_X, FACE_X, heights.shape[-1]).double()
    torch.testing.assert_close(
        heights[0], (0.3 + slope * x).expand_as(heights[0]), atol=2e-4, rtol=0
    )
    # |2 slope x| averaged over the grid
    expected = float((2 * slope * x).abs().mean())
    assert asymmetry(heights) == pytest.approx(expected, rel=0.01)
    level = face_heights(plane_depth(c, (0.0, 0.0, 1.0)), c)
    assert asymmetry(level) < 1e-4
    background = face_heights(torch.zeros(1, 1, 64, 64).double(), c)
    assert background.isnan().all()


@pytest.mark.parametrize("yaw", [0.0, 0.34])
def test_heights_of_a_sphere_and_no_height_for_what_is_hidden(yaw: float):
    """The far side of a sphere is hidden from the side: its heights are missing, not invented."""
    c = camera(yaw)
    scene = Scene(size=64, raw=64)
    out = scene.render(torch.zeros(1, 1, 4, 1, 1), torch.zeros(1, 1, 4), c)
    heights = face_heights(torch.where(out.alpha > 0.5, out.image_depth.double(), 0.0), c)[0]
    y, x = torch.meshgrid(
        torch.linspace(*FACE_Y, len(heights)).double(),
        torch.linspace(-FACE_X, FACE_X, len(heights)).double(),
        indexing="ij",
    )
    height = (RADIUS**2 - x**2 - y**2).sqrt()
    points = torch.stack([x, y, height], -1)
    hidden = (points * (c[0, [3, 7, 11]] - points)).sum(-1) < 0
    seen = ~heights.isnan()
    assert not (seen & hidden).any()
    assert seen.double().mean() > 0.9
    assert (heights - height)[seen].abs().max() < 3e-3


def test_dimensions_are_the_number_of_equal_ways_to_vary():
    random = np.random.RandomState(0)
    ways = np.linalg.qr(random.randn(99, 5))[0]
    ways = np.concatenate([ways - ways.mean(0), np.zeros((1, 5))])[:99]
    drawn = torch.from_numpy(random.randn(4000, 5) @ np.linalg.qr(ways)[0].T).reshape(-1, 9, 11)
    assert effective_dimensions(drawn) == pytest.approx(5, abs=0.1)
    assert effective_dimensions(drawn[:, :, :] * 3 + 7) == pytest.approx(5, abs=0.1)
    one = torch.from_numpy(random.randn(50, 1, 1)) * drawn[:1]
    assert effective_dimensions(one) == pytest.approx(1, abs=1e-6)


def test_a_round_scene_has_the_reals_values_and_a_bumpy_truth_has_not():
    sampler = sampler_of(Scene(raw=32))
    values = shape(sampler, reals_of(Scene(), 24), 12, 5, ALONE)
    for name in ("vertical_angle", "horizontal_angle", "asymmetry"):
        assert values[name] == pytest.approx(values[f"real_{name}"], rel=1e-3)
    bumpy = shape(sampler, reals_of(Scene(), 24, noise=0.005), 12, 5, ALONE)
    assert bumpy["real_vertical_angle"] > 2 * bumpy["vertical_angle"]
    assert bumpy["real_effective_dimensions"] > 2 * bumpy["effective_dimensions"]
    alone = shape(sampler, None, 12, 12, ALONE)
    assert set(alone) == {
        "vertical_angle",
        "horizontal_angle",
        "asymmetry",
        "effective_dimensions",
        "frontal",
    }


def colours(images: Tensor) -> tuple[Tensor, Tensor]:
    values = images.double().flatten(2) / 255
    rows = torch.cat([values.mean(2), values.square().mean(2)], 1)
    return rows, rows


def test_normals_distance_is_small_for_the_same_surface():
    detector = Detector("lite0", "0" * 64, "test", colours, 6, 6, torch.device("cpu"))
    found = {
        kind: normals_distance(
            sampler_of(Scene(kind, raw=32)), reals_of(Scene(), 20), detector, 10, 4, ALONE
        )
        for kind in ("sphere", "card")
    }
    assert set(found["sphere"]) == {"", "real"}
    assert found["sphere"][""] < 1e-6
    assert found["card"][""] > 100 * max(found["sphere"][""], found["card"]["real"], 1e-6)
    assert "real" not in normals_distance(
        sampler_of(Scene(raw=32)), reals_of(Scene(), 15), detector, 10, 4, ALONE
    )
    pictures = normal_pictures(real_surfaces(reals_of(Scene(), 4), np.arange(4)), 0, 2)
    assert pictures.shape == (2, 3, 31, 31)
    assert pictures.dtype == torch.uint8
    assert pictures[:, :, 0, 0].unique().tolist() == [128]
