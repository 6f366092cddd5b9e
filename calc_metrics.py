"""Metrics of a model: python calc_metrics.py --network ckpt.pkl --data ffhq.zip --metrics
fid50k_full. See docs/metrics.md.
"""

from __future__ import annotations

from dnnlib.startup import prepare_program

prepare_program(__name__)  # the imports below take seconds

import dataclasses
import datetime
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from cli.devices import device_option
from cli.metrics import Metrics, metric_network_options
from cli.program import program
from cli.rendering import (
    network_option,
    nrr_option,
    precision_option,
    trunc_cutoff_option,
    trunc_option,
)
from cli.values import Parsed
from data_tools.faces.angles import open_pose_estimator
from dnnlib.console import UserError, run_cli
from dnnlib.files import atomic_write, check_utf8, is_url, make_dir
from dnnlib.numbers import MAX_SEED, finite
from media.report.page import Figure, Report, Section, report_page
from media.report.sections import (
    curves_section,
    realism_sections,
    samples_section,
    views_section,
)
from metrics.evaluate import check_inputs, evaluate
from metrics.names import VALID_FORMS, explain, parse_metrics
from metrics.options import MetricOptions, MetricResult
from metrics.realism import Realism, compare_with_reals
from metrics.reals import RealImages
from metrics.results import as_json, as_text, show_in_tensorboard
from metrics.sampling import GeneratorSampler
from open_eg3d import __version__
from open_eg3d.measuring import (
    SamplingOptions,
    keep_results,
    open_reals,
    open_sampler,
    real_images,
)
from torch_utils.distributed.processes import run_processes
from torch_utils.precision import use_full_fp32
from training.cameras import cameras_of
from training.data.dataset import ImageDataset
from training.networks.generator import Generator
from training.run.saving import snapshot_kimg

ON_URL_OUTDIR = Path("out")
REALS_OF_REPORT = 2000  # real pictures the report compares with where no metric says how many


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
    report: Path | None = None
    report_fakes: int = 500


# --------------------------------------------------------------------------------------------------
# The work of one process


def open_data(path: str, mirror: bool, check: bool) -> ImageDataset:
    """The data set; in memory if it fits.

    Raises:
        UserError: for bad data.
    """
    dataset = open_reals(path, mirror, check)
    if dataset.fits_memory:
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
    dataset = (
        open_data(job.data, job.mirror, check=team.rank == 0) if job.data is not None else None
    )
    reals = real_images(dataset) if dataset is not None else None
    check_inputs(parse_metrics(job.metrics, options.detector), reals, options)
    sampler = open_sampler(job.network, dataset, job.sampling, device)
    if dataset is not None and dataset.has_alpha:
        reals = real_images(dataset)  # over the generator's colour
    results = evaluate(job.metrics, sampler, reals, options)
    if team.rank == 0:
        tell(job, results)
    if job.report is not None:
        realism = compare(job, sampler, reals, options)
        if team.rank == 0:
            write_report(job, job.report, results, sampler, reals, realism)


def tell(job: Job, results: list[MetricResult]) -> None:
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
        raise UserError(
            f"cannot write to {job.outdir}: {error.strerror or error}; free some space or choose"
            " another --outdir"
        ) from error


# --------------------------------------------------------------------------------------------------
# The report


def compare(
    job: Job, sampler: GeneratorSampler, reals: RealImages | None, options: MetricOptions
) -> Realism | None:
    """Fakes beside the real pictures that the metrics compare with, by the same feature network;
    none without data or such metrics.
    """
    metrics = [metric for metric in parse_metrics(job.metrics, options.detector) if metric.detector]
    if reals is None or not metrics:
        return None
    counts = [metric.count for metric in metrics if metric.needs_reals]
    is_full = any(metric.is_full for metric in metrics)
    count = None if is_full else min(max(counts, default=REALS_OF_REPORT), reals.count)
    assert metrics[0].detector is not None
    return compare_with_reals(sampler, reals, options, metrics[0].detector, job.report_fakes, count)


def write_report(
    job: Job,
    path: Path,
    results: list[MetricResult],
    sampler: GeneratorSampler,
    reals: RealImages | None,
    realism: Realism | None,
) -> None:
    """Write the page: numbers, curves, samples, views, and samples beside real pictures.

    Raises:
        UserError: if it cannot be written.
    """
    figures = [
        Figure(result.name, finite_values(result), result.protocol, explain(result.name))
        for result in results
    ]
    folders = [job.outdir] if is_url(job.network) else [Path(job.network).parent, job.outdir]
    assert isinstance(sampler.model, Generator)
    sections = [
        curves_section(
            folders, {result.name: result.protocol for result in results}, snapshot_kimg
        ),
        samples_section(sampler, job.options.batch),
        views_section(sampler, cameras_of(sampler.model), job.options.batch),
    ]
    if realism is not None and reals is not None:
        sections += realism_sections(sampler, reals, realism)
    else:
        sections.append(
            Section(
                "Beside real pictures",
                "Not computed: it takes --data, and one of the metrics fid, kid, pr or is.",
            )
        )
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    facts = {
        "Network": job.network,
        "Data": job.data or "none",
        "Made": now,
        "By": f"open-eg3d {__version__}",
    }
    page = report_page(Report(f"Metrics of {Path(job.network).name}", facts, figures, sections))
    with atomic_write(path) as file:
        file.write(page.encode(errors="backslashreplace"))  # pictures' names may be no UTF-8
    print(f"Report: {path}", file=sys.stderr)


def finite_values(result: MetricResult) -> dict[str, float | None]:
    """Values, none for those that are not finite."""
    return {name: value if math.isfinite(value) else None for name, value in result.values.items()}


# --------------------------------------------------------------------------------------------------
# The command line


class Range(Parsed):
    """Two finite numbers A,B with A <= B."""

    name = "range"

    def parse(self, text: str) -> tuple[float, float]:
        """The two numbers."""
        try:
            low, high = (finite(part) for part in text.split(","))
        except ValueError:
            low, high = 1, 0
        if low > high:
            raise ValueError(f"{text!r} is not a range of degrees; write it as -30,30")
        return low, high


def check_options(job: Job, device: torch.device, procs: int) -> None:
    """Refuse options that do not go together.

    Raises:
        click.UsageError: that names them.
    """
    metrics = parse_metrics(job.metrics, job.options.detector)
    for metric in metrics:
        if metric.needs_reals and not job.data:
            raise click.UsageError(
                f"--metrics {metric.name} compares with real pictures; give them with --data"
            )
    if job.sampling.cameras == "data" and not job.data:
        raise click.UsageError("--cameras data needs --data; choose --cameras checkpoint")
    if (job.sampling.yaw or job.sampling.pitch) and job.sampling.cameras != "range":
        raise click.UsageError("--yaw and --pitch have an effect with --cameras range only")
    if device.type == "mps" and procs > 1:
        raise click.UsageError("--procs: only one process can use --device mps")
    if device.type == "cuda" and procs > torch.cuda.device_count():
        raise click.UsageError(
            f"--procs {procs}: there is one process per GPU, and this machine has"
            f" {torch.cuda.device_count()}"
        )
    fakes = max(job.report_fakes if job.report else 0, *(metric.count for metric in metrics))
    if job.sampling.seed + fakes > MAX_SEED:
        raise click.UsageError(
            f"--seed {job.sampling.seed}: seeds go up to {MAX_SEED}, and every picture takes one"
        )


def default_outdir(network: str) -> Path:
    """Where results go: beside the network; in `out` for an address."""
    return ON_URL_OUTDIR if is_url(network) else Path(network).parent


def job_of(options: dict[str, Any]) -> Job:
    """What the options ask for."""
    return Job(
        network=options["network"],
        data=options["data"],
        metrics=options["names"],
        options=MetricOptions(
            batch=options["batch"],
            detector=options["detector"] or "inception",
            detector_weights=options["detector_weights"],
            lpips_weights=options["lpips_weights"],
            identity_model=options["identity_model"],
            pose_model=options["pose_model"],
            open_pose=open_pose_estimator,
        ),
        sampling=SamplingOptions(
            **{field.name: options[field.name] for field in dataclasses.fields(SamplingOptions)}
        ),
        mirror=options["mirror"],
        outdir=options["outdir"] or default_outdir(options["network"]),
        prints_json=options["prints_json"],
        report=options["report"],
        report_fakes=options["report_fakes"],
    )


@program(
    What_is_measured="network names data mirror outdir prints_json report report_fakes",
    Fakes="cameras yaw pitch conditioning trunc trunc_cutoff nrr seed",
    Networks_of_metrics="detector detector_weights lpips_weights pose_model identity_model",
    Machine="device procs batch precision",
)
@network_option
@click.option(
    "--data", metavar="ZIP|DIR|URL", help="Real pictures with cameras, at the model's resolution."
)
@click.option(
    "--metrics",
    "names",
    type=Metrics(),
    required=True,
    metavar="A,B,...",
    help=f"What to compute: {VALID_FORMS}.",
)
@metric_network_options
@click.option(
    "--cameras",
    type=click.Choice(["data", "checkpoint", "range"]),
    help="Where cameras are drawn from.  [default: data, else checkpoint]",
)
@click.option(
    "--yaw",
    type=Range(),
    metavar="A,B",
    help="Range in degrees, with --cameras range.  [default: the training data's]",
)
@click.option(
    "--pitch",
    type=Range(),
    metavar="A,B",
    help="Range in degrees, with --cameras range.  [default: the training data's]",
)
@click.option(
    "--conditioning",
    type=click.Choice(["own", "frontal"]),
    default="own",
    help=(
        "Camera that latents are conditioned on: each one's own, as in the paper, or the data's"
        " mean pose."
    ),
)
@trunc_option
@trunc_cutoff_option
@nrr_option
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    help="Seed of fake 0; i more for fake i.",
)
@precision_option
@click.option(
    "--mirror/--no-mirror", default=False, help="Add the mirror images of the real pictures."
)
@click.option("--batch", type=click.IntRange(1, 4096), default=16, help="Pictures at once.")
@click.option(
    "--procs",
    type=click.IntRange(1, 256),
    default=1,
    help="Processes that share the work (GPUs).",
)
@device_option
@click.option(
    "--outdir",
    type=click.Path(path_type=Path),
    help="Folder of metric-<name>.jsonl.  [default: the network's]",
)
@click.option("--json", "prints_json", is_flag=True, help="Print one line of JSON per metric.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="HTML",
    help="Also write a page with metrics and pictures.",
)
@click.option(
    "--report-fakes",
    type=click.IntRange(1, 1_000_000),
    default=500,
    help="Fakes that the page's most and least realistic ones are chosen from.",
)
def main(**options: Any) -> None:
    """Compute metrics of a model, with the protocol they hold for. Results are also appended to
    metric-<name>.jsonl.
    """
    job, device, procs = job_of(options), options["device"], options["procs"]
    check_options(job, device, procs)
    check_utf8(job.outdir)
    make_dir(job.outdir)
    if job.report is not None:
        make_dir(job.report.parent)
    run_processes(procs, device.type, run_job, job, hint="try fewer --procs or a smaller --batch")


if __name__ == "__main__":
    run_cli(main)
