"""Metrics that compare sets of pictures by the features of a network: fid, kid, pr, is."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

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
        {key: _real_set(key, reals, detector, options, team) for key in _real_keys(metrics)}
        if reals
        else {}
    )
    fakes = collect_features(sample, detector, _wanted(metrics), options.batch, team, "Fakes")
    results = []
    for metric in metrics:
        own_start = time.monotonic()
        values, extra = _set_values(metric, fakes, real_sets.get(_real_key(metric)), team)
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
            (metric.count for metric in metrics if metric.kind in ("kid", "pr")), default=0
        ),
        logits=max((metric.count for metric in metrics if metric.kind == "is"), default=0),
    )


RealKey = tuple[bool, int | None]
"""Moments instead of features; number of pictures, None = all."""


def _real_key(metric: Metric) -> RealKey:
    return metric.kind == "fid", None if metric.is_full else metric.count


def _real_keys(metrics: list[Metric]) -> list[RealKey]:
    return list(dict.fromkeys(_real_key(metric) for metric in metrics if metric.kind != "is"))


def _real_set(
    key: RealKey, reals: RealImages, detector: Detector, options: MetricOptions, team: WorkerGroup
) -> Any:
    """Moments or features of some of the real pictures, from the cache where they are there."""
    is_moments, count = key
    indices = reals.chosen(count)

    def read(start: int, length: int) -> torch.Tensor:
        return reals.read(indices[start : start + length])

    def compute() -> dict[str, np.ndarray]:
        wanted = Wanted({len(indices)}) if is_moments else Wanted(features=len(indices))
        collected = collect_features(read, detector, wanted, options.batch, team, "Reals")
        if not is_moments:
            return {"features": collected.features.numpy()}
        moments = collected.moments[len(indices)]
        return {
            "mean": moments.mean.numpy(),
            "scatter": moments.scatter.numpy(),
            "count": np.array(moments.count),
        }

    described = {
        "data": reals.key,
        "resolution": reals.resolution,
        "count": len(indices),
        "moments": is_moments,
    }
    network = {
        "detector": detector.name,
        "hash": detector.weights_hash,
        "software": detector.software,
        "device": options.device.type,
    }
    arrays = cached_arrays({**described, **network, **software()}, team, compute)
    if not is_moments:
        return torch.from_numpy(arrays["features"])
    moments = Moments(detector.dimension)
    moments.count = int(arrays["count"])
    moments.mean, moments.scatter = (
        torch.from_numpy(arrays["mean"]),
        torch.from_numpy(arrays["scatter"]),
    )
    return moments


def real_features(
    count: int | None,
    reals: RealImages,
    detector: Detector,
    options: MetricOptions,
    team: WorkerGroup,
) -> torch.Tensor:
    """Features (count, D) of the first `count` pictures of the fixed order, or of all: as the
    metrics use them, from the same cache.
    """
    return _real_set((False, count), reals, detector, options, team)


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
    # Both compute in float64, which GPUs do far faster than CPUs; Apple's cannot.
    place = team.device if team.device.type == "cuda" else CPU
    features, reals = fakes.features[: metric.count].to(place), reals.to(place)
    if metric.kind == "kid":
        size = subset_size(len(features), len(reals))
        mean, deviation = kernel_distance(features, reals, size=size, team=team)
        return {name: mean, f"{name}_std": deviation}, {"subsets": SUBSETS, "subset_size": size}
    precision, recall = precision_recall(features, reals, metric.neighbours, team)
    return {f"{name}_precision": precision, f"{name}_recall": recall}, {
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
