"""From names of metrics to results: the one code path of the command line and of training."""

from __future__ import annotations

from collections.abc import Sequence

from dnnlib.console import UserError
from metrics.depth import check_depth_maps
from metrics.detectors import load_detector
from metrics.generator_metrics import measure_generator
from metrics.lpips import load_lpips
from metrics.names import Metric, parse_metrics
from metrics.onnx_models import OnnxModel
from metrics.options import MetricOptions, MetricResult
from metrics.picture_sets import compare_sets
from metrics.processes import CPU
from metrics.reals import RealImages
from metrics.sampling import Sampler
from metrics.traits import check_traits


def evaluate(
    names: Sequence[str], sample: Sampler, reals: RealImages | None, options: MetricOptions
) -> list[MetricResult]:
    """Compute metrics.

    Args:
        names: as in `metrics.names.VALID_FORMS`.
        sample: the sampling function; a `GeneratorSampler` where the generator itself is measured.
        reals: real pictures, for the metrics that compare with them.

    Returns:
        Results in the order of the names; the same in every process.

    Raises:
        ValueError: for an unknown name.
        UserError: for missing or unfit data, weights or packages.
    """
    metrics = parse_metrics(names, options.detector)
    check_inputs(metrics, reals, options)
    of_pictures = [metric for metric in metrics if metric.is_of_pictures]
    found = []
    for detector in dict.fromkeys(metric.detector for metric in of_pictures if metric.detector):
        group = [metric for metric in of_pictures if metric.detector == detector]
        found += compare_sets(group, detector, sample, reals, options)
    for metric in metrics:
        if not metric.is_of_pictures:
            found.append(measure_generator(metric, sample, reals, options))
    results = {result.name: result for result in found}
    return [results[metric.name] for metric in metrics]


def check_inputs(
    metrics: Sequence[Metric], reals: RealImages | None, options: MetricOptions
) -> None:
    """Refuse metrics that lack something they need, before any long work begins.

    Raises:
        UserError: that names the metric and what it lacks.
    """
    for metric in metrics:
        if metric.needs_reals and reals is None:
            raise UserError(f"{metric.name} compares with real pictures; give them with --data")
        if reals is not None and metric.kind in ("depth", "normals"):
            check_depth_maps(reals, metric.name, metric.needed_reals)
        elif reals is not None and metric.kind == "traits":
            check_traits(reals, str(metric.detector), metric.name, metric.count)
        elif reals is not None and reals.count < metric.needed_reals:
            raise UserError(
                f"{metric.name} needs {metric.needed_reals} real pictures, {reals.name} has"
                f" {reals.count}; use more data, ask for fewer, or (fid, kid, pr, coverage) for"
                " _full, which compares with all there are"
            )
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
    """Load each network that the metrics need, and drop it again, so that what is wrong with one
    shows before a training begins and not at its first snapshot.

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
