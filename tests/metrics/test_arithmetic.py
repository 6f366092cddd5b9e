"""FID, KID, IS and precision/recall on given features: torch-fidelity's functions, closed forms,
and sets against themselves.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from metrics import coverage as coverage_module
from metrics import kid
from metrics import precision_recall as precision_recall_module
from metrics.coverage import density_coverage
from metrics.fid import frechet_distance
from metrics.inception_score import inception_score
from metrics.kid import kernel_distance, squared_mmd
from metrics.moments import Moments
from metrics.names import IS_SPLITS
from metrics.precision_recall import precision_recall, squared_distances


def features(count: int, dimension: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Correlated, skewed features far from the origin, as networks make them."""
    random = np.random.RandomState(seed)
    mixing = np.random.RandomState(99).randn(dimension, dimension) / math.sqrt(dimension)
    return torch.from_numpy(np.abs(random.randn(count, dimension)) @ mixing + 3 + shift).float()


def moments_of(rows: torch.Tensor, batch: int = 50) -> Moments:
    moments = Moments(rows.shape[1])
    for part in rows.split(batch):
        moments.add(part)
    return moments


# --------------------------------------------------------------------------------------------------
# Moments and FID


def test_moments_are_numpys():
    rows = features(2500, 12, 0)
    mean, covariance = moments_of(rows, 64).statistics()
    np.testing.assert_allclose(mean, rows.double().numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(
        covariance, np.cov(rows.double().numpy(), rowvar=False), rtol=1e-11, atol=1e-14
    )


@given(st.integers(1, 400), st.randoms(use_true_random=False), st.floats(-1e4, 1e4))
@settings(max_examples=25)
def test_moments_depend_neither_on_batches_nor_on_order(batch: int, random, offset: float):
    rows = features(1200, 5, 1, offset)
    order = list(range(len(rows)))
    random.shuffle(order)
    expected, found = (
        moments_of(rows, 1200).statistics(),
        moments_of(rows[order], batch).statistics(),
    )
    for first, second in zip(expected, found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-10)


def test_moments_refuse_what_is_not_a_number():
    with pytest.raises(ValueError, match="finite"):
        Moments(2).add(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match="two features"):
        moments_of(torch.ones(1, 3)).statistics()


@pytest.mark.parametrize(("counts", "dimension"), [((700, 900), 64), ((400, 300), 256)])
def test_fid_is_torch_fidelitys(counts: tuple[int, int], dimension: int):
    pair = [features(count, dimension, seed, 0.05 * seed) for seed, count in enumerate(counts)]
    expected = fid_statistics_to_metric(
        *(fid_features_to_statistics(rows.double()) for rows in pair), verbose=False
    )[KEY_METRIC_FID]
    found = frechet_distance(*moments_of(pair[0]).statistics(), *moments_of(pair[1]).statistics())
    assert found == pytest.approx(expected, rel=1e-6)


@given(
    st.lists(
        st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.floats(0, 4), st.floats(0, 4)),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=50)
def test_fid_of_gaussians_with_common_axes(values: list[tuple[float, float, float, float]]):
    """Independent coordinates: the squared 2-Wasserstein distance is the sum of (m1 - m2)^2 + (s1 -
    s2)^2, zero deviations included.
    """
    mean_1, mean_2, deviation_1, deviation_2 = torch.tensor(values, dtype=torch.float64).T
    turn, _ = torch.linalg.qr(
        torch.from_numpy(np.random.RandomState(len(values)).randn(len(values), len(values)))
    )
    covariances = [
        turn @ torch.diag(deviation.square()) @ turn.T for deviation in (deviation_1, deviation_2)
    ]
    expected = float((mean_1 - mean_2).square().sum() + (deviation_1 - deviation_2).square().sum())
    found = frechet_distance(turn @ mean_1, covariances[0], turn @ mean_2, covariances[1])
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_fid_of_gaussians_without_common_axes():
    """tr (A B)^(1/2) of 2 x 2 matrices is sqrt(tr AB + 2 sqrt(det AB))."""
    first, second = (
        torch.tensor([[2.0, 0.7], [0.7, 1.0]]).double(),
        torch.tensor([[1.0, -0.4], [-0.4, 3.0]]).double(),
    )
    product = first @ second
    root = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.linalg.det(product))))
    found = frechet_distance(torch.zeros(2), first, torch.tensor([1.0, 2.0]), second)
    assert found == pytest.approx(5 + 3 + 4 - 2 * root, rel=1e-12)


def test_fid_of_fewer_pictures_than_dimensions_against_the_features_themselves():
    """With deviations X1, X2, tr (C1 C2)^(1/2) is the sum of the singular values of X1 X2^T over
    sqrt((n1 - 1)(n2 - 1)). Moments know
    neither, and both covariances are singular."""
    first, second = features(40, 200, 0).double(), features(30, 200, 1).double()
    deviations = [rows - rows.mean(0) for rows in (first, second)]
    spread = sum(float(rows.square().sum()) / (len(rows) - 1) for rows in deviations)
    root = float(torch.linalg.svdvals(deviations[0] @ deviations[1].T).sum()) / math.sqrt(39 * 29)
    expected = float((first.mean(0) - second.mean(0)).square().sum()) + spread - 2 * root
    found = frechet_distance(*moments_of(first).statistics(), *moments_of(second).statistics())
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [30, 500])
def test_fid_of_a_set_against_itself_is_nothing(count: int):
    rows = features(count, 64, 0)
    statistics = moments_of(rows).statistics()
    assert (
        0
        <= frechet_distance(*statistics, *moments_of(rows.flip(0), 7).statistics())
        < 1e-9 * float(statistics[1].trace())
    )


# --------------------------------------------------------------------------------------------------
# KID


def test_kid_is_torch_fidelitys():
    fakes, reals = features(300, 32, 0), features(250, 32, 1, 0.1)
    options = {"kid_subsets": 20, "kid_subset_size": 100, "verbose": False}
    expected = kid_features_to_metric(fakes.double(), reals.double(), **options)
    mean, deviation = kernel_distance(fakes, reals, subsets=20, size=100)
    assert mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)
    assert deviation == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-6)


def test_kid_has_the_librarys_defaults():
    names = (
        "kid_subsets",
        "kid_subset_size",
        "rng_seed",
        "kid_kernel",
        "kid_kernel_poly_degree",
        "kid_kernel_poly_coef0",
    )
    assert [DEFAULTS[name] for name in names] == [
        kid.SUBSETS,
        kid.SUBSET_SIZE,
        kid.SEED,
        "poly",
        3,
        1,
    ]
    assert DEFAULTS["kid_kernel_poly_gamma"] is None  # 1 / dimension
    assert (kid.subset_size(1100, 1200), kid.subset_size(1100, 70)) == (1000, 70)
    assert (DEFAULTS["isc_splits"], DEFAULTS["samples_shuffle"]) == (IS_SPLITS, True)


def test_squared_mmd_is_the_mean_over_pairs():
    fakes, reals = features(7, 3, 0).double(), features(7, 3, 1).double()

    def kernel(x, y):
        return float((x @ y / 3 + 1) ** 3)

    within = (
        sum(
            kernel(rows[i], rows[j])
            for rows in (fakes, reals)
            for i in range(7)
            for j in range(7)
            if i != j
        )
        / 42
    )
    across = sum(kernel(x, y) for x in fakes for y in reals) / 49
    assert float(squared_mmd(fakes, reals)) == pytest.approx(within - 2 * across, rel=1e-9)


def test_kid_of_one_distribution_is_about_nothing():
    same = kernel_distance(features(600, 16, 0), features(600, 16, 5), subsets=20, size=300)[0]
    other = kernel_distance(features(600, 16, 0), features(600, 16, 5, 0.5), subsets=20, size=300)[
        0
    ]
    assert abs(same) < 0.02 * other


# --------------------------------------------------------------------------------------------------
# Inception score


def test_inception_score_is_torch_fidelitys():
    logits = features(505, 20, 0) * 3
    expected = isc_features_to_metric(logits)
    mean, deviation = inception_score(logits)
    assert mean == pytest.approx(expected["inception_score_mean"], rel=1e-9)
    assert deviation == pytest.approx(expected["inception_score_std"], rel=1e-6)


def test_inception_score_of_certain_classes_is_their_number():
    logits = torch.eye(4).repeat(50, 1) * 200
    assert inception_score(logits, splits=1) == (pytest.approx(4), 0)
    assert inception_score(torch.zeros(100, 7))[0] == pytest.approx(1)


# --------------------------------------------------------------------------------------------------
# Precision and recall


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_precision_and_recall_are_torch_fidelitys(neighbours: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision_recall_module, "ROWS", 64)
    monkeypatch.setattr(precision_recall_module, "COLUMNS", 100)
    fakes, reals = features(350, 6, 0, 0.3), features(420, 6, 1)
    expected = prc_features_to_metric(
        fakes.double(), reals.double(), prc_neighborhood=neighbours, verbose=False
    )
    precision, recall = precision_recall(fakes, reals, neighbours)
    assert 0.05 < precision < 0.95
    assert precision == pytest.approx(expected["precision"], rel=1e-6)
    assert recall == pytest.approx(expected["recall"], rel=1e-6)


def test_a_set_has_all_of_itself_and_nothing_of_a_far_one():
    rows = features(200, 10, 0)
    assert precision_recall(rows, rows.flip(0)) == (1, 1)
    assert precision_recall(rows, rows + 100) == (0, 0)


def test_copies_of_one_picture_are_found_although_their_balls_have_no_size():
    copies = features(1, 10, 0).repeat(8, 1)
    others = features(60, 10, 1, 5.0)
    precision, recall = precision_recall(torch.cat([copies, others]), copies)
    assert precision == pytest.approx(8 / 68)
    assert recall == 1


def test_points_in_a_row_by_hand():
    """Members 0, 1, 3, 7 with one neighbour have balls of radius 1, 1, 2, 4."""
    members = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    points = torch.tensor([[-1.5], [-1.0], [5.0], [10.9], [11.1]])
    assert precision_recall(points, members, neighbours=1)[0] == pytest.approx(3 / 5)


def test_distances_are_exact_for_equal_points():
    rows = features(50, 300, 0).double() * 100
    distances = squared_distances(rows, rows)
    assert (distances.diagonal() == 0).all()
    torch.testing.assert_close(
        distances,
        torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square(),
        rtol=1e-9,
        atol=1e-9,
    )


# --------------------------------------------------------------------------------------------------
# Density and coverage


def neighbourhoods(fakes: torch.Tensor, reals: torch.Tensor, neighbours: int) -> np.ndarray:
    """Which fakes (columns) lie in which reals' balls (rows): every distance by itself, in
    float64.
    """
    fake_rows, real_rows = fakes.double().numpy(), reals.double().numpy()
    inside = np.zeros((len(real_rows), len(fake_rows)), dtype=bool)
    for index, real in enumerate(real_rows):
        others = np.linalg.norm(np.delete(real_rows, index, 0) - real, axis=1)
        reach = np.sort(others)[neighbours - 1]
        inside[index] = np.linalg.norm(fake_rows - real, axis=1) <= reach
    return inside


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_density_and_coverage_by_brute_force(neighbours: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(coverage_module, "ROWS", 64)
    monkeypatch.setattr(coverage_module, "COLUMNS", 100)
    fakes, reals = features(350, 6, 0, 0.3), features(420, 6, 1)
    inside = neighbourhoods(fakes, reals, neighbours)
    density, coverage = density_coverage(fakes, reals, neighbours)
    assert density == pytest.approx(inside.sum() / (neighbours * 350), rel=1e-12)
    assert coverage == inside.any(1).mean()
    assert 0.05 < coverage < 0.95


def test_density_and_coverage_of_a_set_by_itself_and_of_one_mode():
    """A point lies in its own ball and in those of all whose `neighbours` nearest it is one of:
    density (K + 1) / K. Copies of one real cover what is around that one only.
    """
    rows = features(200, 10, 0)
    density, coverage = density_coverage(rows, rows.flip(0), neighbours=4)
    assert (density, coverage) == (pytest.approx(5 / 4), 1)
    assert density_coverage(rows + 100, rows) == (0, 0)
    density, coverage = density_coverage(rows[:1].repeat(50, 1), rows, neighbours=4)
    assert coverage < 0.15
    assert density > 0.2
    one_of_many = density_coverage(torch.cat([rows[:1] + 50, rows[1:]]), rows, neighbours=4)
    assert one_of_many[1] > 0.95
