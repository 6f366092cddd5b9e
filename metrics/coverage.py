"""Density and coverage of sets of features (Naeem et al., Reliable Fidelity and Diversity Metrics
for Generative Models, ICML 2020, equations 4 and 5).
"""

from __future__ import annotations

import torch
from torch import Tensor

from metrics.precision_recall import (
    COLUMNS,
    ROWS,
    TIE,
    blocks,
    centred,
    neighbour_distances,
    squared_distances,
)
from metrics.processes import ALONE, WorkerGroup


def density_coverage(
    fakes: Tensor, reals: Tensor, neighbours: int = 5, team: WorkerGroup = ALONE
) -> tuple[float, float]:
    """Density of fakes (N, D) where reals (M, D) are, 1 for fakes that are spread as the reals, and
    coverage: the share of reals that have a fake near them.

    Near a real is what is no farther than its `neighbours`-th nearest other real. Coverage is less
    brittle than recall, which one far-off fake with its large neighbourhood raises. Computed in
    float64 in blocks; the processes of `team` share the work.
    """
    fakes, reals = centred(fakes, reals)
    reach = neighbour_distances(reals, neighbours, team) * (1 + TIE)
    counts = torch.zeros(len(reals), dtype=torch.float64, device=reals.device)
    for start, count in team.shown_batches(len(fakes), ROWS, "Density and coverage"):
        for columns in blocks(len(reals), COLUMNS):
            distances = squared_distances(fakes[start : start + count], reals[columns])
            counts[columns] += (distances <= reach[columns]).sum(0)
    counts = team.sum(counts)
    return float(counts.sum()) / (neighbours * len(fakes)), float((counts > 0).double().mean())
