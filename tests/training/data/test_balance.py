"""Weights that even out yaws, against counting."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.cameras import orbit_pose, pack_label, pinhole_intrinsics
from training.config.settings import DataConfig
from training.data.balance import balance_copies, balance_weights, epoch_items, yaw_angles, yaw_bins
from training.data.order import ItemOrder
from training.run.loop import camera_labels, sampling_weights

if TYPE_CHECKING:
    from training.data.dataset import ImageDataset


def labels_at(
    yaws: list[float] | np.ndarray, pivot: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> torch.Tensor:
    """Cameras around `pivot` at these yaws."""
    poses = orbit_pose(torch.as_tensor(np.asarray(yaws), dtype=torch.float64), 0.1, 2.0)
    poses[:, :3, 3] += torch.tensor(pivot, dtype=torch.float64)
    return pack_label(poses, pinhole_intrinsics(2.0).double())


def test_yaws_are_those_around_the_common_point():
    yaws = np.linspace(-0.9, 0.5, 15)
    np.testing.assert_allclose(
        yaw_angles(labels_at(yaws, (3.0, -1.0, 4.0))), yaws - yaws.mean(), atol=1e-9
    )


def test_yaws_across_the_back_are_not_torn_apart():
    yaws = math.pi + np.linspace(-0.5, 0.5, 11)
    np.testing.assert_allclose(
        np.sort(yaw_angles(labels_at(yaws))), np.linspace(-0.5, 0.5, 11), atol=1e-9
    )


def test_bins_are_equal_intervals():
    assert yaw_bins(labels_at(np.linspace(-1, 1, 9)), 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert yaw_bins(labels_at([0.3] * 5), 4).tolist() == [0] * 5


@given(
    st.lists(st.floats(-1.4, 1.4), min_size=3, max_size=60), st.integers(1, 12), st.floats(1, 20)
)
def test_bins_become_as_full_as_the_fullest_or_as_the_factor_allows(
    yaws: list[float], bins: int, factor: float
):
    labels = labels_at(yaws)
    bin_of, weights, copies = (
        yaw_bins(labels, bins),
        balance_weights(labels, bins, factor),
        balance_copies(labels, bins, factor),
    )
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


# --------------------------------------------------------------------------------------------------
# The order of training

WEIGHTS = st.lists(st.floats(1, 8), min_size=1, max_size=30)


@given(WEIGHTS, st.integers(-3, 2**40), st.integers(0, 50))
def test_an_epoch_shows_everything_about_as_often_as_its_weight(
    weights: list[float], seed: int, epoch: int
):
    wanted = np.array(weights)
    items = epoch_items(wanted, seed, epoch)
    count = round(wanted.sum())
    share = wanted * count / wanted.sum()
    times = np.bincount(items, minlength=len(wanted))
    assert (len(items), len(times)) == (count, len(wanted))
    assert np.all(times >= np.floor(share - 1e-6))
    assert np.all(times <= np.ceil(share + 1e-6))


def test_over_epochs_shares_are_exact_on_average():
    """400 epochs of an item that comes once or twice: six standard deviations of its mean are at
    most 0.15.
    """
    weights = np.array([1.0, 1.3, 2.5, 4.0, 1.7, 1.5])
    times = np.mean(
        [np.bincount(epoch_items(weights, 5, epoch), minlength=6) for epoch in range(400)], axis=0
    )
    np.testing.assert_allclose(times, weights * 12 / weights.sum(), atol=0.15)


@given(
    WEIGHTS,
    st.integers(0, 2**40),
    st.integers(0, 200),
    st.lists(st.integers(1, 50), min_size=1, max_size=6),
)
def test_any_split_of_the_weighted_stream_gives_the_same_sequence(
    weights: list[float], seed: int, first: int, counts: list[int]
):
    wanted = np.array(weights)
    whole = ItemOrder(len(wanted), seed, wanted).items(first, sum(counts))
    starts = np.cumsum([first, *counts[:-1]])
    parts = [
        ItemOrder(len(wanted), seed, wanted).items(int(start), count)
        for start, count in zip(starts, counts, strict=True)
    ]
    assert np.array_equal(np.concatenate(parts), whole)


def test_an_epoch_of_the_weighted_stream_is_its_items_shuffled():
    weights = np.array([1.0, 3.0, 1.5, 1.5])
    for epoch in range(4):
        stream = ItemOrder(4, 9, weights).items(epoch * 7, 7)
        assert np.sort(stream).tolist() == epoch_items(weights, 9, epoch).tolist()


def test_weighted_order_never_changes():
    """Runs that were started earlier must go on with their order: these numbers may not change."""
    assert ItemOrder(4, 0, np.array([1.0, 3.0, 1.5, 1.5])).items(0, 14).tolist() == [
        3,
        3,
        1,
        0,
        1,
        1,
        2,
        1,
        0,
        1,
        2,
        3,
        3,
        1,
    ]


class Items(NamedTuple):
    """What the weights of a data set depend on."""

    labels: Tensor
    file_names: list[str]

    def __len__(self) -> int:
        return len(self.labels)


def weights_of(data: DataConfig, items: Items) -> list[float]:
    weights = sampling_weights(data, cast("ImageDataset", items))
    assert weights is not None
    return weights.tolist()


def test_pictures_that_are_held_out_are_never_shown_nor_their_mirror_images() -> None:
    labels = labels_at([0, 0.1, 0.2, 0.3, 0.4, -1.0])
    plain, mirrored = Items(labels, ["a"] * 6), Items(labels, ["a"] * 3)
    assert weights_of(DataConfig(held_out=2), plain) == [1, 1, 1, 1, 0, 0]
    assert weights_of(DataConfig(held_out=1), mirrored) == [1, 1, 0, 1, 1, 0]
    both = DataConfig(held_out=2, rebalance=9.0, rebalance_bins=2)
    assert weights_of(both, plain) == [1, 1, 1, 1, 0, 0]
    shown = ItemOrder(6, 0, np.array(weights_of(DataConfig(held_out=2), plain))).items(0, 400)
    assert np.bincount(shown, minlength=6).tolist() == [100, 100, 100, 100, 0, 0]


def test_cameras_of_fakes_are_distributed_as_the_real_ones_shown():
    labels = labels_at([0, 0.1, 0.2, 0.3, 0.4, -1.0])
    data = DataConfig(rebalance=9.0, rebalance_bins=2)
    drawn = camera_labels(data, labels)
    assert len(drawn) == 10
    assert (yaw_bins(drawn, 2) == 0).sum() == 5
    dataset = Items(labels, ["a"] * 6)
    assert weights_of(data, dataset) == [1, 1, 1, 1, 1, 5]
    assert sampling_weights(DataConfig(), cast("ImageDataset", dataset)) is None
    assert camera_labels(DataConfig(), labels) is labels
