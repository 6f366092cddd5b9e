"""Clouds of Gaussians as a camera sees them: against points drawn from them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from scipy.spatial.transform import Rotation

from media.splats.splats import BLUR, Splats, rotation_matrices
from tests.media.splats.clouds import CAMERAS, ball
from training.cameras import pack_label, unpack_label

LABEL = CAMERAS.label(0.5, -0.2)


def one(**more: torch.Tensor) -> Splats:
    cloud = Splats(
        torch.tensor([[0.05, -0.1, 0.1]]),
        torch.tensor([[0.06, 0.02, 0.03]]),
        torch.tensor([[0.7, 0.1, -0.5, 0.5]]),
        torch.tensor([0.9]),
        torch.tensor([[0.2, 0.4, 0.8]]),
    )
    return dataclasses.replace(cloud, **more)


def test_rotations_are_scipys() -> None:
    quaternions = torch.randn(50, 4, dtype=torch.float64)
    expected = Rotation.from_quat(quaternions.numpy(), scalar_first=True).as_matrix()
    torch.testing.assert_close(rotation_matrices(quaternions), torch.tensor(expected))


def test_a_gaussian_lies_where_its_points_are_seen() -> None:
    """Mean and covariance on the picture, of points drawn from the Gaussian in space."""
    cloud, size = one(), 200
    noise = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0))
    turn = rotation_matrices(cloud.rotations)[0]
    points = cloud.positions + (noise * cloud.scales) @ turn.T
    cam2world, intrinsics = unpack_label(LABEL)
    seen = (points - cam2world[:3, 3]) @ cam2world[:3, :3] @ intrinsics.T
    pixels = seen[:, :2] / seen[:, 2:] * size
    image, alpha = cloud.render(LABEL, size)
    at = torch.arange(size) + 0.5
    places = torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1).flatten(0, 1)
    weights = alpha.flatten() / alpha.sum()
    mean = weights @ places
    torch.testing.assert_close(mean, pixels.mean(dim=0), atol=0.3, rtol=0)
    around = places - mean
    covariance = (weights[:, None] * around).T @ around
    expected = torch.cov(pixels.T) + BLUR * torch.eye(2)
    torch.testing.assert_close(covariance, expected, atol=0.5, rtol=0.05)
    torch.testing.assert_close(image, alpha * torch.tensor([0.2, 0.4, 0.8])[:, None, None])


def test_a_skewed_camera_off_the_middle() -> None:
    """The linearised projection is the derivative of the projection."""
    cam2world, intrinsics = unpack_label(LABEL.double())
    intrinsics[0, 1], intrinsics[0, 2], intrinsics[1, 2] = 0.1, 0.4, 0.55
    cloud = Splats(*(value.double() for value in vars(one()).values()))

    def project(point: torch.Tensor) -> torch.Tensor:
        seen = intrinsics @ cam2world[:3, :3].T @ (point - cam2world[:3, 3])
        return seen[:2] / seen[2] * 100

    means, covariances, _ = cloud._project(pack_label(cam2world, intrinsics), 100)
    torch.testing.assert_close(means[0], project(cloud.positions[0]))
    slope = torch.autograd.functional.jacobian(project, cloud.positions[0])
    axes = slope @ rotation_matrices(cloud.rotations)[0] * cloud.scales
    covariance = axes @ axes.T
    torch.testing.assert_close(covariances[0], covariance.flatten()[[0, 1, 3]])


@pytest.mark.parametrize("size", [24, 48, 200])
def test_alpha_does_not_depend_on_the_resolution(size: int) -> None:
    """Gaussians much smaller than a pixel cover as much of the picture as they should."""
    tiny = one(scales=torch.full((1, 3), 0.01), opacities=torch.tensor([0.5]))
    share = tiny.render(LABEL, size)[1].mean()
    expected = tiny.render(LABEL, 400)[1].mean()
    assert share == pytest.approx(float(expected), rel=0.1)


def test_what_is_nearer_hides_what_is_behind() -> None:
    image, alpha = ball().render(CAMERAS.label(0.0, 0.0), 64)
    flipped = ball().render(CAMERAS.label(torch.pi, 0.0), 64)[0]
    middle = image[:, 32, 32] / alpha[:, 32, 32]
    assert alpha[0, 32, 32] > 0.95
    assert middle[2] < 0.25  # blue grows away from +z
    assert flipped[2, 32, 32] > 0.7


def test_what_is_behind_the_camera_is_not_seen() -> None:
    behind = one(positions=torch.tensor([[0.0, 0.0, 5.4]]))
    image, alpha = behind.render(CAMERAS.label(0.0, 0.0), 32)
    assert not image.any()
    assert not alpha.any()
