"""From names of metrics to results: the one code path of the command line and of training."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dnnlib.console import UserError
from metrics.consistency import view_consistency
from metrics.depth import check_depth_maps, depth_against_maps, relief
from metrics.detectors import Detector, load_detector
from metrics.features import Collected, Wanted, collect_features
from metrics.fid import frechet_distance
from metrics.identity import identity_similarity
from metrics.inception_score import inception_score
from metrics.kid import SUBSETS, kernel_distance, subset_size
from metrics.lpips import load_lpips
from metrics.moments import Moments
from metrics.names import DetectorName, Metric, parse_metrics
from metrics.onnx_models import OnnxModel
from metrics.pose import PoseEstimator, open_onnx, pose_error
from metrics.ppl import EPSILON, path_length
from metrics.precision_recall import precision_recall
from metrics.processes import CPU, WorkerGroup, never
from metrics.reals import RealImages, cached_arrays, software
from metrics.sampling import GeneratorSampler, Sampler
from metrics.speed import speed


@dataclass(frozen=True)
class MetricOptions:
    """How to compute.

    Attributes:
        device: of the feature networks. batch: pictures at once; changes nothing but the last
            digits that convolutions leave.
        detector: feature network of metrics whose name tells none. detector_weights: file of its
            weights; none = as published.
        lpips_weights: files for ppl. identity_model, pose_model: ONNX files. open_pose: opens
            `pose_model`, which may name something else.
        is_shared: all processes of the running group call `evaluate`, and share the work; otherwise
            this process works alone.
        is_cancelled: asked before each batch; if true, the work is given up with `Cancelled`.
    """

    device: torch.device = CPU
    batch: int = 16
    detector: DetectorName = "inception"
    detector_weights: str | None = None
    lpips_weights: tuple[str, ...] = ()
    identity_model: str | None = None
    pose_model: str | None = None
    open_pose: Callable[[str], PoseEstimator] = open_onnx
    is_shared: bool = True
    is_cancelled: Callable[[], bool] = never

    def weights_of(self, detector: DetectorName) -> str | None:
        """File of a feature network's weights; none = as published."""
        return self.detector_weights if detector == self.detector else None

    @property
    def team(self) -> WorkerGroup:
        """The processes that share the work."""
        shared = WorkerGroup.of_group(self.device, self.is_cancelled)
        return (
            shared
            if self.is_shared
            else WorkerGroup(device=self.device, is_cancelled=self.is_cancelled)
        )


@dataclass(frozen=True)
class MetricResult:
    """A metric's values by name (the first is the metric itself) and how they came about (plain
    values).
    """

    name: str
    values: dict[str, float]
    protocol: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def evaluate(
    names: Sequence[str], sample: Sampler, reals: RealImages | None, options: MetricOptions
) -> list[MetricResult]:
    """Compute metrics.

    Args:
        names: as in `metrics.names.VALID_FORMS`.
        sample: the sampling function. Measures other than fid, kid, pr and is need a
            `GeneratorSampler`.
        reals: real pictures, for the metrics that compare with them.

    Returns:
        Results in the order of the names; the same in every process.

    Raises:
        ValueError: for an unknown name.
        UserError: for missing or unfit data, weights or packages.
    """
    metrics = parse_metrics(names, options.detector)
    check_inputs(metrics, reals, options)
    results: dict[str, MetricResult] = {}
    for detector in dict.fromkeys(metric.detector for metric in metrics if metric.detector):
        group = [metric for metric in metrics if metric.detector == detector]
        results |= {
            result.name: result for result in _compare_sets(group, detector, sample, reals, options)
        }
    for metric in metrics:
        if not metric.detector:
            results[metric.name] = _measure_generator(metric, sample, reals, options)
    return [results[metric.name] for metric in metrics]


def check_inputs(
    metrics: Sequence[Metric], reals: RealImages | None, options: MetricOptions
) -> None:
    """Refuse, before anything long begins, what cannot end well.

    Raises:
        UserError: that names the metric and what it lacks.
    """
    for metric in metrics:
        if metric.needs_reals and reals is None:
            raise UserError(f"{metric.name} compares with real pictures; give them with --data")
        if metric.kind in ("fid", "kid", "pr") and reals is not None:
            needed = metric.neighbours + 1 if metric.is_full else metric.count
            if reals.count < needed:
                kind = metric.kind + "N" + ("K" if metric.kind == "pr" else "")
                raise UserError(
                    f"{metric.name} needs {needed} real pictures, {reals.name} has {reals.count};"
                    f" use more data or {kind}_full, which compares with all there are"
                )
        if metric.kind == "depth" and reals is not None:
            check_depth_maps(reals, metric.count)
        for kind, option, model in (
            ("identity", "--identity-model", options.identity_model),
            ("pose", "--pose-model", options.pose_model),
        ):
            if metric.kind == kind and model is None:
                raise UserError(
                    f"{metric.name} needs {option}, an ONNX file; docs/metrics.md says what it"
                    " takes and gives"
                )


def check_networks(metrics: Sequence[Metric], options: MetricOptions) -> None:
    """Load each network that the metrics need once, and drop it: long before a training comes to
    use it.

    Raises:
        UserError: if weights or packages are missing or wrong.
    """
    for detector in dict.fromkeys(metric.detector for metric in metrics if metric.detector):
        load_detector(detector, options.weights_of(detector), CPU)
    kinds = {metric.kind for metric in metrics}
    if "ppl" in kinds:
        load_lpips(options.lpips_weights, CPU)
    if "identity" in kinds and options.identity_model is not None:
        OnnxModel(options.identity_model, "--identity-model")
    if "pose" in kinds and options.pose_model is not None:
        options.open_pose(options.pose_model)


# --------------------------------------------------------------------------------------------------
# Distances between sets of pictures


def _compare_sets(
    metrics: list[Metric],
    name: DetectorName,
    sample: Sampler,
    reals: RealImages | None,
    options: MetricOptions,
) -> list[MetricResult]:
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


# --------------------------------------------------------------------------------------------------
# Measures that look at the generator itself


def _measure_generator(
    metric: Metric, sample: Sampler, reals: RealImages | None, options: MetricOptions
) -> MetricResult:
    if not isinstance(sample, GeneratorSampler):
        raise UserError(
            f"{metric.name} looks at a generator from several sides; pictures alone are not enough"
        )
    started = time.monotonic()
    values, extra = _MEASURES[metric.kind](metric, sample, reals, options)
    protocol = {**sample.protocol, "fakes": metric.count, "device": options.device.type, **extra}
    return MetricResult(metric.name, values, protocol, time.monotonic() - started)


Measured = tuple[dict[str, float], dict[str, Any]]


def _ppl(
    metric: Metric, sample: GeneratorSampler, _: RealImages | None, options: MetricOptions
) -> Measured:
    network, digest = load_lpips(options.lpips_weights, options.device)
    value = path_length(sample, network, metric.count, options.batch, options.team)
    return {metric.name: value}, {
        "space": "w",
        "ends_only": True,
        "epsilon": EPSILON,
        "detector": "LPIPS VGG16",
        "detector_sha256": digest,
    }


def _consistency(
    metric: Metric, sample: GeneratorSampler, _: RealImages | None, options: MetricOptions
) -> Measured:
    values = view_consistency(sample, metric.count, options.batch, options.team)
    return {f"{metric.name}_{name}": value for name, value in values.items()}, {}


def _depth(
    metric: Metric, sample: GeneratorSampler, reals: RealImages | None, options: MetricOptions
) -> Measured:
    assert reals is not None
    values = depth_against_maps(sample, reals, metric.count, options.batch, options.team)
    extra = {
        "cameras": "of the real pictures",
        "reals": metric.count,
        "data_pictures": reals.count,
        "data_hash": reals.key,
    }
    return {f"{metric.name}_{name}": value for name, value in values.items()}, extra


def _relief(
    metric: Metric, sample: GeneratorSampler, _: RealImages | None, options: MetricOptions
) -> Measured:
    values = relief(sample, metric.count, options.batch, options.team)
    return {f"{metric.name}_{name}": value for name, value in values.items()}, {}


def _identity(
    metric: Metric, sample: GeneratorSampler, _: RealImages | None, options: MetricOptions
) -> Measured:
    assert options.identity_model is not None
    embedder = OnnxModel(options.identity_model, "--identity-model")
    values = identity_similarity(sample, embedder, metric.count, options.batch, options.team)
    return {metric.name: values["identity"], f"{metric.name}_std": values["std"]}, {
        "detector_sha256": embedder.hash
    }


def _pose(
    metric: Metric, sample: GeneratorSampler, _: RealImages | None, options: MetricOptions
) -> Measured:
    assert options.pose_model is not None
    estimator = options.open_pose(options.pose_model)
    values = pose_error(sample, estimator, metric.count, options.batch, options.team)
    return {f"{metric.name}_{name}": value for name, value in values.items()}, {
        "detector": str(estimator.path),
        "detector_sha256": estimator.hash,
    }


def _speed(
    metric: Metric, sample: GeneratorSampler, _: RealImages | None, options: MetricOptions
) -> Measured:
    # Processes that measure at once would slow each other down, so the first one measures while the
    # others wait for its numbers.
    team = options.team
    own = speed(sample) if team.rank == 0 else {}
    names = ("frames_per_second", "mebibytes_per_frame")
    keys = [f"{name}_{kind}" for name in names for kind in ("cached_planes", "every_frame")]
    table = team.sum(
        torch.tensor([own.get(key, 0.0) for key in keys], dtype=torch.float64)
    ).tolist()
    values = {
        f"{metric.name}_{key}": value for key, value in zip(keys, table, strict=True) if value
    }
    hardware = (
        torch.cuda.get_device_name(options.device)
        if options.device.type == "cuda"
        else f"{torch.get_num_threads()} threads"
    )
    return values, {"hardware": hardware}


_MEASURES: dict[
    str, Callable[[Metric, GeneratorSampler, RealImages | None, MetricOptions], Measured]
] = {
    "ppl": _ppl,
    "consistency": _consistency,
    "depth": _depth,
    "relief": _relief,
    "identity": _identity,
    "pose": _pose,
    "speed": _speed,
}
