"""Samples near the surface: intervals cover what is seen; few samples show what many show."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.training.rendering.test_fused import (
    assert_close,
    gradients_of,
    kernels,  # noqa: F401 - a fixture
    make_decoder,
    make_planes,
)
from training.cameras import orbit_pose, pinhole_intrinsics
from training.config.settings import RenderingConfig
from training.rendering import tight
from training.rendering.rays import sample_rays
from training.rendering.renderer import RenderedRays, render
from training.rendering.tight import CELL, cell_rays, depths_of, spread

SIDE = 32
FOCAL, RADIUS = 6.0, 2.7
PIXEL = RADIUS / FOCAL / SIDE  # at the origin
BOX = 1.6  # beyond what rays see: outside planes hold zeros, which are the origin's coordinates
THICK = 1 / 32  # the least that planes of 64 texels hold: two texels


# --------------------------------------------------------------------------------------------------
# Parts


@pytest.mark.parametrize("side", [1, 3, 4, 10, 32])
def test_each_cell_has_a_ray_inside_it(side: int) -> None:
    rays, cells = cell_rays(side), -(-side // CELL)
    assert rays.shape == (cells * cells,)
    rows, columns = rays // side // CELL, rays % side // CELL
    assert (rows * cells + columns).tolist() == list(range(cells * cells))


def test_no_line_passes_between_the_rays() -> None:
    rays = cell_rays(SIDE).view(SIDE // CELL, SIDE // CELL)
    for lines in (rays % SIDE, rays.T // SIDE):
        for first in range(SIDE // CELL - CELL + 1):
            assert set(lines[first : first + CELL].flatten().tolist()) == set(range(SIDE))


def test_a_pixel_knows_its_neighbours_surfaces() -> None:
    side, cells = 64, 64 // CELL
    weights = torch.zeros(1, cells**2, 6)
    weights[0, 7 * cells + 7, 2], weights[0, 7 * cells + 9, 4] = 0.9, 0.6
    pixels = spread(weights, side).view(side, side, 6)
    row = 7 * CELL + 1
    for column, expected in ((5, {1, 2}), (8, {1, 2, 3, 4}), (11, {3, 4})):
        for pixel in (column * CELL, column * CELL + 3):
            assert set(pixels[row, pixel].nonzero().flatten().tolist()) == expected
    assert pixels[row, 7 * CELL + 1, 2] > 2 * pixels[row, 8 * CELL + 3, 2]  # nearer to its own
    assert pixels[row, 7 * CELL + 1].sum() == pytest.approx(1)
    assert not pixels[: 5 * CELL].any()
    assert not pixels[10 * CELL :].any()


@pytest.mark.parametrize("cells", [1, 3, 8])
def test_a_pixel_at_the_border_knows_as_many_neighbours(cells: int) -> None:
    weights, reach = torch.zeros(1, cells**2, 2), min(5, cells)
    weights[0, (reach - 1) * cells + reach - 1] = 1.0
    pixels = spread(weights, cells * CELL).view(cells * CELL, -1, 2)
    assert pixels[0, 0].sum() > 0


@given(
    st.integers(4, 40),
    st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=7, max_size=7),
    st.floats(1.8, 2.4),
    st.floats(0.2, 1.0),
)
def test_depths_are_in_order_and_most_lie_where_weights_do(
    count: int, weights: list[float], near: float, length: float
) -> None:
    edges = torch.linspace(1.8, 3.4, 8).view(1, 1, 8)
    limits = torch.full((1, 1, 1), near), torch.full((1, 1, 1), near + length)
    depths = depths_of(*limits, edges, torch.tensor([[weights]]), torch.rand(1, 1, count))
    assert depths.shape == (1, 1, count)
    assert (depths.diff() >= 0).all()
    assert depths.min() >= near - 1e-6
    assert depths.max() <= near + length + 1e-6
    inside = torch.zeros(count, dtype=torch.bool)
    for weight, low, high in zip(weights, edges[0, 0, :-1], edges[0, 0, 1:], strict=True):
        if weight and low < near + length and high > near:
            inside |= (depths[0, 0] >= low - 1e-5) & (depths[0, 0] <= high + 1e-5)
    if inside.any():
        assert inside.sum() >= math.floor((1 - tight.ANYWHERE) * count) - 1


# --------------------------------------------------------------------------------------------------
# Against many samples


def coordinate_planes(size: int = 64) -> Tensor:
    """Planes (1, 3, 3, size, size) whose mean is a third of the point's coordinates in half box
    sides; linear in between.
    """
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    planes = torch.zeros(1, 3, 3, size, size)
    planes[0, 0, 0], planes[0, 0, 1] = axis[None, :], axis[:, None]
    planes[0, 1, 2] = axis[:, None]
    return planes


Field = Callable[[Tensor], Tensor]


def decoder_of(field: Field) -> Any:
    """A decoder of `coordinate_planes`: raw densities from a signed distance, positive inside, as
    steep and as bounded as those of a trained network, and colours that vary smoothly.
    """

    def decode(features: Tensor) -> tuple[Tensor, Tensor]:
        points = features * 3 * BOX / 2
        density = (field(points)[..., None] * 1500).clamp(-15, 80)
        return density, torch.sin(points * 9) * 0.5 + 0.5

    return decode


def thread(place: float, depth: float, axis: int) -> Field:
    """A line one pixel wide and `THICK` deep, along x or y, which is opaque."""

    def field(points: Tensor) -> Tensor:
        across = PIXEL / 2 - (points[..., 1 - axis] - place).abs()
        return 8 * torch.minimum(across, THICK / 2 - (points[..., 2] - depth).abs())

    return field


def picture(decoder: Any, **options: Any) -> RenderedRays:
    usual = {"ray_start": 2.2, "ray_end": 3.2, "box_warp": BOX, "background": (0.3, 0.6, 0.6)}
    config = RenderingConfig(**{**usual, **options})
    c2w = orbit_pose(torch.tensor([0.0]), torch.tensor([0.0]), RADIUS)
    origins, directions = sample_rays(c2w, pinhole_intrinsics(FOCAL)[None], SIDE)
    return render(coordinate_planes(), decoder, origins, directions, config, deterministic=True)


def tightly(second: int, first: int = 48) -> dict[str, Any]:
    return {
        "first_pass": "quarter",
        "depth_resolution": first,
        "depth_resolution_importance": second,
    }


MANY = {"depth_resolution": 512, "depth_resolution_importance": 0}


@torch.no_grad()
@settings(max_examples=6, deadline=None)
@given(pixel=st.integers(2, SIDE - 3), depth=st.floats(-0.35, 0.4), axis=st.integers(0, 1))
def test_a_thread_of_one_pixel_does_not_vanish(pixel: int, depth: float, axis: int) -> None:
    place = (pixel + 0.5 - SIDE / 2) * PIXEL * (RADIUS - depth) / RADIUS * (-1 if axis == 0 else 1)
    decoder = decoder_of(thread(place, depth, axis))
    line, own = (
        (out.alpha.view(SIDE, SIDE) if axis == 0 else out.alpha.view(SIDE, SIDE).T)[pixel]
        for out in (picture(decoder, **MANY), picture(decoder, **tightly(16)))
    )
    assert (line > 0.6).sum() >= SIDE * 3 / 4
    assert (own[line > 0.6] > 0.5).all()


# --------------------------------------------------------------------------------------------------
# Kernels


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limits", [(2.25, 3.3), ("auto", "auto")])
@pytest.mark.parametrize("length_unit", ["world", "box"])
def test_kernels_render_what_the_definition_renders(
    dtype: torch.dtype, limits: Any, length_unit: Any
) -> None:
    """Forward and backward, at random places in the intervals; some rays miss the box."""
    config = dataclasses.replace(
        RenderingConfig(**tightly(8, first=12)),
        ray_start=limits[0],
        ray_end=limits[1],
        length_unit=length_unit,
        box_warp=1.1,
    )
    planes = make_planes(2, 8).to(dtype).requires_grad_()
    decoder = make_decoder(8, 16, 5, density=4.0).to(dtype)
    poses = orbit_pose(torch.tensor([0.3, -0.2]), torch.tensor([0.1, 0.0]), RADIUS)
    rays = sample_rays(poses.to(dtype), pinhole_intrinsics(1.8).expand(2, 3, 3).to(dtype), 10)

    def run() -> list[Tensor]:
        outputs = tuple(render(planes, decoder, *rays, config))
        return [*outputs, *gradients_of(outputs, [planes, *decoder.parameters()])]

    assert_close(run, 1e-8 if dtype == torch.float64 else 5e-4)


def test_only_the_rays_of_a_picture_are_taken() -> None:
    origins, directions = torch.zeros(1, 12, 3), torch.ones(1, 12, 3) / 3**0.5
    with pytest.raises(ValueError, match="12 rays are not those of a square picture"):
        render(
            coordinate_planes(), decoder_of(thread(0.0, 0.0, 0)), origins, directions,
            RenderingConfig(**tightly(8)),
        )  # fmt: skip
