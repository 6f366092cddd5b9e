"""Metrics that look at the generator itself: fid3d, traits, normals, ppl, consistency, strict,
shape, depth, relief, identity, pose, speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dnnlib.console import UserError
from metrics.consistency import strict_consistency, view_consistency
from metrics.depth import depth_against_maps, relief
from metrics.detectors import Detector, load_detector
from metrics.fid3d import fid3d
from metrics.identity import identity_similarity
from metrics.lpips import load_lpips
from metrics.names import Metric
from metrics.onnx_models import OnnxModel
from metrics.options import Measured, MetricOptions, MetricResult
from metrics.pose import pose_error
from metrics.ppl import EPSILON, path_length
from metrics.processes import WorkerGroup
from metrics.reals import RealImages, real_protocol
from metrics.sampling import GeneratorSampler, Sampler
from metrics.shape import normals_distance, shape
from metrics.speed import speed
from metrics.traits import compare_traits

FROM_REAL_CAMERAS: dict[str, Any] = {"cameras": "of the real pictures"}


@dataclass(frozen=True)
class Task:
    """What is measured, and how."""

    metric: Metric
    sampler: GeneratorSampler
    reals: RealImages | None
    options: MetricOptions

    @property
    def detector(self) -> Detector:
        """The feature network that the metric names."""
        name = self.metric.detector
        assert name is not None
        return load_detector(name, self.options.weights_of(name), self.options.device)

    def against(self, reals: RealImages, detector: Detector | None = None) -> dict[str, Any]:
        """Protocol of a comparison with as many reals as fakes."""
        return real_protocol(reals, self.metric.count, detector)

    @property
    def work(self) -> tuple[int, int, WorkerGroup]:
        """Samples, batch and processes."""
        return self.metric.count, self.options.batch, self.options.team

    def named(self, values: dict[str, float]) -> dict[str, float]:
        """Values with the metric's name before theirs, or instead of none."""
        own = self.metric.name
        return {f"{own}_{name}" if name else own: value for name, value in values.items()}


def measure_generator(
    metric: Metric, sample: Sampler, reals: RealImages | None, options: MetricOptions
) -> MetricResult:
    """Result of one metric.

    Raises:
        UserError: for pictures without a generator, missing weights or packages.
    """
    if not isinstance(sample, GeneratorSampler):
        raise UserError(
            f"{metric.name} looks at a generator from several sides; pictures alone are not enough"
        )
    started = time.monotonic()
    values, extra = METRICS[metric.kind](Task(metric, sample, reals, options))
    protocol = {**sample.protocol, "fakes": metric.count, "device": options.device.type, **extra}
    return MetricResult(metric.name, values, protocol, time.monotonic() - started)


def _ppl(task: Task) -> Measured:
    network, digest = load_lpips(task.options.lpips_weights, task.options.device)
    return {task.metric.name: path_length(task.sampler, network, *task.work)}, {
        "space": "w",
        "ends_only": True,
        "epsilon": EPSILON,
        "detector": "LPIPS VGG16",
        "detector_sha256": digest,
    }


def _consistency(task: Task) -> Measured:
    return task.named(view_consistency(task.sampler, *task.work)), {}


def _strict(task: Task) -> Measured:
    return task.named(strict_consistency(task.sampler, *task.work)), {}


def _relief(task: Task) -> Measured:
    return task.named(relief(task.sampler, *task.work)), {}


def _depth(task: Task) -> Measured:
    assert task.reals is not None
    values = depth_against_maps(task.sampler, task.reals, *task.work)
    return task.named(values), FROM_REAL_CAMERAS | task.against(task.reals)


def _shape(task: Task) -> Measured:
    values = shape(task.sampler, task.reals, *task.work)
    if task.reals is None or "real_asymmetry" not in values:
        return task.named(values), {}
    return task.named(values), FROM_REAL_CAMERAS | task.against(task.reals)


def _normals(task: Task) -> Measured:
    assert task.reals is not None
    detector = task.detector
    values = normals_distance(task.sampler, task.reals, detector, *task.work)
    return task.named(values), FROM_REAL_CAMERAS | task.against(task.reals, detector)


def _fid3d(task: Task) -> Measured:
    assert task.reals is not None
    detector = task.detector
    values = fid3d(task.sampler, task.reals, detector, task.options, task.metric.count)
    return task.named(values), task.against(task.reals, detector)


def _traits(task: Task) -> Measured:
    assert task.reals is not None
    detector = task.detector
    values, protocol = compare_traits(
        task.sampler, task.reals, detector, task.options, task.metric.count
    )
    return task.named(values), protocol | task.against(task.reals, detector)


def _identity(task: Task) -> Measured:
    assert task.options.identity_model is not None
    embedder = OnnxModel(task.options.identity_model, "--identity-model")
    values = identity_similarity(task.sampler, embedder, *task.work)
    name = task.metric.name
    return {name: values["identity"], f"{name}_std": values["std"]}, {
        "detector_sha256": embedder.hash
    }


def _pose(task: Task) -> Measured:
    assert task.options.pose_model is not None
    estimator = task.options.open_pose(task.options.pose_model)
    return task.named(pose_error(task.sampler, estimator, *task.work)), {
        "detector": str(estimator.path),
        "detector_sha256": estimator.hash,
    }


def _speed(task: Task) -> Measured:
    # Processes that measure at once would slow each other down, so the first one measures while the
    # others wait for its numbers.
    _, _, team = task.work
    own = speed(task.sampler) if team.rank == 0 else {}
    names = ("frames_per_second", "mebibytes_per_frame")
    keys = [f"{name}_{kind}" for name in names for kind in ("cached_planes", "every_frame")]
    numbers = torch.tensor([own.get(key, 0.0) for key in keys], dtype=torch.float64)
    table = zip(keys, team.sum(numbers).tolist(), strict=True)
    device = task.options.device
    hardware = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} threads"
    )
    return task.named({key: value for key, value in table if value}), {"hardware": hardware}


METRICS: dict[str, Callable[[Task], Measured]] = {
    "ppl": _ppl,
    "fid3d": _fid3d,
    "traits": _traits,
    "normals": _normals,
    "consistency": _consistency,
    "strict": _strict,
    "shape": _shape,
    "depth": _depth,
    "relief": _relief,
    "identity": _identity,
    "pose": _pose,
    "speed": _speed,
}
