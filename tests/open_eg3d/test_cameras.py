"""Labels from angles and back, and other programs' axes: against formulas written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from dnnlib.console import UserError
from open_eg3d import (
    from_colmap,
    from_opengl,
    from_pytorch3d,
    label_pose,
    orbit_label,
    to_colmap,
    to_opengl,
    to_pytorch3d,
)
from training.cameras import unpack_label

# Intrinsics that are not centred, and differ in x and y.
FX, FY, CX, CY = 1.3, 1.1, 0.45, 0.55
POINTS = torch.tensor([[0.1, 0.2, -0.1], [-0.3, 0.05, 0.2], [0.0, -0.2, 0.1]], dtype=torch.float64)


@pytest.fixture
def c() -> Tensor:
    """Labels (2, 25) of cameras without symmetry."""
    labels = orbit_label([25.0, -140.0], [10.0, -35.0], radius=2.5, pivot=(0.1, 0.2, -0.1))
    labels[:, 16:] = torch.tensor([FX, 0, CX, 0, FY, CY, 0, 0, 1])
    return labels


def pixels(c: Tensor) -> np.ndarray:
    """Where the points appear (N, 3, 2), 0 to 1 from the picture's left and top."""
    shown: list[tuple[Any, Any]] = []
    for label in c.double():
        cam2world = label[:16].reshape(4, 4)
        for point in POINTS:
            right, down, forward = (
                sum((point[k] - cam2world[k, 3]) * cam2world[k, axis] for k in range(3))
                for axis in range(3)
            )
            shown.append((FX * right / forward + CX, FY * down / forward + CY))
    return np.array(shown).reshape(len(c), 3, 2)


# --------------------------------------------------------------------------------------------------
# Angles


def test_position_and_axes_of_an_orbit() -> None:
    """Yaw 30, pitch 10 degrees, by trigonometry."""
    label = orbit_label(30, 10, radius=2.0, focal=3.0)
    a, b = math.radians(30), math.radians(10)
    back = np.array([math.sin(a) * math.cos(b), math.sin(b), math.cos(a) * math.cos(b)])
    right = np.array([math.cos(a), 0, -math.sin(a)])
    cam2world = np.eye(4)
    cam2world[:3] = np.stack([right, np.cross(-back, right), -back, 2 * back], axis=1)
    np.testing.assert_allclose(label[:16].reshape(4, 4), cam2world, atol=1e-6)
    np.testing.assert_allclose(label[16:], [3, 0, 0.5, 0, 3, 0.5, 0, 0, 1])


@pytest.mark.parametrize(
    ("yaw", "pitch", "direction"),
    [(0, 0, (0, 0, 1)), (90, 0, (1, 0, 0)), (180, 0, (0, 0, -1)), (-90, 0, (-1, 0, 0))],
)
def test_quarters(yaw: float, pitch: float, direction: tuple[float, ...]) -> None:
    pose = label_pose(orbit_label(yaw, pitch, radius=3.0))
    np.testing.assert_allclose(pose.position, 3 * np.array(direction), atol=1e-6)


def test_back_to_angles() -> None:
    yaw, pitch = torch.tensor([[0.0, 25.0], [-100.0, 179.0]]), torch.tensor([-20.0, 40.0])
    c = orbit_label(yaw, pitch, radius=1.7, center=(1, 2, 3), pivot=(1, 2, 3.5))
    assert c.shape == (2, 2, 25)
    pose = label_pose(c, center=(1, 2, 3))
    assert torch.allclose(pose.yaw_degrees, yaw, atol=1e-3)
    assert torch.allclose(pose.pitch_degrees, pitch.expand(2, 2), atol=1e-3)
    assert torch.allclose(pose.radius, torch.tensor(1.7), atol=1e-5)
    assert torch.equal(pose.position, unpack_label(c)[0][..., :3, 3])


def test_labels_are_left_as_they_are() -> None:
    c = orbit_label(10.0)
    kept = c.clone()
    label_pose(c, center=(1, 1, 1))
    assert torch.equal(c, kept)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: orbit_label(cast(Any, "left")), "yaw_degrees must be degrees"),
        (lambda: orbit_label(float("nan")), "yaw_degrees must be finite numbers of degrees"),
        (lambda: orbit_label(0, 0, radius=0), "radius must be a number above 0, not 0"),
        (lambda: orbit_label(0, 0, focal=-1.0), "focal must be a number above 0, not -1.0"),
        (lambda: label_pose(torch.zeros(2, 16)), r"camera labels \(..., 25\), not \(2, 16\)"),
        (lambda: to_opengl(cast(Any, np.zeros(25))), r"camera labels \(..., 25\), not ndarray"),
        (lambda: from_opengl(np.eye(3), np.eye(3)), r"cam2world must have shape \(..., 4, 4\)"),
        (lambda: from_colmap([1, 0, 0], [0, 0, 1], [1, 1, 1, 1], 64), r"qvec .* \(..., 4\)"),
    ],
)
def test_mistakes_are_one_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


# --------------------------------------------------------------------------------------------------
# Other programs


def test_opengl(c: Tensor) -> None:
    """The camera looks along -z, y is up: a point in front has negative z, x / -z to the right."""
    cam2world, _ = unpack_label(c.double())
    matrices = to_opengl(c).double().numpy()
    shown = []
    for matrix in matrices:
        for point in POINTS.numpy():
            x, y, z = (np.linalg.inv(matrix) @ [*point, 1])[:3]
            assert z < 0
            shown.append((FX * x / -z + CX, CY - FY * y / -z))
    np.testing.assert_allclose(np.array(shown).reshape(2, 3, 2), pixels(c), atol=1e-5)
    np.testing.assert_allclose(matrices[..., 3], cam2world[..., 3], atol=1e-6)
    assert torch.allclose(from_opengl(matrices, c[:, 16:].reshape(2, 3, 3)), c, atol=1e-6)


def test_pytorch3d(c: Tensor) -> None:
    """Row vectors x R + T; x to the left and y up in [-1, 1], the picture's left edge at +1."""
    camera = to_pytorch3d(c)
    shown = []
    for R, T, focal, middle in zip(*(value.double().numpy() for value in camera), strict=True):
        for point in POINTS.numpy():
            x, y, z = point @ R + T
            assert z > 0
            left, up = focal[0] * x / z + middle[0], focal[1] * y / z + middle[1]
            shown.append(((1 - left) / 2, (1 - up) / 2))
        assert np.linalg.det(R) == pytest.approx(1)
    np.testing.assert_allclose(np.array(shown).reshape(2, 3, 2), pixels(c), atol=1e-5)
    assert torch.allclose(from_pytorch3d(*camera), c, atol=1e-6)


def test_pytorch3d_from_the_front() -> None:
    """A camera on +z that looks at the origin: its left is the world's -x, its forward -z."""
    camera = to_pytorch3d(orbit_label(0.0, radius=3.0, focal=2.0))
    assert torch.allclose(camera.R, torch.diag(torch.tensor([-1.0, 1.0, -1.0])), atol=1e-7)
    assert torch.allclose(camera.T, torch.tensor([0.0, 0.0, 3.0]), atol=1e-6)
    assert torch.equal(camera.focal_length, torch.tensor([4.0, 4.0]))
    assert torch.equal(camera.principal_point, torch.zeros(2))


def test_colmap(c: Tensor) -> None:
    """x_camera = R(q) x + t with R of the unit quaternion w, x, y, z; pixels by fx, fy, cx, cy."""
    camera = to_colmap(c, 200)
    shown = []
    for (w, x, y, z), t, (fx, fy, cx, cy) in zip(
        *(value.double().numpy() for value in camera), strict=True
    ):
        R = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        for point in POINTS.numpy():
            right, down, forward = R @ point + t
            shown.append((fx * right / forward + cx, fy * down / forward + cy))
        assert w >= 0
    np.testing.assert_allclose(np.array(shown).reshape(2, 3, 2) / 200, pixels(c), atol=1e-5)
    np.testing.assert_allclose(camera.params[0], [200 * FX, 200 * FY, 200 * CX, 200 * CY])
    assert torch.allclose(from_colmap(*camera, 200), c, atol=1e-6)


def test_a_single_camera_keeps_its_shape(c: Tensor) -> None:
    one = c[0]
    assert to_opengl(one).shape == (4, 4)
    assert to_colmap(one, 64).qvec.shape == (4,)
    for back in (
        from_colmap(*to_colmap(one, 64), 64),
        from_pytorch3d(*to_pytorch3d(one)),
        from_opengl(to_opengl(one).tolist(), one[16:].reshape(3, 3).tolist()),
    ):
        assert torch.allclose(back, one, atol=1e-6)


def test_skew_is_refused_where_there_is_none(c: Tensor) -> None:
    c[1, 17] = 0.1
    for call in (to_pytorch3d, lambda c: to_colmap(c, 64)):
        with pytest.raises(UserError, match="skewed"):
            call(c)
    assert torch.allclose(from_opengl(to_opengl(c), c[:, 16:].reshape(2, 3, 3)), c, atol=1e-6)
