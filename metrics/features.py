"""One pass of a feature network over pictures, for all metrics that ask for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dnnlib.console import UserError
from metrics.detectors import Detector
from metrics.moments import Moments
from metrics.processes import WorkerGroup

ReadPictures = Callable[[int, int], Tensor]
"""(start, count) to uint8 pictures (count, 3, H, W)."""


@dataclass
class Wanted:
    """What to collect. Every number is a count of pictures, from number 0 on."""

    moments: set[int] = field(default_factory=set)
    features: int = 0
    logits: int = 0

    @property
    def count(self) -> int:
        """Pictures to look at."""
        return max(self.features, self.logits, *self.moments, 0)


@dataclass
class Collected:
    """Moments by count; features (features, D) and logits (logits, K) in the order of the pictures.
    The same in every process.
    """

    moments: dict[int, Moments]
    features: Tensor
    logits: Tensor


def collect_features(
    read: ReadPictures,
    detector: Detector,
    wanted: Wanted,
    batch: int,
    team: WorkerGroup,
    description: str,
) -> Collected:
    """Run a feature network over pictures; the processes of `team` share them.

    Raises:
        UserError: if a feature is not finite.
    """
    moments = {count: Moments(detector.dimension) for count in sorted(wanted.moments)}
    features = torch.zeros(wanted.features, detector.dimension)
    logits = torch.zeros(wanted.logits, detector.classes)
    for start, count in team.shown_batches(wanted.count, batch, description):
        own_features, own_logits = detector(read(start, count))
        if not own_features.isfinite().all():
            raise UserError(
                f"{description}: features of pictures {start}..{start + count - 1} are not finite;"
                " the weights are damaged"
            )
        for limit, collector in moments.items():
            collector.add(own_features[: max(limit - start, 0)])
        for rows, values in ((features, own_features), (logits, own_logits)):
            part = rows[start : start + count]  # empty, or cut, where fewer pictures are asked for
            part.copy_(values[: len(part)])
    merged = {count: collector.merged(team) for count, collector in moments.items()}
    return Collected(merged, team.sum(features), team.sum(logits))
