"""Sample depths against float64 loops that follow the published description step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dnnlib.console import UserError
from tests import references
from training.rendering.sampling import (
    FineOffsets,
    draw_offsets,
    importance_depths,
    invert_cdf,
    smooth_weights,
    stratified_depths,
)

PLACEMENTS = ["interval", "released"]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def random_ray_depths(rays: int, count: int) -> Tensor:
    return (torch.rand(2, rays, count, dtype=torch.float64) + 0.01).cumsum(dim=-1)


def fine_offsets(depths: Tensor, count: int, deterministic: bool = True) -> Tensor:
    u = draw_offsets(depths[..., :1], 2, count, deterministic).fine
    assert u is not None
    return u


def test_offsets() -> None:
    near = torch.zeros(2, 3, 1, dtype=torch.float64)
    for deterministic in (True, False):
        coarse, fine = draw_offsets(near, 4, 5, deterministic)
        assert fine is not None
        assert (coarse.shape, fine.shape, coarse.dtype, fine.dtype) == (
            (2, 3, 4),
            (2, 3, 5),
            near.dtype,
            near.dtype,
        )
        assert draw_offsets(near, 4, 0, deterministic).fine is None
    fixed = draw_offsets(near, 4, 5, deterministic=True)
    assert torch.all(fixed.coarse == 0.5)
    torch.testing.assert_close(
        fixed.fine, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]).double().expand(2, 3, 5)
    )


def test_offsets_are_drawn_in_one_order() -> None:
    """Coarse ones first: what a seed gives must not change."""
    drawn = draw_offsets(torch.zeros(2, 3, 1), 4, 5, deterministic=False)
    torch.manual_seed(0)
    for offsets, count in zip(drawn, (4, 5), strict=True):
        assert offsets is not None
        assert torch.equal(offsets, torch.rand(2, 3, count))


@pytest.mark.parametrize("count", [2, 5, 48])
def test_deterministic_depths(count: int) -> None:
    near, far = (
        torch.rand(2, 3, 1, dtype=torch.float64),
        2 + torch.rand(2, 3, 1, dtype=torch.float64),
    )
    depths = stratified_depths(near, far, draw_offsets(near, count, 0, deterministic=True).coarse)
    for sample in range(2):
        for ray in range(3):
            step = (far[sample, ray, 0] - near[sample, ray, 0]) / (count - 1)
            expected = torch.stack([near[sample, ray, 0] + (i + 0.5) * step for i in range(count)])
            torch.testing.assert_close(depths[sample, ray], expected)


def test_random_depths_are_uniform_in_their_strata() -> None:
    near, far = torch.full((1, 4000, 1), 2.25), torch.full((1, 4000, 1), 3.3)
    depths = stratified_depths(near, far, draw_offsets(near, 8, 0, deterministic=False).coarse)
    u = (depths - near) / ((far - near) / 7) - torch.arange(8)
    assert torch.all((u > -1e-4) & (u < 1 + 1e-4))
    assert torch.any(depths[..., -1] > 3.3), "the last may pass far"
    histogram = torch.histc(u, bins=10, min=0, max=1)
    torch.testing.assert_close(histogram / u.numel(), torch.full((10,), 0.1), atol=0.01, rtol=0)
    assert (u[0, :, 0] - u[0, :, 1]).abs().mean() > 0.3, "a draw for every sample"
    assert (u[0, 0] - u[0, 1]).abs().mean() > 0, "and for every ray"
    assert not torch.equal(
        depths, stratified_depths(near, far, draw_offsets(near, 8, 0, deterministic=False).coarse)
    )


@settings(max_examples=50, derandomize=True)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_smoothing(weights: list[float]) -> None:
    result = smooth_weights(torch.tensor(weights, dtype=torch.float64))
    np.testing.assert_allclose(result, references.smooth_weights(np.array(weights)), rtol=1e-12)


@settings(max_examples=100, derandomize=True)
@given(
    weights=st.lists(st.sampled_from([0.0, 0.0, 1e-6, 0.01, 0.3, 5.0]), min_size=1, max_size=8),
    u=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_inverse_cdf(weights: list[float], u: list[float], seed: int) -> None:
    edges = np.cumsum(np.random.default_rng(seed).random(len(weights) + 1))
    result = invert_cdf(
        *(torch.tensor(value, dtype=torch.float64) for value in (edges, weights, u))
    )
    np.testing.assert_allclose(
        result, [references.invert_cdf(edges, np.array(weights), value) for value in u], rtol=1e-9
    )
    assert torch.all((result >= edges[0] - 1e-9) & (result <= edges[-1] + 1e-9))


def test_inverse_cdf_at_the_bins_edges() -> None:
    edges, weights = torch.tensor([1.0, 2.0, 4.0, 5.0]).double(), torch.ones(3).double()
    u = torch.tensor([0.0, 1 / 6, 1 / 3 + 1e-9, 2 / 3 + 1e-9, 5 / 6, 1 - 1e-9]).double()
    expected = torch.tensor([1.0, 1.5, 2.0, 4.0, 4.5, 5.0]).double()
    torch.testing.assert_close(invert_cdf(edges, weights, u), expected, atol=1e-7, rtol=0)


def test_inverse_cdf_searches_the_upper_bound() -> None:
    """At the end of a bin too narrow to be divided by, the next bin begins."""
    edges, weights = (
        torch.tensor([1.0, 2.0, 4.0, 5.0]).double(),
        torch.tensor([1.0, 0.0, 1.0]).double(),
    )
    cdf = torch.cumsum((weights + 1e-5) / (weights + 1e-5).sum(), dim=0)
    assert invert_cdf(edges, weights, cdf[1:2]).item() == 4.0


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(("coarse", "fine"), [(4, 3), (12, 12), (48, 48), (16, 5)])
def test_importance_depths(placement, coarse: int, fine: int) -> None:
    depths = random_ray_depths(3, coarse)
    weights = torch.rand(2, 3, coarse - 1, dtype=torch.float64) ** 8
    result = importance_depths(depths, weights, fine_offsets(depths, fine), placement)
    assert result.shape == (2, 3, fine)
    assert torch.all(result.diff(dim=-1) > 0)
    for sample in range(2):
        for ray in range(3):
            expected = references.importance_depths(
                depths[sample, ray].numpy(), weights[sample, ray].numpy(), fine, placement
            )
            np.testing.assert_allclose(result[sample, ray], expected, rtol=1e-9)


def test_where_a_single_weight_puts_its_samples() -> None:
    """`interval` centres them on the interval that has the weight, `released` half a step
    nearer.
    """
    depths, weights = torch.arange(20.0).view(1, 1, 20), torch.zeros(1, 1, 19)
    weights[..., 9] = 1.0
    u = fine_offsets(depths, 1000)
    means = {p: importance_depths(depths, weights, u, p).median().item() for p in PLACEMENTS}
    assert means["interval"] == pytest.approx(9.5, abs=0.02)
    assert means["released"] == pytest.approx(9.0, abs=0.02)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_random_depths_follow_the_weights(placement) -> None:
    depths, weights = random_ray_depths(1, 8)[:1].float(), torch.rand(1, 1, 7)
    random = (
        importance_depths(depths, weights, fine_offsets(depths, 20000, False), placement)[0, 0]
        .sort()
        .values
    )
    even = importance_depths(depths, weights, fine_offsets(depths, 20000), placement)[0, 0]
    ranks = torch.searchsorted(even, random) / 20000
    torch.testing.assert_close(ranks, torch.arange(20000) / 20000, atol=0.015, rtol=0)
    assert not torch.equal(
        random,
        importance_depths(depths, weights, fine_offsets(depths, 20000, False), placement)[0, 0]
        .sort()
        .values,
    )


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_no_gradient_flows_into_fine_depths(placement) -> None:
    depths, weights = (
        random_ray_depths(2, 6).requires_grad_(),
        torch.rand(2, 2, 5, dtype=torch.float64, requires_grad=True),
    )
    assert not importance_depths(depths, weights, fine_offsets(depths, 4), placement).requires_grad


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_empty_rays_are_sampled_evenly(placement) -> None:
    depths = torch.arange(10.0).view(1, 1, 10)
    result = importance_depths(depths, torch.zeros(1, 1, 9), fine_offsets(depths, 9), placement)[
        0, 0
    ]
    torch.testing.assert_close(result.diff(), result.diff().mean().expand(8))


@pytest.mark.parametrize("kind", ["stratified", "systematic"])
def test_fine_offsets_cover_every_part(kind: FineOffsets) -> None:
    torch.manual_seed(0)
    like = torch.empty(40, 50, 1)
    offsets = draw_offsets(like, 4, 12, False, kind)
    assert offsets.fine is not None
    assert offsets.fine.shape == (40, 50, 12)
    shifts = offsets.fine * 12 - torch.arange(12)
    assert float(shifts.min()) >= -1e-5
    assert float(shifts.max()) < 1 + 1e-5
    assert float(offsets.fine.max()) < 1
    assert float(shifts.mean()) == pytest.approx(0.5, abs=0.02)  # uniform
    assert float(shifts.var()) == pytest.approx(1 / 12, abs=0.01)
    is_one_shift = bool((shifts.std(dim=-1) < 1e-5).all())
    assert is_one_shift == (kind == "systematic")
    assert offsets.coarse.shape == (40, 50, 4)


def test_systematic_offsets_make_less_noise_than_independent_ones() -> None:
    """The mean over a picture of a step at 0.3: its variance over draws, by the kind of offsets."""
    torch.manual_seed(0)
    like = torch.empty(1, 20_000, 1)
    variances = {}
    for kind in ("independent", "stratified", "systematic"):
        fine = draw_offsets(like, 2, 12, False, kind).fine
        assert fine is not None
        variances[kind] = float((fine < 0.3).float().mean(dim=-1).var())
    assert variances["stratified"] < variances["independent"] / 5
    assert variances["systematic"] < variances["independent"] / 5


def test_an_unknown_sampler_is_refused_with_those_that_there_are() -> None:
    depths, weights, u = torch.rand(1, 1, 4).sort().values, torch.rand(1, 1, 3), torch.rand(1, 1, 2)
    with pytest.raises(UserError, match=r"rendering\.fine_sampling is 'even'; known are interval"):
        importance_depths(depths, weights, u, "even")
