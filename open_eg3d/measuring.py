"""Metrics of this program's models and data; used by calc_metrics.py, by training and by other
programs.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from dnnlib.console import UserError
from dnnlib.files import local_file
from metrics.evaluate import check_inputs, check_networks, evaluate
from metrics.names import parse_metrics
from metrics.options import MetricOptions, MetricResult
from metrics.pose import PoseEstimator
from metrics.processes import Cancelled, OtherProcessFailed
from metrics.reals import RealImages
from metrics.results import append_results, as_line, show_in_tensorboard
from metrics.sampling import CameraDraw, GeneratorSampler
from metrics.weights import file_hash
from open_eg3d import __version__
from open_eg3d.opening import open_generator
from torch_utils.memory import drop_kept_memory
from torch_utils.precision import full_fp32
from training.cameras import CameraSummary, cameras_of
from training.checkpoints.weights_folder import FILES as WEIGHTS_FILES
from training.config.settings import Config
from training.data.dataset import PLAIN_BACKGROUND, ImageDataset, alpha_background
from training.data.depth_maps import has_depth_map, read_depth_maps
from training.data.shards import open_images
from training.data.traits import read_traits
from training.networks.generator import Generator

if TYPE_CHECKING:
    from training.run.loop import SnapshotState

LARGEST_BATCH = 16  # pictures at once beside a training, and no more than it handles itself


@dataclass(frozen=True)
class SamplingOptions:
    """How fakes are made.

    Attributes:
        cameras: drawn from the poses of the data, of the checkpoint, or from ranges; none = of the
            data where they have them.
        yaw, pitch: those ranges in degrees; none = the data's.
        conditioning: camera that latents are conditioned on: each one's own, or the data's mean
            pose.
        trunc, trunc_cutoff, nrr: truncation, and neural rendering resolution (none = the model's).
        seed: of fake 0. precision: of convolutions.
    """

    cameras: Literal["data", "checkpoint", "range"] | None = None
    yaw: tuple[float, float] | None = None
    pitch: tuple[float, float] | None = None
    conditioning: Literal["own", "frontal"] = "own"
    trunc: float = 1.0
    trunc_cutoff: int | None = None
    nrr: int | None = None
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"


# --------------------------------------------------------------------------------------------------
# Real pictures


def open_reals(path: str | os.PathLike[str], mirror: bool, check: bool = True) -> ImageDataset:
    """Pictures to compare with; those with alpha are laid over a plain colour, which `sampler_for`
    makes that of the generator.
    """
    return open_images(path, mirror, check, needs_labels=False, background=PLAIN_BACKGROUND)


def real_images(dataset: ImageDataset) -> RealImages:
    """What metrics need of a data set."""
    names, key = dataset.file_names, dataset.key
    if dataset.has_alpha:
        key += f"-over-{dataset.background}"

    def read_depth(indices: np.ndarray) -> Tensor:
        maps = read_depth_maps(dataset.files, [names[index % len(names)] for index in indices])
        is_mirrored = torch.from_numpy(indices >= len(names))
        return torch.where(is_mirrored[:, None, None, None], maps.flip(-1), maps)

    return RealImages(
        count=len(dataset),
        resolution=dataset.resolution,
        key=key,
        read=lambda indices: dataset.read(indices)[0],
        labels=dataset.labels if dataset.has_labels else None,
        read_depth=read_depth if has_depth_map(dataset.files, names[0]) else None,
        name=str(dataset.path),
        names=tuple(names),
        traits=functools.cache(functools.partial(known_traits, dataset)),
        details={"mirror": dataset.is_mirrored},
    )


def known_traits(dataset: ImageDataset) -> tuple[Tensor | None, tuple[str, ...]]:
    """True traits (count, T), float64, and their names, where all pictures have them; a mirror
    image has its original's.
    """
    traits = read_traits(dataset.files)
    if traits is None or not all(name in traits.rows for name in dataset.file_names):
        return None, ()
    rows = torch.tensor([traits.rows[name] for name in dataset.file_names], dtype=torch.float64)
    return rows.repeat(2, 1) if dataset.is_mirrored else rows, traits.names


# --------------------------------------------------------------------------------------------------
# Fakes


def draw_from_poses(poses: Tensor, random: np.random.RandomState) -> Tensor:
    """One of the labels (M, 25)."""
    return poses[random.randint(len(poses))]


def draw_from_ranges(
    summary: CameraSummary,
    yaw: tuple[float, float],
    pitch: tuple[float, float],
    random: np.random.RandomState,
) -> Tensor:
    """Label (25,) on the orbit, yaw and pitch (radians) uniform in their ranges."""
    return summary.label(random.uniform(*yaw), random.uniform(*pitch))


def choose_cameras(
    options: SamplingOptions, summary: CameraSummary, labels: Tensor | None
) -> tuple[CameraDraw, str]:
    """How the fakes' cameras are drawn, and that in words. `labels` (M, 25) are those of the data,
    where there are data.
    """
    kind = options.cameras or ("checkpoint" if labels is None else "data")
    if kind == "data" and labels is not None:
        return functools.partial(draw_from_poses, labels), f"{len(labels)} poses of the data"
    if kind == "checkpoint" and len(summary.poses):
        return (
            functools.partial(draw_from_poses, summary.poses),
            f"{len(summary.poses)} poses in the checkpoint",
        )
    yaw, pitch = (
        (math.radians(pair[0]), math.radians(pair[1])) if pair else None
        for pair in (options.yaw, options.pitch)
    )
    yaw, pitch = yaw or summary.yaw_range, pitch or summary.pitch_range
    text = " and ".join(
        f"{name} uniform in {math.degrees(pair[0]):.4g}..{math.degrees(pair[1]):.4g}"
        for name, pair in (("yaw", yaw), ("pitch", pitch))
    )
    return functools.partial(draw_from_ranges, summary, yaw, pitch), f"{text} degrees"


def make_sampler(
    generator: Generator, labels: Tensor | None, options: SamplingOptions, device: torch.device
) -> GeneratorSampler:
    """A generator on `device` as a sampling function."""
    summary = cameras_of(generator)
    draw, text = choose_cameras(options, summary, labels)
    return GeneratorSampler(
        generator,
        draw,
        device,
        conditioning=summary.frontal_label() if options.conditioning == "frontal" else None,
        seed=options.seed,
        truncation_psi=options.trunc,
        truncation_cutoff=options.trunc_cutoff,
        neural_rendering_resolution=options.nrr or generator.rendering.resolution,
        has_random_noise=generator.config.superresolution.noise_mode == "random",
        details={
            "cameras": text,
            "conditioning": (
                f"{options.conditioning} camera"
                if generator.config.generator.pose_conditioning
                else "none"
            ),
            "resolution": generator.config.resolution,
            "precision": options.precision,
        },
    )


def open_sampler(
    network: str, dataset: ImageDataset | None, options: SamplingOptions, device: torch.device
) -> GeneratorSampler:
    """The generator of a file or address as a sampling function.

    Raises:
        UserError: if the file cannot be used, or the data have pictures of another size.
    """
    path = local_file(network)
    generator = open_generator(path, device, options.precision)
    sampler = sampler_for(generator, dataset, options, network)
    sampler.details |= {"network_sha256": network_hash(path)}
    return sampler


def sampler_for(
    generator: Generator, dataset: ImageDataset | None, options: SamplingOptions, name: str
) -> GeneratorSampler:
    """A generator as a sampling function, to be compared with a data set where there is one.

    Raises:
        UserError: if the data have pictures of another size than `name` makes, or lack labels.
    """
    if dataset is not None and dataset.resolution != generator.config.resolution:
        sizes = f"{dataset.resolution} pixels, {name} makes {generator.config.resolution}"
        raise UserError(
            f"data {dataset.path} has pictures of {sizes}; resize the data, or take the network"
            " made for it"
        )
    if dataset is not None and dataset.background is not None:
        dataset.background = generator.rendering.background or PLAIN_BACKGROUND
    labels = dataset.labels if dataset is not None and dataset.has_labels else None
    if dataset is not None and labels is None:
        check_unlabelled(dataset, generator, options)
    device = next(generator.parameters()).device
    sampler = make_sampler(generator, labels, options, device)
    sampler.details |= {"open_eg3d": __version__}
    return sampler


def check_unlabelled(dataset: ImageDataset, generator: Generator, options: SamplingOptions) -> None:
    """Refuse data without camera labels where the metrics need them.

    Raises:
        UserError: that says why.
    """
    missing = f"data {dataset.path} has no dataset.json with camera labels"
    if generator.config.generator.pose_conditioning:
        raise UserError(
            f"{missing}, and the network is conditioned on cameras, which must be those of the"
            " data; label the pictures"
        )
    if options.cameras == "data":
        raise UserError(
            f"{missing} for --cameras data; label the pictures, or choose --cameras checkpoint"
        )


def measure(
    generator: Generator,
    metrics: Sequence[str],
    data: str | os.PathLike[str] | None = None,
    *,
    mirror: bool = False,
    sampling: SamplingOptions | None = None,
    options: MetricOptions | None = None,
) -> list[MetricResult]:
    """Compute metrics of a generator, as calc_metrics.py does (docs/metrics.md).

    Args:
        metrics: Names such as fid2k_lite0 or consistency.
        data: ZIP or folder of real pictures, for metrics that compare with them. mirror: their
            mirror images count as real, too.
        sampling, options: How fakes are made, and metrics computed; None = the defaults, where the
            generator is.

    Returns:
        One result per metric, with its values and the protocol they hold for.

    Raises:
        UserError: for unknown names, and missing or unfit data, weights or packages.
    """
    options = options or MetricOptions(device=next(generator.parameters()).device)
    try:
        parse_metrics(metrics, options.detector)
    except ValueError as error:
        raise UserError(str(error)) from error
    dataset = None if data is None else open_reals(data, mirror)
    sampler = sampler_for(generator, dataset, sampling or SamplingOptions(), "the generator")
    reals = None if dataset is None else real_images(dataset)
    return evaluate(metrics, sampler, reals, options)


# --------------------------------------------------------------------------------------------------
# Results


def keep_results(
    folder: Path, results: Sequence[MetricResult], network: str, kimg: float | None
) -> None:
    """Append results to metric-<name>.jsonl in `folder`.

    Raises:
        UserError: if that is not possible.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    append_results(folder, results, network=network, kimg=kimg, time=now)


@dataclass(frozen=True)
class SnapshotMetrics:
    """Measures each snapshot of a training, as calc_metrics.py would with the training's data. All
    processes call it together.

    Metrics that fail cost a line in the log, not the training. Random numbers and the networks in
    training are left alone.
    """

    names: tuple[str, ...]
    options: MetricOptions = dataclasses.field(default_factory=MetricOptions)

    def __call__(self, state: SnapshotState) -> None:
        """Measure the snapshot of `state`."""
        if state.checkpoint is None:
            return
        device = state.trainer.device
        options = dataclasses.replace(
            self.options, device=device, batch=self._batch(state), is_cancelled=state.is_stopping
        )
        try:
            devices = [device] if device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices), full_fp32():
                results = options.team.together(functools.partial(self._measure, state, options))
            if options.team.rank == 0:
                self._report(state, results)
        except Cancelled:
            state.log(f"Metrics of {state.checkpoint.name} were not finished before the stop")
        except OtherProcessFailed as error:
            state.log(
                f"warning: no metrics of {state.checkpoint.name}: {error}; the training goes on"
            )
        except Exception as error:
            line = (
                f"warning: no metrics of {state.checkpoint.name}: {describe_error(error)}; the"
                " training goes on"
            )
            if options.team.rank == 0:
                state.log(line)
            else:
                print(line, file=sys.stderr, flush=True)
        finally:
            free_memory(device)

    def _batch(self, state: SnapshotState) -> int:
        training = state.trainer.config.training
        return min(LARGEST_BATCH, training.batch_gpu or training.batch)

    def _measure(self, state: SnapshotState, options: MetricOptions) -> list[MetricResult]:
        options.team.agree(True)  # from here on the first process has written the snapshot
        sampler = open_sampler(
            str(state.checkpoint), state.dataset, SamplingOptions(), options.device
        )
        return evaluate(self.names, sampler, real_images(state.dataset), options)

    def _report(self, state: SnapshotState, results: list[MetricResult]) -> None:
        progress = state.trainer.progress
        for result in results:
            state.log(f"{as_line(result)}  ({result.seconds:.0f} s)")
        keep_results(state.run_dir, results, str(state.checkpoint), progress.kimg)
        show_in_tensorboard(state.writer, results, progress.images)


def metrics_of_run(config: Config, open_pose: Callable[[str], PoseEstimator]) -> SnapshotMetrics:
    """What measures the snapshots of a run; all that it needs is looked at now, long before the
    first snapshot.

    Raises:
        UserError: if a metric's data or networks are missing or wrong.
        ValueError: for an unknown metric in the settings.
    """
    asked = config.snapshot
    options = MetricOptions(
        detector=asked.detector,
        detector_weights=asked.detector_weights,
        lpips_weights=asked.lpips_weights,
        identity_model=asked.identity_model,
        pose_model=asked.pose_model,
        open_pose=open_pose,
    )
    metrics = parse_metrics(asked.metrics, asked.detector)
    dataset = open_images(
        config.data.path,
        mirror=config.data.mirror,
        check=False,
        max_broken=config.data.max_broken,
        background=alpha_background(config.model.rendering),
    )
    check_inputs(metrics, real_images(dataset), options)
    check_networks(metrics, options)
    return SnapshotMetrics(asked.metrics, options)


def describe_error(error: Exception) -> str:
    """What went wrong in one line; what is not a mistake of the user's comes with its type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def free_memory(device: torch.device) -> None:
    """Give memory that only the metrics needed back to the training."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    drop_kept_memory()


def network_hash(path: Path) -> str:
    """SHA-256 of a file; of a folder of weights, that of its files' hashes, one after the other."""
    if path.is_file():
        return file_hash(path)
    hashes = [file_hash(path / name) for name in WEIGHTS_FILES if (path / name).exists()]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
