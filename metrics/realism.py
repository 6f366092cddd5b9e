"""Fakes beside the real pictures that are nearest to them: which fakes look most and least real,
and whether any is a copy.

The distance is Euclidean, between features of a feature network. A generator that had memorised
pictures would come far nearer to them than they are to each other (compare Kynkäänniemi et al.
2019, section 4, and Webster et al., Detecting Overfitting of Deep Generative Networks via Latent
Recovery, CVPR 2019, for what such distances can and cannot show).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metrics.detectors import Detector, load_detector
from metrics.features import Wanted, collect_features
from metrics.names import DetectorName
from metrics.options import MetricOptions
from metrics.picture_sets import RealSet, real_set
from metrics.precision_recall import COLUMNS, ROWS, blocks, squared_distances
from metrics.processes import ALONE, WorkerGroup
from metrics.reals import RealImages
from metrics.sampling import Sampler

NEIGHBOURS = 4


@dataclass(frozen=True)
class Realism:
    """How near fakes come to real pictures.

    Attributes:
        detector, detector_sha256: the feature network.
        distances, indices: of fake i to its nearest real pictures (fakes, K), nearest first; and
            which of the data they are.
        between_reals: distance of some of these real pictures to their nearest other one.
        reals, data_pictures: how many were searched, and how many there are.
    """

    detector: str
    detector_sha256: str
    distances: np.ndarray
    indices: np.ndarray
    between_reals: np.ndarray
    reals: int
    data_pictures: int

    @property
    def ratio(self) -> float:
        """Median distance of fakes to their nearest real picture over that of real pictures to
        their nearest other one.
        """
        typical = float(np.median(self.between_reals))
        return float(np.median(self.distances[:, 0])) / typical if typical else float("nan")

    @property
    def order(self) -> np.ndarray:
        """Fakes from the one nearest to a real picture to the farthest."""
        return np.argsort(self.distances[:, 0], kind="stable")


def compare_with_reals(
    sample: Sampler,
    reals: RealImages,
    options: MetricOptions,
    detector: DetectorName,
    fakes: int,
    count: int | None,
) -> Realism:
    """Compare fakes 0 .. fakes-1 with `count` real pictures (none = all), by way of a feature
    network. All processes call it.

    Raises:
        UserError: for missing weights, or data that cannot be read.
    """
    network = load_detector(detector, options.weights_of(detector), options.device)
    return _compare(sample, reals, options, network, fakes, count)


def _compare(
    sample: Sampler,
    reals: RealImages,
    options: MetricOptions,
    network: Detector,
    fakes: int,
    count: int | None,
) -> Realism:
    team = options.team
    chosen = reals.chosen(count)
    rows = real_set(RealSet(chosen), reals, network, options).double()
    features = collect_features(
        sample, network, Wanted(features=fakes), options.batch, team, "Fakes for the report"
    ).features.double()
    centre = rows.mean(0)  # distances do not change, and their cancellation is less around the mean
    rows, features = rows - centre, features - centre
    distances, places = nearest(features, rows, min(NEIGHBOURS, len(rows)), team)
    some = np.random.RandomState(0).permutation(len(rows))[: max(fakes, 2)]
    # The nearest one of a real picture is itself.
    between, _ = nearest(rows[torch.from_numpy(some)], rows, min(2, len(rows)), team)
    return Realism(
        network.name,
        network.weights_hash,
        distances.numpy(),
        chosen[places.numpy()],
        between[:, -1].numpy(),
        len(rows),
        reals.count,
    )


def nearest(
    points: Tensor, others: Tensor, count: int, team: WorkerGroup = ALONE
) -> tuple[Tensor, Tensor]:
    """Euclidean distances (N, count) of points (N, D), float64, to their nearest `count` of others
    (M, D), and their indices, int64.

    Equal distances come in the order of the indices' blocks. The processes of `team` share the
    work.
    """
    distances = torch.zeros(len(points), count, dtype=torch.float64)
    indices = torch.zeros(len(points), count, dtype=torch.int64)
    for start, size in team.batches(len(points), ROWS):
        found, places = points.new_empty(size, 0), torch.empty(size, 0, dtype=torch.int64)
        for columns in blocks(len(others), COLUMNS):
            found = torch.cat(
                [found, squared_distances(points[start : start + size], others[columns])], 1
            )
            places = torch.cat(
                [places, torch.arange(columns.start, columns.stop).expand(size, -1)], 1
            )
            best = found.topk(min(count, found.shape[1]), largest=False)
            found, places = best.values, places.gather(1, best.indices)
        distances[start : start + size], indices[start : start + size] = (
            found.clamp(min=0).sqrt(),
            places,
        )
    return team.sum(distances), team.sum(indices)
