"""Figures of a model: python calc_metrics.py --network ckpt.pkl --data ffhq.zip --metrics fid50k_full. See docs/metrics.md."""

from __future__ import annotations

from dnnlib.interrupts import quit_on_interrupt

quit_on_interrupt(__name__)  # the imports below take seconds

import dataclasses
import datetime
import functools
import hashlib
import io
import math
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_tools.heads import DEPTH_UNIT
from dnnlib.console import UserError, run_cli
from dnnlib.files import is_url, local_file, make_dir
from dnnlib.options import Finite
from metrics.evaluate import MetricOptions, MetricResult, check_inputs, evaluate
from metrics.names import DETECTORS, VALID_FORMS, DetectorName, parse_metrics
from metrics.processes import Team
from metrics.reals import RealImages
from metrics.results import append_results, as_json, as_text, show_in_tensorboard
from metrics.sampling import LARGEST_SEED, CameraDraw, GeneratorSampler
from metrics.weights import file_hash
from open_eg3d import __version__, load_generator
from torch_utils.devices import device_option
from torch_utils.precision import use_full_fp32
from torch_utils.processes import run_processes
from training.dataset import IN_MEMORY_BYTES, ImageDataset
from training.networks.generator import Generator
from training.scene import CameraSummary, cameras_of
from training.weights_folder import FILES as WEIGHTS_FILES

ON_URL_OUTDIR = Path("out")
DEPTH_ERRORS = (OSError, KeyError, ValueError, SyntaxError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Job:
    """What every process is given: the options of the command line."""

    network: str
    data: str | None
    metrics: tuple[str, ...]
    options: MetricOptions
    cameras: str
    yaw: tuple[float, float] | None
    pitch: tuple[float, float] | None
    conditioning: str
    trunc: float
    trunc_cutoff: int | None
    nrr: int | None
    seed: int
    mirror: bool
    outdir: Path
    prints_json: bool


# ---------------------------------------------------------------------------------------------------------------------
# Real pictures


def open_reals(path: str, mirror: bool, check: bool) -> tuple[ImageDataset, RealImages]:
    """The data set, and what metrics need of it.

    Raises:
        UserError: for bad data.
    """
    dataset = ImageDataset(path, mirror=mirror, check=check)
    if dataset.pixel_bytes <= IN_MEMORY_BYTES:
        dataset.preload()
    depth_names = [f"depth/{name}" for name in dataset.file_names]

    def read_depth(indices: np.ndarray) -> Tensor:
        maps = read_depth_maps(dataset.path, [depth_names[index % len(depth_names)] for index in indices])
        is_mirrored = torch.from_numpy(indices >= len(depth_names))
        return torch.where(is_mirrored[:, None, None, None], maps.flip(-1), maps)

    return dataset, RealImages(
        count=len(dataset),
        resolution=dataset.resolution,
        key=dataset.key,
        read=lambda indices: dataset.read(indices)[0],
        labels=dataset.labels,
        read_depth=read_depth if has_file(dataset.path, depth_names[0]) else None,
        name=str(dataset.path),
        details={"mirror": mirror},
    )


def has_file(data: Path, name: str) -> bool:
    """Whether a data set, ZIP or folder, holds a file."""
    if data.is_dir():
        return (data / name).is_file()
    with zipfile.ZipFile(data) as archive:
        return name in archive.NameToInfo


def read_depth_maps(data: Path, names: Sequence[str]) -> Tensor:
    """Depths (N, 1, H, W) of 16-bit PNGs as `dataset_tool.py heads --depth` writes them.

    Raises:
        UserError: if one cannot be read.
    """
    maps = []
    for name in names:
        try:
            if data.is_dir():
                content = (data / name).read_bytes()
            else:
                with zipfile.ZipFile(data) as archive:
                    content = archive.read(name)
            with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
                maps.append(np.asarray(image, dtype=np.float64) * DEPTH_UNIT)
        except DEPTH_ERRORS as error:
            raise UserError(f"{data}: depth map {name} cannot be read: {error}; make the data again") from error
    return torch.from_numpy(np.stack(maps))[:, None]


# ---------------------------------------------------------------------------------------------------------------------
# Cameras


def draw_from_poses(poses: Tensor, random: np.random.RandomState) -> Tensor:
    """One of the labels (M, 25)."""
    return poses[random.randint(len(poses))]


def draw_from_ranges(summary: CameraSummary, yaw: tuple[float, float], pitch: tuple[float, float], random: np.random.RandomState) -> Tensor:
    """Label (25,) on the orbit, yaw and pitch (radians) uniform in their ranges."""
    return summary.label(random.uniform(*yaw), random.uniform(*pitch))


def choose_cameras(job: Job, summary: CameraSummary, labels: Tensor | None) -> tuple[CameraDraw, str]:
    """How the fakes' cameras are drawn, and that in words."""
    if job.cameras == "data" and labels is not None:
        return functools.partial(draw_from_poses, labels), f"{len(labels)} poses of the data"
    if job.cameras == "checkpoint" and len(summary.poses):
        return functools.partial(draw_from_poses, summary.poses), f"{len(summary.poses)} poses in the checkpoint"
    yaw, pitch = ((math.radians(pair[0]), math.radians(pair[1])) if pair else None for pair in (job.yaw, job.pitch))
    yaw, pitch = yaw or summary.yaw_range, pitch or summary.pitch_range
    text = " and ".join(
        f"{name} uniform in {math.degrees(pair[0]):.4g}..{math.degrees(pair[1]):.4g}" for name, pair in (("yaw", yaw), ("pitch", pitch))
    )
    return functools.partial(draw_from_ranges, summary, yaw, pitch), f"{text} degrees"


# ---------------------------------------------------------------------------------------------------------------------
# The work of one process


def run_job(device: torch.device, job: Job) -> None:
    """Compute the metrics, and in the first process report them.

    Raises:
        UserError: for whatever is wrong with the files named.
    """
    use_full_fp32()
    options = dataclasses.replace(job.options, device=device)
    team = Team.of_group(device)
    dataset, reals = open_reals(job.data, job.mirror, check=team.rank == 0) if job.data else (None, None)
    check_inputs(parse_metrics(job.metrics, options.detector), reals, options)
    path = local_file(job.network)
    generator = load_generator(path).to(device)
    if dataset is not None and dataset.resolution != generator.config.resolution:
        sizes = f"{dataset.resolution} pixels, {job.network} makes {generator.config.resolution}"
        raise UserError(f"data {dataset.path} has pictures of {sizes}; resize the data, or take the network made for it")
    sampler = make_sampler(job, generator, dataset.labels if dataset is not None else None, device)
    sampler.details |= {"network_sha256": network_hash(path), "open_eg3d": __version__}
    results = evaluate(job.metrics, sampler, reals, options)
    if team.rank == 0:
        report(job, results)


def network_hash(path: Path) -> str:
    """SHA-256 of a file; of a folder of weights, that of its files' hashes, one after the other."""
    if path.is_file():
        return file_hash(path)
    hashes = [file_hash(path / name) for name in WEIGHTS_FILES if (path / name).exists()]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def make_sampler(job: Job, generator: Generator, labels: Tensor | None, device: torch.device) -> GeneratorSampler:
    """The generator as a sampling function."""
    summary = cameras_of(generator)
    draw, text = choose_cameras(job, summary, labels)
    return GeneratorSampler(
        generator,
        draw,
        device,
        conditioning=summary.frontal_label() if job.conditioning == "frontal" else None,
        seed=job.seed,
        truncation_psi=job.trunc,
        truncation_cutoff=job.trunc_cutoff,
        neural_rendering_resolution=job.nrr or generator.rendering.resolution,
        has_random_noise=generator.config.superresolution.noise_mode == "random",
        details={
            "cameras": text,
            "conditioning": f"{job.conditioning} camera" if generator.config.generator.pose_conditioning else "none",
            "resolution": generator.config.resolution,
            "precision": "fp32",
        },
    )


def report(job: Job, results: list[MetricResult]) -> None:
    """Print the results, append them to files and show them in TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    for result in results:
        print(as_json(result, network=job.network) if job.prints_json else as_text(result))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    append_results(job.outdir, results, network=job.network, time=now)
    match = re.search(r"network-snapshot-(\d+)", job.network)
    try:
        with SummaryWriter(str(job.outdir)) as writer:
            show_in_tensorboard(writer, results, int(match[1]) * 1000 if match else 0)
    except OSError as error:
        raise UserError(f"cannot write to {job.outdir}: {error.strerror or error}; free some space or choose another --outdir") from error


# ---------------------------------------------------------------------------------------------------------------------
# The command line


class Metrics(click.ParamType):
    """Names of metrics, separated by commas."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Checked names."""
        if isinstance(value, tuple):
            return value
        names = tuple(name.strip() for name in str(value).split(",") if name.strip())
        try:
            parse_metrics(names)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return names


class Range(click.ParamType):
    """Two finite numbers A,B with A <= B."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """The two numbers."""
        if isinstance(value, tuple):
            return value
        try:
            low, high = (float(part) for part in str(value).split(","))
        except ValueError:
            low = high = math.nan
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            self.fail(f"{value!r} is not a range of degrees; write it as -30,30", param, ctx)
        return low, high


def check_options(job: Job, detector: DetectorName, device: torch.device, procs: int) -> None:
    """Refuse options that do not go together.

    Raises:
        click.UsageError: that names them.
    """
    metrics = parse_metrics(job.metrics, detector)
    for metric in metrics:
        if metric.needs_reals and not job.data:
            raise click.UsageError(f"--metrics {metric.name} compares with real pictures; give them with --data")
    if job.cameras == "data" and not job.data:
        raise click.UsageError("--cameras data needs --data; choose --cameras checkpoint")
    if (job.yaw or job.pitch) and job.cameras != "range":
        raise click.UsageError("--yaw and --pitch have an effect with --cameras range only")
    if device.type == "mps" and procs > 1:
        raise click.UsageError("--procs: only one process can use --device mps")
    if device.type == "cuda" and procs > torch.cuda.device_count():
        raise click.UsageError(f"--procs {procs}: there is one process for a GPU, and this machine has {torch.cuda.device_count()}")
    if job.seed + max(metric.count for metric in metrics) > LARGEST_SEED:
        raise click.UsageError(f"--seed {job.seed}: seeds go up to {LARGEST_SEED}, and every picture takes one")


def default_outdir(network: str) -> Path:
    """Where results go: beside the network; in `out` for an address."""
    return ON_URL_OUTDIR if is_url(network) else Path(network).parent


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--network", required=True, metavar="FILE|DIR|URL", help="Checkpoint, ours or released, or a folder of weights.")
@click.option("--data", metavar="ZIP|DIR|URL", help="Real pictures with cameras, at the model's resolution.")
@click.option("--metrics", "names", type=Metrics(), required=True, metavar="A,B,...", help=f"What to compute: {VALID_FORMS}.")
@click.option("--detector", type=click.Choice(DETECTORS), default="inception", show_default=True, help="Network of fid, kid, pr, is.")
@click.option("--detector-weights", metavar="FILE", help="Its weights.  [default: the published ones]")
@click.option("--lpips-weights", multiple=True, metavar="FILE", help="Weights for ppl2_wend; may be given twice: VGG16, linear layers.")
@click.option("--identity-model", metavar="FILE", help="ONNX face embedder for identity.")
@click.option("--pose-model", metavar="FILE", help="ONNX pose estimator for pose.")
@click.option(
    "--cameras", type=click.Choice(["data", "checkpoint", "range"]), help="Where cameras are drawn from.  [default: data, else checkpoint]"
)
@click.option("--yaw", type=Range(), metavar="A,B", help="Range in degrees, with --cameras range.  [default: the training data's]")
@click.option("--pitch", type=Range(), metavar="A,B", help="Range in degrees, with --cameras range.  [default: the training data's]")
@click.option(
    "--conditioning",
    type=click.Choice(["own", "frontal"]),
    default="own",
    show_default=True,
    help="Camera that latents are conditioned on: each one's own, as in the paper, or the data's mean pose.",
)
@click.option("--trunc", type=Finite(), default=1.0, show_default=True, help="Truncation psi: 1 none, 0 the average.")
@click.option("--trunc-cutoff", type=click.IntRange(0), help="Truncate only so many layers, from the coarsest.  [default: all]")
@click.option("--nrr", type=click.IntRange(1, 4096), help="Neural rendering resolution.  [default: the model's]")
@click.option("--seed", type=click.IntRange(0, LARGEST_SEED), default=0, show_default=True, help="Seed of fake 0; i more for fake i.")
@click.option("--mirror/--no-mirror", default=False, help="Add the mirror images of the real pictures.")
@click.option("--batch", type=click.IntRange(1, 4096), default=16, show_default=True, help="Pictures at once.")
@click.option("--procs", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes that share the work (GPUs).")
@device_option
@click.option("--outdir", type=click.Path(path_type=Path), help="Folder of metric-<name>.jsonl.  [default: the network's]")
@click.option("--json", "prints_json", is_flag=True, help="Print one line of JSON a metric.")
def main(
    network: str,
    names: tuple[str, ...],
    detector: DetectorName,
    detector_weights: str | None,
    lpips_weights: tuple[str, ...],
    identity_model: str | None,
    pose_model: str | None,
    cameras: str | None,
    batch: int,
    procs: int,
    device: torch.device,
    outdir: Path | None,
    **options: Any,
) -> None:
    """Compute figures of a model, with the protocol they hold for. Results are also appended to metric-<name>.jsonl."""
    job = Job(
        network=network,
        metrics=names,
        options=MetricOptions(
            batch=batch,
            detector=detector,
            detector_weights=detector_weights,
            lpips_weights=lpips_weights,
            identity_model=identity_model,
            pose_model=pose_model,
        ),
        cameras=cameras or ("data" if options["data"] else "checkpoint"),
        outdir=outdir or default_outdir(network),
        **options,
    )
    check_options(job, detector, device, procs)
    make_dir(job.outdir)
    run_processes(procs, device.type, run_job, job, hint="try fewer --procs or a smaller --batch")


if __name__ == "__main__":
    run_cli(main)
