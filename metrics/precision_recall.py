"""Precision and recall of sets of features (Kynkäänniemi et al. Improved Precision and Recall
Metric..., NeurIPS 2019, section 2).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from metrics.processes import ALONE, WorkerGroup

ROWS, COLUMNS = 1024, 8192  # of the blocks of distances held at once (64 MB)
# a squared distance below this share of the squared norms is rounding: the points are the same
SAME_POINT = 1e-12
# two equal distances may differ by this much, because they come out of products of different shape
TIE = 1e-9


def precision_recall(
    fakes: Tensor, reals: Tensor, neighbours: int = 3, team: WorkerGroup = ALONE
) -> tuple[float, float]:
    """Share of fakes (N, D) among the reals (M, D), and share of reals among the fakes.

    A point is among a set if it is no farther from one of its points than that point's
    `neighbours`-th nearest neighbour in the set. Computed in float64 in blocks; the processes of
    `team` share the work.
    """
    fakes, reals = centred(fakes, reals)
    fake_reach, real_reach = (
        neighbour_distances(points, neighbours, team) * (1 + TIE) for points in (fakes, reals)
    )
    is_fake_inside, is_real_inside = (
        torch.zeros(len(points), dtype=torch.bool, device=points.device)
        for points in (fakes, reals)
    )
    for start, count in team.shown_batches(len(fakes), ROWS, "Precision and recall"):
        rows = slice(start, start + count)
        for columns in blocks(len(reals), COLUMNS):
            distances = squared_distances(fakes[rows], reals[columns])
            is_fake_inside[rows] |= (distances <= real_reach[columns]).any(1)
            is_real_inside[columns] |= (distances <= fake_reach[rows, None]).any(0)
    precision, recall = (
        team.sum(inside.to(torch.int32)) > 0 for inside in (is_fake_inside, is_real_inside)
    )
    return float(precision.double().mean()), float(recall.double().mean())


def centred(fakes: Tensor, reals: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 around the reals' mean, where distances cancel less."""
    centre = reals.to(torch.float64).mean(0)
    return fakes.to(torch.float64) - centre, reals.to(torch.float64) - centre


def neighbour_distances(members: Tensor, neighbours: int, team: WorkerGroup) -> Tensor:
    """Squared distance (N,) of each member to its `neighbours`-th nearest, itself not counted."""
    result = torch.zeros(len(members), dtype=torch.float64, device=members.device)
    for start, count in team.shown_batches(len(members), ROWS, "Nearest neighbours"):
        rows = slice(start, start + count)
        nearest = members.new_empty(count, 0)
        for columns in blocks(len(members), COLUMNS):
            nearest = torch.cat([nearest, squared_distances(members[rows], members[columns])], 1)
            nearest = nearest.topk(min(neighbours + 1, nearest.shape[1]), largest=False).values
        result[rows] = nearest[:, -1]
    return team.sum(result).to(members.device)


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances (N, M) of points (N, D) and (M, D); exactly 0 for equal points."""
    scale = first.square().sum(1)[:, None] + second.square().sum(1)
    distances = torch.addmm(scale, first, second.T, alpha=-2)
    return distances.masked_fill_(distances <= SAME_POINT * scale, 0)


def blocks(count: int, size: int) -> Iterator[slice]:
    """0..count-1 in slices of at most `size`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
