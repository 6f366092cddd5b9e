"""Metrics that compare sets of pictures by a network's features: fid, kid, pr, coverage, is."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from metrics.coverage import density_coverage
from metrics.detectors import Detector, load_detector
from metrics.features import Collected, Wanted, collect_features
from metrics.fid import frechet_distance
from metrics.inception_score import inception_score
from metrics.kid import SUBSETS, kernel_distance, subset_size
from metrics.moments import Moments
from metrics.names import DetectorName, Metric
from metrics.options import Measured, MetricOptions, MetricResult
from metrics.precision_recall import precision_recall
from metrics.processes import WorkerGroup
from metrics.reals import RealImages, cached_arrays, real_protocol, software
from metrics.sampling import Sampler


def compare_sets(
    metrics: list[Metric],
    name: DetectorName,
    sample: Sampler,
    reals: RealImages | None,
    options: MetricOptions,
) -> list[MetricResult]:
    """Results of metrics that use one feature network; every set of pictures is looked at once.

    Raises:
        UserError: for missing weights, or data that cannot be read.
    """
    started = time.monotonic()
    detector = load_detector(name, options.weights_of(name), options.device)
    # Each real set is computed first: it is what may be wrong, and what the cache saves.
    real_sets = {}
    for metric in metrics:
        if metric.needs_reals and reals and _real_key(metric) not in real_sets:
            count, is_moments = _real_key(metric)
            which = RealSet(reals.chosen(count), is_moments)
            real_sets[count, is_moments] = real_set(which, reals, detector, options)
    wanted = _wanted(metrics)
    fakes = collect_features(sample, detector, wanted, options.batch, options.team, "Fakes")
    results, shared = [], (time.monotonic() - started) / len(metrics)
    for metric in metrics:
        own_start = time.monotonic()
        values, extra = _set_values(metric, fakes, real_sets.get(_real_key(metric)), options.team)
        protocol = {**sample.protocol, "fakes": metric.count, "device": options.device.type}
        if metric.needs_reals and reals:
            used = reals.count if metric.is_full else metric.count
            protocol |= real_protocol(reals, used, detector)
            if metric.kind in ("pr", "coverage"):
                values |= real_yardsticks(metric, reals, detector, options)
        else:
            protocol |= detector.protocol
        seconds = shared + time.monotonic() - own_start
        results.append(MetricResult(metric.name, values, protocol | extra, seconds))
    return results


def _wanted(metrics: list[Metric]) -> Wanted:
    """What the metrics need of the fakes."""
    features, logits = (
        max((metric.count for metric in metrics if metric.kind in kinds), default=0)
        for kinds in (("kid", "pr", "coverage"), ("is",))
    )
    return Wanted({metric.count for metric in metrics if metric.kind == "fid"}, features, logits)


def _real_key(metric: Metric) -> tuple[int | None, bool]:
    """How many reals are compared with (None = all), and whether by their moments."""
    return None if metric.is_full else metric.count, metric.kind == "fid"


@dataclass(frozen=True, eq=False)
class RealSet:
    """Moments or features of the reals `indices` (N,), or of their mirror images."""

    indices: np.ndarray
    is_moments: bool = False
    is_flipped: bool = False


def _cache_key(
    which: RealSet, reals: RealImages, detector: Detector, options: MetricOptions
) -> dict[str, Any]:
    """All that features of reals depend on."""
    return {
        "data": reals.key,
        "resolution": reals.resolution,
        "pictures": hashlib.sha256(which.indices.astype("<i8").tobytes()).hexdigest(),
        "moments": which.is_moments,
        "flipped": which.is_flipped,
        "device": options.device.type,
        **detector.protocol,
        **software(),
    }


def real_set(which: RealSet, reals: RealImages, detector: Detector, options: MetricOptions) -> Any:
    """Moments or features (N, D) of some reals, from the cache where they are there."""
    indices, team = which.indices, options.team

    def read(start: int, length: int) -> torch.Tensor:
        pictures = reals.read(indices[start : start + length])
        return pictures.flip(-1) if which.is_flipped else pictures

    def compute() -> dict[str, np.ndarray]:
        wanted = Wanted({len(indices)}) if which.is_moments else Wanted(features=len(indices))
        found = collect_features(read, detector, wanted, options.batch, team, "Reals")
        if not which.is_moments:
            return {"features": found.features.numpy()}
        moments = found.moments[len(indices)]
        return {"mean": moments.mean.numpy(), "scatter": moments.scatter.numpy()}

    arrays = cached_arrays(_cache_key(which, reals, detector, options), team, compute)
    tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
    if not which.is_moments:
        return tensors["features"]
    moments = Moments(detector.dimension)
    moments.count, moments.mean, moments.scatter = len(indices), tensors["mean"], tensors["scatter"]
    return moments


def _among_neighbours(
    metric: Metric, fakes: torch.Tensor, reals: torch.Tensor, team: WorkerGroup
) -> dict[str, float]:
    """Values by name of a metric that looks at neighbours."""
    kind = precision_recall if metric.kind == "pr" else density_coverage
    names = ("precision", "recall") if metric.kind == "pr" else ("density", "coverage")
    # In float64, which GPUs do far faster than CPUs.
    values = kind(fakes.to(team.device), reals.to(team.device), metric.neighbours, team)
    return dict(zip(names, values, strict=True))


def real_yardsticks(
    metric: Metric, reals: RealImages, detector: Detector, options: MetricOptions
) -> dict[str, float]:
    """The same metric of as many unseen reals in the fakes' place, and of their mirror images: what
    a perfect generator gets. Kept in the cache. Empty where there are too few reals.
    """
    unseen, compared = reals.unseen(metric.count, metric.is_full)
    values = {}
    for prefix, is_flipped in (("real", False), ("mirrored", True)) if len(unseen) else ():
        sets = RealSet(unseen, is_flipped=is_flipped), RealSet(compared)

        def compute(sets: tuple[RealSet, RealSet] = sets) -> dict[str, np.ndarray]:
            theirs, own = (real_set(which, reals, detector, options) for which in sets)
            found = _among_neighbours(metric, theirs, own, options.team)
            return {name: np.array(value) for name, value in found.items()}

        keys = [_cache_key(which, reals, detector, options) for which in sets]
        key = {"sets": keys, "metric": f"{metric.kind}{metric.neighbours}"}
        for name, value in cached_arrays(key, options.team, compute).items():
            values[f"{metric.name}_{prefix}_{name}"] = float(value)
    return values


def _set_values(metric: Metric, fakes: Collected, reals: Any, team: WorkerGroup) -> Measured:
    name = metric.name
    if metric.kind == "fid":
        moments = fakes.moments[metric.count]
        return {name: frechet_distance(*moments.statistics(), *reals.statistics())}, {}
    if metric.kind == "is":
        mean, deviation = inception_score(fakes.logits[: metric.count])
        return {name: mean, f"{name}_std": deviation}, {}
    features = fakes.features[: metric.count]
    if metric.kind == "kid":
        features, reals = features.to(team.device), reals.to(team.device)
        size = subset_size(len(features), len(reals))
        mean, deviation = kernel_distance(features, reals, size=size, team=team)
        return {name: mean, f"{name}_std": deviation}, {"subsets": SUBSETS, "subset_size": size}
    values = _among_neighbours(metric, features, reals, team)
    protocol = {"neighbours": metric.neighbours}
    return {f"{name}_{key}": value for key, value in values.items()}, protocol
