"""Weights that even out yaws, against counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.balance import balance_copies, balance_weights, yaw_angles, yaw_bins
from training.cameras import orbit_pose, pack_label, pinhole_intrinsics


def labels_at(yaws: list[float] | np.ndarray, pivot: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> torch.Tensor:
    """Cameras around `pivot` at these yaws."""
    poses = orbit_pose(torch.as_tensor(np.asarray(yaws), dtype=torch.float64), 0.1, 2.0)
    poses[:, :3, 3] += torch.tensor(pivot, dtype=torch.float64)
    return pack_label(poses, pinhole_intrinsics(2.0).double())


def test_yaws_are_those_around_the_common_point():
    yaws = np.linspace(-0.9, 0.5, 15)
    np.testing.assert_allclose(yaw_angles(labels_at(yaws, (3.0, -1.0, 4.0))), yaws - yaws.mean(), atol=1e-9)


def test_yaws_across_the_back_are_not_torn_apart():
    yaws = math.pi + np.linspace(-0.5, 0.5, 11)
    np.testing.assert_allclose(np.sort(yaw_angles(labels_at(yaws))), np.linspace(-0.5, 0.5, 11), atol=1e-9)


def test_bins_are_equal_intervals():
    assert yaw_bins(labels_at(np.linspace(-1, 1, 9)), 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert yaw_bins(labels_at([0.3] * 5), 4).tolist() == [0] * 5


@given(st.lists(st.floats(-1.4, 1.4), min_size=3, max_size=60), st.integers(1, 12), st.floats(1, 20))
def test_bins_become_as_full_as_the_fullest_or_as_the_factor_allows(yaws: list[float], bins: int, factor: float):
    labels = labels_at(yaws)
    bin_of, weights, copies = yaw_bins(labels, bins), balance_weights(labels, bins, factor), balance_copies(labels, bins, factor)
    fullest = max((bin_of == index).sum() for index in range(bins))
    for index in set(bin_of.tolist()):
        members = bin_of == index
        wanted = min(fullest, factor * members.sum())
        assert weights[members].sum() == pytest.approx(wanted)
        assert abs(copies[members].sum() - wanted) <= 0.5 + 1e-9
        assert np.ptp(copies[members]) <= 1
    assert copies.min() >= 1
    assert copies.max() <= math.ceil(factor)


def test_even_sets_stay_as_they_are():
    assert balance_weights(labels_at(np.linspace(-1, 1, 18)), bins=3).tolist() == [1.0] * 18


def test_settings_out_of_range():
    for bins, factor in ((0, 2.0), (3, 0.5), (3, float("nan"))):
        with pytest.raises(ValueError, match="at least 1"):
            balance_weights(labels_at([0, 1]), bins, factor)
