"""Figures of a model: python calc_metrics.py --network ckpt.pkl --data ffhq.zip --metrics fid50k_full. See docs/metrics.md."""

from __future__ import annotations

from dnnlib.interrupts import quit_on_interrupt

quit_on_interrupt(__name__)  # the imports below take seconds

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import torch

from dnnlib.console import UserError, run_cli
from dnnlib.files import is_url, make_dir
from dnnlib.options import Finite
from metrics.command_line import Metrics, network_options
from metrics.evaluate import MetricOptions, MetricResult, check_inputs, evaluate
from metrics.names import VALID_FORMS, DetectorName, parse_metrics
from metrics.results import as_json, as_text, show_in_tensorboard
from metrics.sampling import LARGEST_SEED
from open_eg3d.measuring import SamplingOptions, keep_results, open_sampler, real_images, snapshot_kimg
from torch_utils.devices import device_option
from torch_utils.precision import use_full_fp32
from torch_utils.processes import run_processes
from training.dataset import IN_MEMORY_BYTES, ImageDataset

ON_URL_OUTDIR = Path("out")


@dataclass(frozen=True)
class Job:
    """What every process is given: the options of the command line."""

    network: str
    data: str | None
    metrics: tuple[str, ...]
    options: MetricOptions
    sampling: SamplingOptions
    mirror: bool
    outdir: Path
    prints_json: bool


# ---------------------------------------------------------------------------------------------------------------------
# The work of one process


def open_data(path: str, mirror: bool, check: bool) -> ImageDataset:
    """The data set; in memory if it fits.

    Raises:
        UserError: for bad data.
    """
    dataset = ImageDataset(path, mirror=mirror, check=check)
    if dataset.pixel_bytes <= IN_MEMORY_BYTES:
        dataset.preload()
    return dataset


def run_job(device: torch.device, job: Job) -> None:
    """Compute the metrics, and in the first process report them.

    Raises:
        UserError: for whatever is wrong with the files named.
    """
    use_full_fp32()
    options = dataclasses.replace(job.options, device=device)
    team = options.team
    dataset = open_data(job.data, job.mirror, check=team.rank == 0) if job.data else None
    reals = real_images(dataset, job.mirror) if dataset is not None else None
    check_inputs(parse_metrics(job.metrics, options.detector), reals, options)
    sampler = open_sampler(job.network, dataset, job.sampling, device)
    results = evaluate(job.metrics, sampler, reals, options)
    if team.rank == 0:
        report(job, results)


def report(job: Job, results: list[MetricResult]) -> None:
    """Print the results, append them to files and show them in TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    for result in results:
        print(as_json(result, network=job.network) if job.prints_json else as_text(result))
    kimg = snapshot_kimg(job.network)
    keep_results(job.outdir, results, job.network, kimg)
    try:
        with SummaryWriter(str(job.outdir)) as writer:
            show_in_tensorboard(writer, results, round((kimg or 0) * 1000))
    except OSError as error:
        raise UserError(f"cannot write to {job.outdir}: {error.strerror or error}; free some space or choose another --outdir") from error


# ---------------------------------------------------------------------------------------------------------------------
# The command line


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


def check_options(job: Job, device: torch.device, procs: int) -> None:
    """Refuse options that do not go together.

    Raises:
        click.UsageError: that names them.
    """
    metrics = parse_metrics(job.metrics, job.options.detector)
    for metric in metrics:
        if metric.needs_reals and not job.data:
            raise click.UsageError(f"--metrics {metric.name} compares with real pictures; give them with --data")
    if job.sampling.cameras == "data" and not job.data:
        raise click.UsageError("--cameras data needs --data; choose --cameras checkpoint")
    if (job.sampling.yaw or job.sampling.pitch) and job.sampling.cameras != "range":
        raise click.UsageError("--yaw and --pitch have an effect with --cameras range only")
    if device.type == "mps" and procs > 1:
        raise click.UsageError("--procs: only one process can use --device mps")
    if device.type == "cuda" and procs > torch.cuda.device_count():
        raise click.UsageError(f"--procs {procs}: there is one process for a GPU, and this machine has {torch.cuda.device_count()}")
    if job.sampling.seed + max(metric.count for metric in metrics) > LARGEST_SEED:
        raise click.UsageError(f"--seed {job.sampling.seed}: seeds go up to {LARGEST_SEED}, and every picture takes one")


def default_outdir(network: str) -> Path:
    """Where results go: beside the network; in `out` for an address."""
    return ON_URL_OUTDIR if is_url(network) else Path(network).parent


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--network", required=True, metavar="FILE|DIR|URL", help="Checkpoint, ours or released, or a folder of weights.")
@click.option("--data", metavar="ZIP|DIR|URL", help="Real pictures with cameras, at the model's resolution.")
@click.option("--metrics", "names", type=Metrics(), required=True, metavar="A,B,...", help=f"What to compute: {VALID_FORMS}.")
@network_options
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
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of the model's convolutions; bf16 where the processor has it.",
)
@click.option("--mirror/--no-mirror", default=False, help="Add the mirror images of the real pictures.")
@click.option("--batch", type=click.IntRange(1, 4096), default=16, show_default=True, help="Pictures at once.")
@click.option("--procs", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes that share the work (GPUs).")
@device_option
@click.option("--outdir", type=click.Path(path_type=Path), help="Folder of metric-<name>.jsonl.  [default: the network's]")
@click.option("--json", "prints_json", is_flag=True, help="Print one line of JSON a metric.")
def main(
    network: str,
    names: tuple[str, ...],
    detector: DetectorName | None,
    detector_weights: str | None,
    lpips_weights: tuple[str, ...],
    identity_model: str | None,
    pose_model: str | None,
    data: str | None,
    cameras: Literal["data", "checkpoint", "range"] | None,
    batch: int,
    procs: int,
    device: torch.device,
    mirror: bool,
    outdir: Path | None,
    prints_json: bool,
    **sampling: Any,
) -> None:
    """Compute figures of a model, with the protocol they hold for. Results are also appended to metric-<name>.jsonl."""
    job = Job(
        network=network,
        data=data,
        metrics=names,
        options=MetricOptions(
            batch=batch,
            detector=detector or "inception",
            detector_weights=detector_weights,
            lpips_weights=lpips_weights,
            identity_model=identity_model,
            pose_model=pose_model,
        ),
        sampling=SamplingOptions(cameras=cameras or ("data" if data else "checkpoint"), **sampling),
        mirror=mirror,
        outdir=outdir or default_outdir(network),
        prints_json=prints_json,
    )
    check_options(job, device, procs)
    make_dir(job.outdir)
    run_processes(procs, device.type, run_job, job, hint="try fewer --procs or a smaller --batch")


if __name__ == "__main__":
    run_cli(main)
