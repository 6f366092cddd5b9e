"""Mean and covariance of features that are never held at once (Chan, Golub, LeVeque 1983)."""

from __future__ import annotations

import torch
from torch import Tensor

from metrics.processes import WorkerGroup

CHUNK = 1024  # rows merged at once: a merge costs D^2 numbers of traffic whatever the rows


class Moments:
    """Sums up features of any batches in any order; mean and covariance do not depend on either,
    but for rounding (about 1e-15).
    """

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64)
        # sum of outer products of deviations from the mean
        self.scatter = torch.zeros(dimension, dimension, dtype=torch.float64)
        self._waiting: list[Tensor] = []

    def add(self, features: Tensor) -> None:
        """Add features (N, D).

        Raises:
            ValueError: if one of them is not finite.
        """
        if not features.isfinite().all():
            raise ValueError("a feature is not a finite number")
        self._waiting.append(features.detach().cpu().to(torch.float64))
        if sum(map(len, self._waiting)) >= CHUNK:
            self._merge_waiting()

    def _merge_waiting(self) -> None:
        if not sum(map(len, self._waiting)):
            return
        rows = torch.cat(self._waiting)
        self._waiting = []
        mean = rows.mean(0)
        deviations = rows - mean
        self.scatter.addmm_(deviations.T, deviations)
        self._shift(mean, len(rows))

    def _shift(self, mean: Tensor, count: int) -> None:
        """Count `count` rows of this mean whose own scatter has been added already."""
        total = self.count + count
        difference = mean - self.mean
        self.scatter.addr_(difference, difference, alpha=self.count * count / total)
        self.mean += difference * (count / total)
        self.count = total

    def merged(self, team: WorkerGroup) -> Moments:
        """Moments of all processes' features together."""
        self._merge_waiting()
        counts = team.sum(torch.tensor([float(self.count)], dtype=torch.float64))
        result = Moments(len(self.mean))
        result.count = int(counts)
        if result.count:
            result.mean = team.sum(self.mean * self.count) / result.count
            difference = self.mean - result.mean
            result.scatter = team.sum(
                self.scatter + self.count * torch.outer(difference, difference)
            )
        return result

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and unbiased covariance (D, D), float64.

        Raises:
            ValueError: for fewer than two features.
        """
        self._merge_waiting()
        if self.count < 2:
            raise ValueError(f"a covariance needs two features, not {self.count}")
        return self.mean, self.scatter / (self.count - 1)
