"""Camera rays against projection matrices, and box limits against points on the rays."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.rendering.rays import box_limits, sample_rays


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def random_cameras(count: int) -> tuple[Tensor, Tensor]:
    """Poses of any orientation; intrinsics with skew, unequal focal lengths and an off-centre
    principal point.
    """
    rotation, _ = torch.linalg.qr(torch.randn(count, 3, 3, dtype=torch.float64))
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]
    cam2world = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    cam2world[:, :3, :3], cam2world[:, :3, 3] = rotation, torch.randn(count, 3)
    intrinsics = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    intrinsics[:, 0, 0], intrinsics[:, 1, 1] = 0.5 + 4 * torch.rand(2, count)
    intrinsics[:, 0, 1], intrinsics[:, 0, 2], intrinsics[:, 1, 2] = torch.randn(3, count) * 0.5
    return cam2world, intrinsics


@pytest.mark.parametrize("resolution", [1, 2, 5])
def test_a_point_on_a_ray_projects_to_its_pixel(resolution: int) -> None:
    cam2world, intrinsics = random_cameras(20)
    origins, directions = sample_rays(cam2world, intrinsics, resolution)
    assert origins.shape == directions.shape == (20, resolution**2, 3)
    points = origins + directions * torch.rand(20, resolution**2, 1) * 5 + directions
    homogeneous = torch.cat([points, torch.ones(20, resolution**2, 1)], dim=-1)
    projection = intrinsics @ torch.linalg.inv(cam2world)[:, :3]
    u, v, depth = (homogeneous @ projection.transpose(1, 2)).unbind(-1)
    assert torch.all(depth > 0), "the camera looks along +z"
    pixel = torch.arange(resolution**2)
    row, column = pixel // resolution, pixel % resolution
    torch.testing.assert_close(u / depth, ((column + 0.5) / resolution).double().expand_as(u))
    torch.testing.assert_close(v / depth, ((row + 0.5) / resolution).double().expand_as(v))


def test_rays_start_at_the_camera_and_have_unit_length() -> None:
    cam2world, intrinsics = random_cameras(3)
    origins, directions = sample_rays(cam2world.float(), intrinsics.float(), 4)
    assert torch.equal(origins, cam2world.float()[:, None, :3, 3].expand(3, 16, 3))
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(3, 16))


def test_rays_are_differentiable_in_pose_and_intrinsics() -> None:
    cam2world, intrinsics = (matrix.requires_grad_() for matrix in random_cameras(1))
    assert torch.autograd.gradcheck(lambda m, k: sample_rays(m, k, 2), (cam2world, intrinsics))


def random_rays(count: int) -> tuple[Tensor, Tensor]:
    """Rays from inside and outside a cube of side 2 that hit, miss, or have it behind them."""
    origins = torch.randn(1, count, 3, dtype=torch.float64) * 2
    return origins, torch.nn.functional.normalize(
        torch.randn(1, count, 3, dtype=torch.float64), dim=-1
    )


def inside(points: Tensor, half: float) -> Tensor:
    return points.abs().amax(dim=-1) < half


def test_limits_are_where_the_ray_crosses_the_surface() -> None:
    origins, directions = random_rays(2000)
    near, far, hit = box_limits(origins, directions, 2.0)
    t = torch.linspace(0, 12, 4801, dtype=torch.float64)
    walk = inside(origins[:, :, None] + t[:, None] * directions[:, :, None], 1.0)
    met = walk.any(dim=-1, keepdim=True)
    assert met.any()
    assert not met.all()
    assert not torch.any(met & ~hit), "a ray with a point inside hits"
    assert torch.all((far - near)[hit & ~met] < 0.01), (
        "a hit that the walk steps over is a short one"
    )
    started_inside = inside(origins, 1.0)
    assert started_inside.any()
    assert torch.all(near[started_inside] == 0)
    for limit, chosen in ((near, hit[..., 0] & ~started_inside), (far, hit[..., 0])):
        crossing = (origins + limit * directions)[chosen]
        torch.testing.assert_close(
            crossing.abs().amax(dim=-1), torch.ones(len(crossing), dtype=torch.float64)
        )
    assert torch.all(inside((origins + (near + far) / 2 * directions)[hit[..., 0]], 1.0))


def test_rays_that_miss_get_finite_limits_outside_the_box() -> None:
    origins, directions = random_rays(2000)
    near, far, hit = box_limits(origins, directions, 2.0)
    near, far, missed = near[~hit], far[~hit], ~hit[..., 0]
    assert torch.all((near >= 0) & (far > near) & far.isfinite())
    along = near[:, None] + (far - near)[:, None] * torch.linspace(0, 1.05, 50, dtype=torch.float64)
    assert not torch.any(
        inside(origins[missed][:, None] + along[..., None] * directions[missed][:, None], 1.0)
    )


def test_each_ray_has_limits_of_its_own() -> None:
    origins, directions = random_rays(50)
    together = box_limits(origins, directions, 2.0)
    for index in range(50):
        alone = box_limits(origins[:, index : index + 1], directions[:, index : index + 1], 2.0)
        for whole, single in zip(together, alone, strict=True):
            assert torch.equal(whole[:, index : index + 1], single)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_rays_parallel_to_an_axis(axis: int, zero: float, dtype: torch.dtype) -> None:
    direction = torch.full((3,), zero, dtype=dtype)
    direction[axis] = -1
    origin = torch.full((3,), 0.3, dtype=dtype)
    origin[axis] = 2.5
    near, far, hit = box_limits(origin[None, None], direction[None, None], 1.0)
    assert (near.item(), far.item(), hit.item()) == (2.0, 3.0, True)
    _, _, behind = box_limits(origin[None, None], -direction[None, None], 1.0)
    assert not behind.item()
    origin[(axis + 1) % 3] = 0.6
    near, far, beside = box_limits(origin[None, None], direction[None, None], 1.0)
    assert not beside.item()
    assert math.isfinite(near.item())
    assert math.isfinite(far.item())


def test_a_diagonal_ray_has_the_closed_form_limits() -> None:
    direction = torch.full((1, 1, 3), -(3**-0.5), dtype=torch.float64)
    near, far, hit = box_limits(torch.full((1, 1, 3), 2.0, dtype=torch.float64), direction, 1.0)
    assert hit.item()
    assert near.item() == pytest.approx(1.5 * 3**0.5)
    assert far.item() == pytest.approx(2.5 * 3**0.5)


def test_the_box_scales_with_its_side() -> None:
    origins, directions = random_rays(200)
    near, far, hit = box_limits(origins, directions, 2.0)
    near_scaled, far_scaled, hit_scaled = box_limits(origins * 0.8, directions, 1.6)
    assert torch.equal(hit, hit_scaled)
    torch.testing.assert_close(near_scaled, near * 0.8)
    torch.testing.assert_close(far_scaled, far * 0.8)


def test_limits_have_finite_gradients_even_along_an_axis() -> None:
    origins = torch.tensor([[[0.1, 0.2, 2.5], [3.0, 0.0, 2.5]]], requires_grad=True)
    directions = torch.tensor([[[0.0, 0.0, -1.0], [0.0, 0.0, -1.0]]], requires_grad=True)
    near, far, _ = box_limits(origins, directions, 1.0)
    gradients = torch.autograd.grad((near + far).sum(), (origins, directions))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0][0, 0, 2] == 2, "moving the camera back moves both limits"
