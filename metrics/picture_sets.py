"""Metrics that compare sets of pictures by the features of a network: fid, kid, pr, coverage,
is.
"""

from __future__ import annotations

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
from metrics.options import MetricOptions, MetricResult
from metrics.precision_recall import precision_recall
from metrics.processes import CPU, WorkerGroup
from metrics.reals import RealImages, cached_arrays, software
from metrics.sampling import Sampler


def compare_sets(
    metrics: list[Metric],
    name: DetectorName,
    sample: Sampler,
    reals: RealImages | None,
    options: MetricOptions,
) -> list[MetricResult]:
    """Results of metrics that use one feature network: fakes and each set of reals are looked at
    once.

    Raises:
        UserError: for missing weights, or data that cannot be read.
    """
    started = time.monotonic()
    team = options.team
    detector = load_detector(name, options.weights_of(name), options.device)
    # Each real set is computed first: it is what may be wrong, and what the cache saves.
    real_sets = (
        {key: real_set(key, reals, detector, options, team) for key in _real_keys(metrics)}
        if reals
        else {}
    )
    fakes = collect_features(sample, detector, _wanted(metrics), options.batch, team, "Fakes")
    results = []
    for metric in metrics:
        own_start = time.monotonic()
        values, extra = _set_values(metric, fakes, real_sets.get(_real_key(metric)), team)
        if metric.kind in ("pr", "coverage") and reals:
            yardsticks = real_yardsticks(metric, reals, detector, options)
            values |= {f"{metric.name}_{key}": value for key, value in yardsticks.items()}
        protocol = {**sample.protocol, **_set_protocol(metric, detector, reals, options), **extra}
        results.append(MetricResult(metric.name, values, protocol, time.monotonic() - own_start))
    shared = (time.monotonic() - started - sum(result.seconds for result in results)) / len(results)
    return [
        MetricResult(result.name, result.values, result.protocol, result.seconds + shared)
        for result in results
    ]


def _wanted(metrics: list[Metric]) -> Wanted:
    """What the metrics need of the fakes."""
    return Wanted(
        moments={metric.count for metric in metrics if metric.kind == "fid"},
        features=max(
            (metric.count for metric in metrics if metric.kind in ("kid", "pr", "coverage")),
            default=0,
        ),
        logits=max((metric.count for metric in metrics if metric.kind == "is"), default=0),
    )


@dataclass(frozen=True)
class RealSet:
    """Which reals, and what of them: `count` (None = all) from `start` on in the fixed order, or
    their mirror images; moments instead of features.
    """

    count: int | None
    is_moments: bool = False
    start: int = 0
    is_mirrored: bool = False


def _real_key(metric: Metric) -> RealSet:
    return RealSet(None if metric.is_full else metric.count, is_moments=metric.kind == "fid")


def _real_keys(metrics: list[Metric]) -> list[RealSet]:
    return list(dict.fromkeys(_real_key(metric) for metric in metrics if metric.needs_reals))


def _cache_key(
    key: RealSet, reals: RealImages, detector: Detector, options: MetricOptions
) -> dict[str, Any]:
    """All that features of reals depend on."""
    described = {
        "data": reals.key,
        "resolution": reals.resolution,
        "count": len(reals.chosen(key.count, key.start)),
        "moments": key.is_moments,
    }
    if key.start or key.is_mirrored:
        described |= {"start": key.start, "mirrored": key.is_mirrored}
    network = {
        "detector": detector.name,
        "hash": detector.weights_hash,
        "software": detector.software,
        "device": options.device.type,
    }
    return {**described, **network, **software()}


def real_set(
    key: RealSet, reals: RealImages, detector: Detector, options: MetricOptions, team: WorkerGroup
) -> Any:
    """Moments or features (count, D) of some of the real pictures, from the cache where they are
    there.
    """
    indices = reals.chosen(key.count, key.start)

    def read(start: int, length: int) -> torch.Tensor:
        pictures = reals.read(indices[start : start + length])
        return pictures.flip(-1) if key.is_mirrored else pictures

    def compute() -> dict[str, np.ndarray]:
        wanted = Wanted({len(indices)}) if key.is_moments else Wanted(features=len(indices))
        collected = collect_features(read, detector, wanted, options.batch, team, "Reals")
        if not key.is_moments:
            return {"features": collected.features.numpy()}
        moments = collected.moments[len(indices)]
        return {
            "mean": moments.mean.numpy(),
            "scatter": moments.scatter.numpy(),
            "count": np.array(moments.count),
        }

    arrays = cached_arrays(_cache_key(key, reals, detector, options), team, compute)
    if not key.is_moments:
        return torch.from_numpy(arrays["features"])
    moments = Moments(detector.dimension)
    moments.count = int(arrays["count"])
    moments.mean, moments.scatter = (
        torch.from_numpy(arrays["mean"]),
        torch.from_numpy(arrays["scatter"]),
    )
    return moments


def _among_neighbours(
    metric: Metric, fakes: torch.Tensor, reals: torch.Tensor, team: WorkerGroup
) -> dict[str, float]:
    """Values by name of a metric that looks at neighbours."""
    # In float64, which GPUs do far faster than CPUs; Apple's cannot.
    place = team.device if team.device.type == "cuda" else CPU
    kind = precision_recall if metric.kind == "pr" else density_coverage
    names = ("precision", "recall") if metric.kind == "pr" else ("density", "coverage")
    values = kind(fakes.to(place), reals.to(place), metric.neighbours, team)
    return dict(zip(names, values, strict=True))


def real_yardsticks(
    metric: Metric, reals: RealImages, detector: Detector, options: MetricOptions
) -> dict[str, float]:
    """The same metric of as many other reals in the fakes' place, and of their mirror images: what
    a perfect generator gets. Kept in the cache. Empty where there are not twice as many reals.

    With a `_full` metric these other reals are compared with all the rest.
    """
    team, count = options.team, metric.count
    if reals.count < 2 * count:
        return {}
    first = RealSet(reals.count - count if metric.is_full else count)
    start = reals.count - count if metric.is_full else count
    values = {}
    for prefix, is_mirrored in (("real", False), ("mirrored", True)):
        others = RealSet(count, start=start, is_mirrored=is_mirrored)

        def compute(others: RealSet = others) -> dict[str, np.ndarray]:
            theirs, own = (real_set(key, reals, detector, options, team) for key in (others, first))
            found = _among_neighbours(metric, theirs, own, team)
            return {name: np.array(value) for name, value in found.items()}

        key = {
            **_cache_key(others, reals, detector, options),
            "against": first.count,
            "metric": f"{metric.kind}{metric.neighbours}",
        }
        for name, value in cached_arrays(key, team, compute).items():
            values[f"{prefix}_{name}"] = float(value)
    return values


def _set_values(
    metric: Metric, fakes: Collected, reals: Any, team: WorkerGroup
) -> tuple[dict[str, float], dict[str, Any]]:
    """Values, and what only this metric adds to the protocol."""
    name = metric.name
    if metric.kind == "fid":
        return {
            name: frechet_distance(*fakes.moments[metric.count].statistics(), *reals.statistics())
        }, {}
    if metric.kind == "is":
        mean, deviation = inception_score(fakes.logits[: metric.count])
        return {name: mean, f"{name}_std": deviation}, {}
    features = fakes.features[: metric.count]
    if metric.kind == "kid":
        place = team.device if team.device.type == "cuda" else CPU  # as for neighbours
        features, reals = features.to(place), reals.to(place)
        size = subset_size(len(features), len(reals))
        mean, deviation = kernel_distance(features, reals, size=size, team=team)
        return {name: mean, f"{name}_std": deviation}, {"subsets": SUBSETS, "subset_size": size}
    values = _among_neighbours(metric, features, reals, team)
    return {f"{name}_{key}": value for key, value in values.items()}, {
        "neighbours": metric.neighbours
    }


def _set_protocol(
    metric: Metric, detector: Detector, reals: RealImages | None, options: MetricOptions
) -> dict[str, Any]:
    protocol: dict[str, Any] = {
        "fakes": metric.count,
        "detector": detector.name,
        "detector_sha256": detector.weights_hash,
        "detector_software": detector.software,
        "device": options.device.type,
    }
    if metric.needs_reals and reals is not None:
        used = reals.count if metric.is_full else metric.count
        protocol |= {
            "reals": used,
            "data_pictures": reals.count,
            "data_hash": reals.key,
            **reals.details,
        }
    return protocol
