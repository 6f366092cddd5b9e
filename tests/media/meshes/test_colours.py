"""Colours of surfaces against closed forms and loops in float64, and the silhouettes' level against
an integral.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize
from torch import Tensor

from media.meshes import colours
from media.meshes.colours import SurfaceColours, covered_texels, simplify
from media.meshes.region import seen_region, surface_level
from tests.media.meshes.test_shapes import EVERYWHERE, ORBIT, PLANES, Scene, ball
from training.cameras import orbit_pose, pack_label, pinhole_intrinsics

FRONT = pack_label(orbit_pose(0.0, 0.0, ORBIT), pinhole_intrinsics(1.2))[None]
SIDES = pack_label(orbit_pose(torch.tensor([-0.7, 0.0, 0.7]), 0.0, ORBIT), pinhole_intrinsics(1.2))


# --------------------------------------------------------------------------------------------------
# Colours


class Fog(Scene):
    """The same density everywhere; red falls with the way behind the plane z = 0."""

    def __init__(self, density: float) -> None:
        super().__init__(lambda p: torch.full_like(p[..., 0], density))

    def query(self, points: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        behind = (-points[..., 2:]).clamp(min=0)
        return self.query_density(points, planes), torch.cat(
            [1 - 5 * behind, 5 * behind, torch.ones_like(behind)], dim=-1
        )


@pytest.mark.parametrize("density", [5.0, 20.0, 200.0])
def test_colour_is_what_a_camera_would_see(density: float) -> None:
    """In fog of extinction s the mean depth of what is seen, of the first D, is 1/s - D / (exp(s D)
    - 1).
    """
    extinction = math.log1p(math.exp(density - 1))
    depth = colours.COLOUR_DEPTH
    mean = 1 / extinction - depth / math.expm1(extinction * depth)
    found = SurfaceColours(Fog(density), PLANES, FRONT).colors(
        np.zeros((1, 3)), np.array([[0.0, 0.0, 1.0]])
    )
    np.testing.assert_allclose(found[0] / 255, [1 - 5 * mean, 5 * mean, 1], atol=0.006)


def test_colour_of_thin_air_is_that_of_the_point() -> None:
    found = SurfaceColours(Fog(-20.0), PLANES, FRONT).colors(
        np.array([[0.0, 0.0, -0.1]]), np.array([[0.0, 0.0, 1.0]])
    )
    np.testing.assert_allclose(found[0] / 255, [0.5, 0.5, 1], atol=0.003)


def test_nothing_to_colour() -> None:
    assert SurfaceColours(Fog(0.0), PLANES, FRONT).colors(
        np.zeros((0, 3)), np.zeros((0, 3))
    ).shape == (0, 3)


def test_points_are_looked_at_from_the_side_they_face() -> None:
    normals = torch.nn.functional.normalize(
        torch.tensor([[-0.7, 0, 0.7], [0, 0, 1], [0.7, 0, 0.7], [0, 0, -1], [0, 1, 0.0]]), dim=1
    )
    views = SurfaceColours(Fog(0.0), PLANES, SIDES).view_directions(torch.zeros(5, 3), normals)
    np.testing.assert_allclose(views.norm(dim=1), 1, atol=1e-6)
    assert views[0, 0] > 0.1  # from the left to the right
    np.testing.assert_allclose(views[1], [0, 0, -1], atol=1e-6)
    assert views[2, 0] < -0.1
    # no camera faces these: straight inward
    np.testing.assert_allclose(views[3:], [[0, 0, 1], [0, -1, 0]], atol=1e-6)
    assert ((views * normals).sum(dim=1) < 0).all()


def test_colours_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.RandomState(0)
    points = random.uniform(-0.3, 0.3, (500, 3))
    normals = points / np.linalg.norm(points, axis=1, keepdims=True)
    teller = SurfaceColours(Scene(ball()), PLANES, EVERYWHERE)
    whole = teller.colors(points, normals)
    monkeypatch.setattr(colours, "CHUNK_POINTS", 24 * 7)
    np.testing.assert_array_equal(teller.colors(points, normals), whole)


# --------------------------------------------------------------------------------------------------
# Texels


def side(a: np.ndarray, b: np.ndarray, p: np.ndarray) -> float:
    return float((b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(-2, 14), st.floats(-2, 14)), min_size=6, max_size=6))
def test_covered_texels_are_those_whose_centres_lie_inside(
    corners: list[tuple[float, float]],
) -> None:
    triangles = np.array(corners).reshape(2, 3, 2)
    texels, owners, shares = covered_texels(triangles, 12)
    found = {
        (int(owner), int(column), int(row))
        for owner, (column, row) in zip(owners, texels, strict=True)
    }
    for index, (a, b, c) in enumerate(triangles):
        area = side(a, b, c)
        for column in range(12):
            for row in range(12):
                p = np.array([column + 0.5, row + 0.5])
                parts = (
                    np.array([side(b, c, p), side(c, a, p), side(a, b, p)]) / area
                    if abs(area) > 1e-3
                    else np.array([-1.0])
                )
                if abs(parts).min() > 1e-6 and abs(area) > 1e-3:
                    assert ((index, column, row) in found) == bool((parts > 0).all())
    np.testing.assert_allclose(
        np.einsum("tk,tkc->tc", shares, triangles[owners]), texels + 0.5, atol=1e-4
    )


def test_simplify_leaves_small_meshes_alone() -> None:
    points, faces = np.eye(3, dtype=np.float32), np.array([[0, 1, 2]], dtype=np.int32)
    assert simplify(points, faces, 5) == (points, faces)


# --------------------------------------------------------------------------------------------------
# The level of silhouettes


@pytest.mark.parametrize("steepness", [40.0, 150.0])
def test_level_has_the_silhouette_of_a_fuzzy_ball(steepness: float) -> None:
    """The ray that just loses half of its light touches the surface: its largest density is the
    level.
    """

    def density(radius: float) -> float:
        return 10 + steepness * (0.2 - radius)

    def optical_depth(distance: float) -> float:
        return integrate.quad(
            lambda s: np.logaddexp(0, density(math.hypot(distance, s)) - 1), -0.6, 0.6, limit=200
        )[0]

    edge = optimize.brentq(lambda distance: optical_depth(distance) - math.log(2), 0.0, 0.45)
    scene = Scene(ball(0.2, (0.0, 0.0, 0.0), steepness))
    level = surface_level(scene, PLANES, seen_region(scene, PLANES, EVERYWHERE))
    assert level == pytest.approx(density(edge), abs=steepness * 0.01)  # a hundredth of the box
