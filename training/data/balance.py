"""Rare views more often: how to even out the yaws of a data set, by copies or by sampling weights.

Portraits are mostly taken from the front, and a model sees too few profiles. EG3D (supplement,
pose-rebalanced FFHQ) repeats the pictures of rare yaws; drawing them more often does the same
without copies.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from training.cameras import nearest_point_to_rays, unpack_label, viewing_rays

Array = NDArray[np.float64]


def yaw_angles(labels: Tensor) -> Array:
    """Yaws (M,), radians, of camera labels (M, 25) around the point that the cameras look at, 0 at
    +z, relative to their mean.
    """
    origins, directions = viewing_rays(unpack_label(labels.double())[0])
    offsets = (origins - nearest_point_to_rays(origins, directions)).numpy()
    yaws = np.arctan2(offsets[:, 0], offsets[:, 2])
    return np.angle(np.exp(1j * yaws) * np.conj(np.exp(1j * yaws).mean()))


def yaw_bins(labels: Tensor, bins: int) -> NDArray[np.int64]:
    """Which of `bins` equal intervals of the yaws' range each of the labels (M, 25) falls into
    (M,).
    """
    yaws = yaw_angles(labels)
    low, high = yaws.min(), yaws.max()
    if high - low < 1e-9:
        return np.zeros(len(yaws), dtype=np.int64)
    return np.minimum((yaws - low) / (high - low) * bins, bins - 1).astype(np.int64)


def balance_weights(labels: Tensor, bins: int = 9, factor: float = 4.0) -> Array:
    """How often each picture should be seen (M,), from 1 to `factor`: as if every yaw bin were as
    full as the fullest one.

    Bins that are emptier than 1/factor of the fullest stay rarer than it. For sampling, divide by
    the sum.

    Raises:
        ValueError: unless bins >= 1 and factor >= 1.
    """
    if bins < 1 or not factor >= 1:
        raise ValueError(f"bins and factor must be at least 1, not {bins} and {factor}")
    bin_of = yaw_bins(labels, bins)
    counts = np.bincount(bin_of, minlength=bins)
    return np.minimum(counts.max() / counts[bin_of], factor)


def epoch_items(weights: Array, seed: int, epoch: int) -> NDArray[np.int64]:
    """Items (E,) of one epoch, in ascending order, each about as often as `weights` (M,) says: E is
    the weights' sum, rounded.

    Systematic sampling (Kitagawa, "Monte Carlo filter and smoother ...", 1996, appendix): an item
    comes floor or ceil of its share times, and on average over epochs exactly its share. A function
    of its arguments alone.
    """
    count = round(float(weights.sum()))
    edges = np.cumsum(weights) * (count / weights.sum())
    bits = np.random.MT19937(np.random.SeedSequence([seed % (1 << 64), epoch, 1]))
    points = np.arange(count) + np.random.RandomState(bits).random_sample()
    return np.searchsorted(edges[:-1], points, side="right")


def balance_copies(labels: Tensor, bins: int = 9, factor: float = 4.0) -> NDArray[np.int64]:
    """Whole copies of each picture (M,) with the sums of `balance_weights` in every bin (rounded),
    spread evenly over the bin.
    """
    weights, bin_of = balance_weights(labels, bins, factor), yaw_bins(labels, bins)
    copies = np.ones(len(weights), dtype=np.int64)
    for index in np.unique(bin_of):
        members = np.flatnonzero(bin_of == index)
        wanted = round(float(weights[members].sum()))
        steps = np.arange(len(members) + 1) * wanted // len(members)
        copies[members] = np.diff(steps)
    return copies
