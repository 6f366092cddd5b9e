"""Plane look-ups: coordinates come back, and a float64 loop agrees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.references import bilinear
from training.rendering.triplane import sample

# World coordinates (0 = x, 1 = y, 2 = z) along width and height of planes 0, 1, 2.
AXES = {
    "corrected": [("x", "y"), ("x", "z"), ("z", "y")],
    "released": [("x", "y"), ("x", "z"), ("z", "x")],
}
MODES = list(AXES)
INDEX = {"x": 0, "y": 1, "z": 2}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def texel_centers(count: int, box: float) -> Tensor:
    return ((torch.arange(count, dtype=torch.float64) + 0.5) / count * 2 - 1) * box / 2


def coordinate_planes(height: int, width: int, box: float) -> Tensor:
    """(1, 3, 6, H, W): channels 2p and 2p + 1 of plane p, and no other plane, hold three times its
    width and height coordinate.
    """
    planes = torch.zeros(1, 3, 6, height, width, dtype=torch.float64)
    for p in range(3):
        planes[0, p, 2 * p] = 3 * texel_centers(width, box)
        planes[0, p, 2 * p + 1] = 3 * texel_centers(height, box)[:, None]
    return planes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("box", [1.0, 1.6])
@pytest.mark.parametrize("size", [(16, 16), (8, 12)])
def test_planes_of_coordinates_return_coordinates(mode, box: float, size: tuple[int, int]) -> None:
    points = (torch.rand(1, 200, 3, dtype=torch.float64) - 0.5) * box * (1 - 1 / 8)
    result = sample(coordinate_planes(*size, box), points, box, mode)
    expected = [points[..., INDEX[letter]] for plane in AXES[mode] for letter in plane]
    torch.testing.assert_close(result, torch.stack(expected, dim=-1))


@pytest.mark.parametrize("mode", MODES)
def test_equals_the_loop_inside_and_outside(mode) -> None:
    planes, points = (
        torch.randn(2, 3, 4, 5, 7, dtype=torch.float64),
        torch.randn(2, 60, 3, dtype=torch.float64) * 0.6,
    )
    result = sample(planes, points, 1.3, mode).numpy()
    for n in range(2):
        for m in range(60):
            q = points[n, m].numpy() * 2 / 1.3
            looked_up = [
                bilinear(planes[n, p].numpy(), q[INDEX[a]], q[INDEX[b]])
                for p, (a, b) in enumerate(AXES[mode])
            ]
            np.testing.assert_allclose(result[n, m], np.mean(looked_up, axis=0), atol=1e-12)


def test_mean_of_the_three_planes() -> None:
    planes = torch.tensor([3.0, 30.0, 300.0]).view(1, 3, 1, 1, 1).expand(1, 3, 1, 8, 8)
    assert sample(planes, torch.zeros(1, 1, 3), 1.0).item() == pytest.approx(111)


def test_planes_are_zero_outside() -> None:
    """One side of a plane's picture away from the box, in z: only the plane that does not know z
    answers.
    """
    planes = torch.tensor([3.0, 30.0, 300.0]).view(1, 3, 1, 1, 1).expand(1, 3, 1, 8, 8)
    points = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]])
    torch.testing.assert_close(
        sample(planes, points, 1.0, "corrected").flatten(),
        torch.tensor([1.0, 10.0, 100.0, 0.0]),
    )


def test_the_border_fades_over_half_a_texel() -> None:
    planes = torch.zeros(1, 3, 1, 8, 8)
    planes[:, 0] = 3
    points = torch.tensor([[[x / 16, 0.0, 0.0] for x in (7, 7.5, 8, 8.5, 9)]])
    torch.testing.assert_close(
        sample(planes, points, 1.0).flatten(), torch.tensor([1, 0.75, 0.5, 0.25, 0])
    )


@pytest.mark.parametrize("mode", MODES)
def test_memory_format_does_not_matter(mode) -> None:
    planes, points = torch.randn(2, 3, 8, 6, 6), torch.randn(2, 50, 3) * 0.4
    expected = sample(planes, points, 1.0, mode)
    channels_last = planes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    strided = torch.randn(2, 6, 8, 6, 12)[:, ::2, :, :, 1::2].copy_(planes)
    for other in (channels_last, strided):
        assert not other.is_contiguous()
        torch.testing.assert_close(sample(other, points, 1.0, mode), expected)


@pytest.mark.parametrize("mode", MODES)
def test_gradients(mode) -> None:
    planes = torch.randn(1, 3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    points = (torch.randn(1, 5, 3, dtype=torch.float64) * 0.3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda planes, points: sample(planes, points, 1.0, mode), (planes, points)
    )


def test_a_batch_equals_its_samples() -> None:
    planes, points = torch.randn(3, 3, 4, 8, 8), torch.randn(3, 20, 3)
    together = sample(planes, points, 1.0)
    for n in range(3):
        torch.testing.assert_close(
            together[n : n + 1], sample(planes[n : n + 1], points[n : n + 1], 1.0)
        )
