"""Kernel inception distance (Bińkowski, Sutherland, Arbel, Gretton. Demystifying MMD GANs, ICLR
2018, section 4).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from metrics.processes import ALONE, WorkerGroup

# torch-fidelity's defaults, so that its numbers are met
SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 2020


def subset_size(fakes: int, reals: int) -> int:
    """Features in a subset: fewer than the published 1000 only where there are not that many."""
    return min(SUBSET_SIZE, fakes, reals)


def squared_mmd(fakes: Tensor, reals: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy of features (m, D) each, kernel (x.y / D + 1)^3;
    float64, may be negative.
    """
    fakes, reals = fakes.to(torch.float64), reals.to(torch.float64)
    m, dimension = fakes.shape
    within = fakes.new_zeros(())
    for features in (fakes, reals):
        kernel = (features @ features.T / dimension + 1) ** 3
        within = within + (kernel.sum() - kernel.diagonal().sum()) / (m * (m - 1))
    across = (fakes @ reals.T / dimension + 1) ** 3
    return within - 2 * across.mean()


def kernel_distance(
    fakes: Tensor,
    reals: Tensor,
    subsets: int = SUBSETS,
    size: int | None = None,
    seed: int = SEED,
    team: WorkerGroup = ALONE,
) -> tuple[float, float]:
    """Mean and standard deviation over `subsets` of the squared MMD of `size` random fakes (N, D)
    and reals (M, D).

    The subsets depend on N, M, `size` and `seed` only. The processes of `team` share the work.
    """
    size = size or subset_size(len(fakes), len(reals))
    random = np.random.RandomState(seed)
    chosen = [
        [random.choice(len(features), size, replace=False) for features in (fakes, reals)]
        for _ in range(subsets)
    ]
    values = torch.zeros(subsets, dtype=torch.float64)
    for index, _ in team.shown_batches(subsets, 1, "Kernel distance"):
        parts = (
            features[torch.from_numpy(own).to(features.device)]
            for features, own in zip((fakes, reals), chosen[index], strict=True)
        )
        values[index] = squared_mmd(*parts)
    values = team.sum(values)
    return float(values.mean()), float(values.std(correction=0))
