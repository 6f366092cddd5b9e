"""Compositing against float64 loops and against the optics of a ball of constant density."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import references
from training.rendering.compositing import (
    add_background,
    expected_depth,
    interval_weights,
    sample_weights,
)

EMPTY = -1e4


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def random_samples(count: int) -> tuple[Tensor, Tensor]:
    depths = torch.rand(2, 3, count, dtype=torch.float64).cumsum(dim=-1)
    return depths, torch.randn(2, 3, count, dtype=torch.float64) * 4


def test_weights() -> None:
    depths, densities = random_samples(12)
    weights = interval_weights(depths, densities)
    assert weights.shape == (2, 3, 11)
    for sample in range(2):
        for ray in range(3):
            expected = references.interval_weights(
                depths[sample, ray].numpy(), densities[sample, ray].numpy()
            )
            np.testing.assert_allclose(weights[sample, ray], expected, rtol=1e-12)


def test_gradients() -> None:
    depths, densities = (value.requires_grad_() for value in random_samples(5))
    assert torch.autograd.gradcheck(interval_weights, (depths, densities))
    assert torch.autograd.gradgradcheck(interval_weights, (depths, densities))
    weights = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(expected_depth, (depths, weights))


@settings(max_examples=60, derandomize=True)
@given(
    densities=st.lists(
        st.sampled_from([-1e30, -50.0, 0.0, 3.0, 80.0, 1e30]), min_size=2, max_size=20
    ),
    step=st.sampled_from([0.0, 1e-6, 0.02, 10.0]),
)
def test_weights_are_a_share_of_one(densities: list[float], step: float) -> None:
    depths = 2.25 + torch.arange(len(densities)) * step
    weights = interval_weights(depths[None, None], torch.tensor(densities)[None, None])
    assert torch.all((weights >= 0) & (weights <= 1))
    assert weights.sum() <= 1 + 1e-6


@pytest.mark.parametrize("density", [0.0, 3.0, 8.0])
@pytest.mark.parametrize("offset", [0.0, 0.3, 0.45])
def test_constant_density_ball(density: float, offset: float) -> None:
    """A ray that passes a ball of radius 0.5 at distance `offset` from its centre, which is 2.7
    away.
    """
    half_chord, sigma = math.sqrt(0.25 - offset**2), references.softplus(density - 1)
    entry, length = 2.7 - half_chord, 2 * half_chord
    transmittance = math.exp(-sigma * length)
    mean_depth = entry + 1 / sigma - length * transmittance / (1 - transmittance)
    for count in (1000, 4000, 16000):
        depths = torch.linspace(2, 3.4, count, dtype=torch.float64)[None, None]
        weights = interval_weights(
            depths, torch.where((depths - 2.7).abs() < half_chord, density, EMPTY)
        )
        lost = 2 * 1.4 / (count - 1)  # the intervals that straddle the surface are empty
        seen = 1 - weights.sum().item()
        assert transmittance * (1 - 1e-6) <= seen <= transmittance * math.exp(sigma * lost)
        assert expected_depth(depths, weights).item() == pytest.approx(mean_depth, abs=lost)


def test_depth_loop() -> None:
    depths, densities = random_samples(9)
    weights = interval_weights(depths, densities)
    result = expected_depth(depths, weights)
    assert result.shape == (2, 3, 1)
    for d, w, value in zip(
        depths.flatten(0, 1).tolist(),
        weights.flatten(0, 1).tolist(),
        result.flatten().tolist(),
        strict=True,
    ):
        total = sum(w[i] * (d[i] + d[i + 1]) / 2 for i in range(8))
        assert value == pytest.approx(total / sum(w))


def test_a_ray_that_sees_nothing_has_its_own_largest_depth() -> None:
    depths = torch.tensor([[[1.0, 2.0, 3.0], [1.0, 2.0, 9.0], [4.0, 5.0, 6.0]]])
    weights = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [0.5, 0.0]]])
    assert expected_depth(depths, weights).flatten().tolist() == [3.0, 9.0, 4.5]


def test_depth_of_a_ray_that_sees_nothing_has_finite_gradients() -> None:
    depths = torch.tensor([[[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]], requires_grad=True)
    densities = torch.tensor([[[EMPTY] * 3, [5.0] * 3]], requires_grad=True)
    depth = expected_depth(depths, interval_weights(depths, densities))
    assert all(g.isfinite().all() for g in torch.autograd.grad(depth.sum(), (depths, densities)))


@settings(max_examples=40, derandomize=True)
@given(st.lists(st.sampled_from([0.0, 1e-42, 1e-30, 0.3]), min_size=1, max_size=6))
def test_depth_stays_within_the_samples(weights: list[float]) -> None:
    depths = torch.linspace(2.25, 3.3, len(weights) + 1)[None, None]
    depth = expected_depth(depths, torch.tensor(weights)[None, None])
    assert depths[..., 0].item() <= depth.item() <= depths[..., -1].item()


def test_weights_of_samples_give_the_sum_over_interval_means() -> None:
    depths, densities = random_samples(7)
    colors = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    weights = interval_weights(depths, densities)
    means = (colors[:, :, 1:] + colors[:, :, :-1]) / 2
    expected = (weights[..., None] * means).sum(dim=2)
    torch.testing.assert_close((sample_weights(weights)[..., None] * colors).sum(dim=2), expected)


def test_no_background_adds_nothing() -> None:
    features = torch.randn(2, 3, 8)
    assert torch.equal(add_background(features, torch.rand(2, 3, 1), None), features)


@pytest.mark.parametrize("color", [(1.0, 1.0, 1.0), (0.3, 0.6, 0.9)])
def test_background(color: tuple[float, float, float]) -> None:
    features, alpha = torch.randn(2, 3, 8), torch.rand(2, 3, 1)
    result = add_background(features, alpha, color)
    for channel in range(8):
        fill = color[channel] if channel < 3 else 1.0
        torch.testing.assert_close(
            result[..., channel], features[..., channel] + (1 - alpha[..., 0]) * fill
        )
    assert torch.equal(add_background(features, torch.ones(2, 3, 1), color), features)
