"""Train a 3D-aware GAN on pictures with camera labels. See docs/training.md."""

from __future__ import annotations

from dnnlib.startup import prepare_program

prepare_program(__name__)  # the imports below take seconds

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from cli.metrics import Metrics, metric_network_options
from cli.values import FiniteRange
from data_tools.faces.angles import open_pose_estimator
from dnnlib.console import UserError, run_cli
from dnnlib.files import cache_dir, is_url, local_file
from media.pictures.snapshots import save_pictures
from metrics.names import parse_metrics
from metrics.results import drop_later_results
from open_eg3d.measuring import metrics_of_run
from torch_utils.distributed.collectives import rank
from torch_utils.distributed.processes import (
    first_process_decides,
    place_from_environment,
    run_in_group,
)
from training.config.checks import group_note, rendering_note
from training.config.presets import PRESETS
from training.config.settings import Config, set_option, to_dict
from training.data.dataset import ImageDataset
from training.run.launch import (
    Job,
    Launch,
    choose_devices,
    find_checkpoint,
    launch_training,
    new_run_dir,
    set_aside_later,
)
from training.run.loop import Observer
from training.run.settings import RunRequest, changes_refused_on_resume, check_run, new_config

# Command line option -> setting it changes.
SETTINGS = {
    "mirror": "data.mirror",
    "workers": "data.workers",
    "rebalance": "data.rebalance",
    "max_broken": "data.max_broken",
    "batch": "training.batch",
    "batch_gpu": "training.batch_gpu",
    "gamma": "training.gamma",
    "kimg": "training.kimg",
    "seed": "training.seed",
    "precision": "training.precision",
    "compile": "training.compile",
    "freeze_d": "training.freeze_d",
    "nrr_initial": "training.resolution_initial",
    "nrr_final": "rendering.resolution",
    "nrr_fade_kimg": "training.resolution_fade_kimg",
    "gen_pose_cond": "generator.pose_conditioning",
    "aug": "augment.mode",
    "p": "augment.p",
    "target": "augment.target",
    "tick": "snapshot.tick_kimg",
    "snap": "snapshot.snap_ticks",
    "keep": "snapshot.keep_last",
    "keep_every": "snapshot.keep_kimg",
    "metrics": "snapshot.metrics",
    "detector": "snapshot.detector",
    "detector_weights": "snapshot.detector_weights",
    "lpips_weights": "snapshot.lpips_weights",
    "identity_model": "snapshot.identity_model",
    "pose_model": "snapshot.pose_model",
}
METRIC_FILES = ("detector_weights", "lpips_weights", "identity_model", "pose_model")
BUILT_IN_COUNT, BUILT_IN_RESOLUTION = 6000, 64


# --------------------------------------------------------------------------------------------------
# Options and settings


def given_settings(options: dict[str, Any]) -> list[str]:
    """Assignments `section.field=value` for the options that were given on the command line."""
    assignments = [
        f"{SETTINGS[name]}={json.dumps(value)}"
        for name, value in options.items()
        if name in SETTINGS and value is not None
    ]
    return assignments + list(options["overrides"])


def option_name(setting: str, options: dict[str, Any]) -> str:
    """What a person typed to change `section.field`."""
    names = [
        name for name, target in SETTINGS.items() if target == setting and options[name] is not None
    ]
    return (
        f"--{names[0].replace('_', '-')}"
        if names
        else "--data"
        if setting == "data.path"
        else f"--set {setting}"
    )


def check_assignments(
    _: click.Context, __: click.Parameter, assignments: tuple[str, ...]
) -> tuple[str, ...]:
    """Refuse a --set that no run can follow."""
    for assignment in assignments:
        try:
            set_option(Config(), assignment)
        except UserError as error:
            raise click.BadParameter(str(error), param_hint="--set") from error
    return assignments


def run_request(options: dict[str, Any]) -> RunRequest:
    """What a new run is asked to be."""
    return RunRequest(
        options["cfg"],
        options["sizes"],
        options["init_from"],
        given_settings(options),
        fades=options["nrr_final"] is not None,
    )


def resumed_config(own: Config, options: dict[str, Any]) -> Config:
    """Settings of a run that goes on: its own, except for those that may change.

    Raises:
        click.UsageError: naming the options that differ from those of the run.
    """
    wanted = copy.deepcopy(own)
    for assignment in given_settings(options):
        set_option(wanted, assignment)
    data = options["data"]
    if data is not None and local_file(data).resolve() != Path(own.data.path).resolve():
        wanted.data.path = data
    refused = [option_name(name, options) for name in changes_refused_on_resume(own, wanted)]
    refused += [
        f"--{name}"
        for name, value in (("cfg", own.preset), ("sizes", own.sizes))
        if options[name] not in (None, value)
    ]
    if refused:
        raise click.UsageError(
            f"--resume goes on with the run's own options, but {', '.join(refused)} would change;"
            " leave these options out, or start a new run from its weights with --init-from"
        )
    if wanted.training.kimg < own.training.kimg:
        raise click.UsageError(
            f"--kimg {wanted.training.kimg:g} is less than the run's {own.training.kimg:g}; it may"
            " only grow"
        )
    return wanted


def check_options(config: Config, launch: Launch) -> None:
    """Settings that make no sense are wrong option values."""
    augment = config.augment
    if augment.mode == "fixed" and augment.p == 0:
        raise click.UsageError(
            "--aug fixed does nothing at probability 0; say how often with --p, for example --p 0.2"
        )
    if augment.mode == "noaug" and augment.p > 0:
        raise click.UsageError(
            f"--p {augment.p:g} has no effect without augmentation; add --aug ada or --aug fixed"
        )
    try:
        check_run(config, launch.processes)
    except UserError as error:
        raise click.UsageError(str(error)) from error


def settle_metric_options(options: dict[str, Any]) -> None:
    """Options about metrics as settings: what was not typed counts as not given, and files keep
    their place wherever a run goes on.
    """
    if click.get_current_context().get_parameter_source("metrics") is ParameterSource.DEFAULT:
        options["metrics"] = None
    options["lpips_weights"] = options["lpips_weights"] or None
    for name in METRIC_FILES:
        value = options[name]
        options[name] = (
            [absolute(item) for item in value]
            if isinstance(value, tuple)
            else absolute(value)
            if value
            else None
        )


def absolute(file: str) -> str:
    """A file with its whole path; anything else (an address, the name of an estimator) as it is."""
    return file if is_url(file) or not Path(file).exists() else str(Path(file).resolve())


def snapshot_measures(config: Config) -> tuple[Observer, ...]:
    """What measures the run's snapshots, if metrics were asked for.

    Raises:
        UserError: if what they need is missing or wrong.
        click.UsageError: for an unknown metric in the settings.
    """
    if not config.snapshot.metrics:
        return ()
    try:
        parse_metrics(config.snapshot.metrics, config.snapshot.detector)
    except ValueError as error:
        raise click.UsageError(f"snapshot.metrics: {error}") from error
    return (metrics_of_run(config, open_pose_estimator),)


def built_in_data() -> str:
    """The built-in heads, rendered into the cache the first time."""
    from data_tools.heads.dataset import HeadsConfig, generate_heads

    path = cache_dir() / f"heads{BUILT_IN_RESOLUTION}-{BUILT_IN_COUNT}.zip"
    if not path.exists():
        click.echo(f"No --data: rendering {BUILT_IN_COUNT} heads into {path} (once)")
        generate_heads(path, HeadsConfig(count=BUILT_IN_COUNT, resolution=BUILT_IN_RESOLUTION))
    return str(path)


# --------------------------------------------------------------------------------------------------
# From options to a run


def train(options: dict[str, Any], launch: Launch) -> None:
    """Train as process 0 decides."""
    job = first_process_decides(lambda: plan(options, launch))
    if job is None:
        return
    try:
        launch_training(job, launch)
    except UserError:
        if rank() == 0 and job.resume is None:
            with contextlib.suppress(OSError):  # unless the run has begun to write
                job.run_dir.rmdir()
        raise


def plan(options: dict[str, Any], launch: Launch) -> Job | None:
    """The run that the options describe, begun or to go on with; None if it was only to be
    shown.
    """
    for name in ("data", "resume", "init_from"):
        # taken for not given, it would start another run than the one that is meant
        if options[name] == "":
            raise click.BadParameter(
                "the name is empty; is a variable of the shell not set?",
                param_hint=f"--{name.replace('_', '-')}",
            )
    place = place_from_environment()
    if place is not None and place.restarts and not options["resume"]:
        click.echo("Restarted by torchrun: going on with the newest run (--resume latest)")
        options["resume"] = "latest"
    found = find_checkpoint(options["resume"], options["outdir"]) if options["resume"] else None
    if found is None:
        return start_run(options, launch)
    return resume_run(
        options, launch, found[0], found[1].config, found[1].progress.get("images", 0) / 1000
    )


def start_run(options: dict[str, Any], launch: Launch) -> Job | None:
    """Begin a new run."""
    options["cfg"] = options["cfg"] or ("auto" if options["data"] else "heads")
    dataset = ImageDataset(
        options["data"] or built_in_data(), max_broken=options["max_broken"] or 0
    )
    config, notes = new_config(run_request(options), dataset, launch.device)
    check_options(config, launch)
    if config.model.resolution != dataset.resolution:
        raise click.UsageError(
            f"model.resolution {config.model.resolution} differs from the pictures'"
            f" {dataset.resolution}; leave it out"
        )
    if tell_plan(options, config, launch, *notes):
        return None
    measures = snapshot_measures(config)
    run_dir = new_run_dir(
        options["outdir"], f"{dataset.name}-{options['cfg']}-batch{config.training.batch}"
    )
    click.echo(f"Run folder {run_dir}")
    return Job(
        config,
        run_dir,
        None,
        options["init_from"],
        seconds(options["minutes"]),
        (save_pictures,),
        measures,
    )


def resume_run(
    options: dict[str, Any], launch: Launch, snapshot: Path, own: Config, kimg: float
) -> Job | None:
    """Go on with a run in its folder from a snapshot taken after `kimg`."""
    config = resumed_config(own, options)
    check_options(config, launch)
    if tell_plan(options, config, launch, f"Going on from {snapshot}"):
        return None
    measures = snapshot_measures(config)
    snapshot = set_aside_later(snapshot)
    drop_later_results(snapshot.parent, kimg)
    return Job(
        config,
        snapshot.parent,
        snapshot,
        None,
        seconds(options["minutes"]),
        (save_pictures,),
        measures,
    )


def tell_plan(options: dict[str, Any], config: Config, launch: Launch, *notes: str) -> bool:
    """Say what is going to be done; with --dry-run show the settings and return True."""
    for line in filter(
        None, (launch.note, *notes, group_note(config, launch.processes), rendering_note(config))
    ):
        click.echo(line, err=options["dry_run"])
    if options["dry_run"]:
        click.echo(json.dumps(to_dict(config), indent=2))
    return options["dry_run"]


def seconds(minutes: float | None) -> float | None:
    """--minutes in seconds."""
    return None if minutes is None else minutes * 60


# --------------------------------------------------------------------------------------------------
# The command line


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--data", metavar="ZIP|DIR|URL", help="Pictures and dataset.json [default: the built-in heads]."
)
@click.option(
    "--outdir",
    type=click.Path(path_type=Path),
    default="training-runs",
    show_default=True,
    help="Where run folders go.",
)
@click.option(
    "--cfg", type=click.Choice(PRESETS), help="Preset [default: auto; heads for the built-in data]."
)
@click.option(
    "--sizes",
    type=click.Choice(["laptop", "published"]),
    help="Network sizes [default: laptop on a CPU up to 128 pixels].",
)
@click.option(
    "--gpus", type=click.IntRange(0), help="CUDA devices; 0 = CPU [default: all there are]."
)
@click.option("--procs", type=click.IntRange(1), help="Processes on the CPU [default: 1].")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Kind of device.",
)
@click.option("--batch", type=click.IntRange(1), help="Samples a step, over all processes.")
@click.option(
    "--batch-gpu",
    type=click.IntRange(1),
    help="Samples a process handles at once; the rest is accumulated.",
)
@click.option("--gamma", type=FiniteRange(0), help="Weight of the R1 penalty.")
@click.option("--mirror/--no-mirror", default=None, help="Also train on mirrored pictures.")
@click.option(
    "--rebalance",
    metavar="FACTOR",
    type=FiniteRange(1),
    help="Show pictures of rare yaws up to so many times as often.",
)
@click.option(
    "--max-broken",
    metavar="N",
    type=click.IntRange(0),
    help="Leave out up to so many unreadable pictures [default: 0].",
)
@click.option(
    "--aug", type=click.Choice(["noaug", "ada", "fixed"]), help="Discriminator augmentation."
)
@click.option(
    "--p", type=FiniteRange(0, 1), help="Augmentation probability (start value with ada)."
)
@click.option("--target", type=FiniteRange(-1, 1), help="Target of ada.")
@click.option("--resume", metavar="FILE|DIR|latest", help="Go on exactly where a run stood.")
@click.option(
    "--init-from", metavar="FILE|URL", help="Start a new run from these weights, ours or released."
)
@click.option(
    "--freeze-d",
    type=click.IntRange(0),
    help="Highest-resolution discriminator layers that do not learn.",
)
@click.option(
    "--gen-pose-cond/--no-gen-pose-cond",
    default=None,
    help="Condition the mapping network on the camera.",
)
@click.option(
    "--nrr-initial", type=click.IntRange(4), help="Neural rendering resolution at the start."
)
@click.option(
    "--nrr-final", type=click.IntRange(4), help="Neural rendering resolution after the fade."
)
@click.option("--nrr-fade-kimg", type=FiniteRange(0), help="Length of that fade.")
@click.option(
    "--kimg",
    type=FiniteRange(0, min_open=True),
    help="Length of the run in thousands of real images.",
)
@click.option(
    "--minutes", type=FiniteRange(0, min_open=True), help="Save and stop after this time."
)
@click.option("--tick", type=FiniteRange(0, min_open=True), help="Statistics every so many kimg.")
@click.option(
    "--snap", type=click.IntRange(0), help="Checkpoint every so many ticks; 0 = only at the end."
)
@click.option(
    "--keep", type=click.IntRange(0), help="Newest checkpoints that stay; 0 = all [default: 10]."
)
@click.option(
    "--keep-every",
    type=FiniteRange(0),
    help="Of the others, one stays every so many kimg; 0 = none [default: 1000].",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of everything random.")
@click.option(
    "--metrics",
    type=Metrics(may_be_none=True),
    metavar="none|a,b",
    default="none",
    show_default=True,
    help="Measured at every checkpoint, as by calc_metrics.py.",
)
@metric_network_options
@click.option(
    "--workers",
    type=click.IntRange(0),
    help="Processes that read pictures, for each training process.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="Of convolutions [default: fp16 on CUDA; heads on CPUs with bf16: bf16; else fp32].",
)
@click.option(
    "--compile/--no-compile",
    default=None,
    help="Compile the networks: a minute at the start, a little faster then.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.FIELD=VALUE",
    callback=check_assignments,
    help="Any other setting; may be repeated.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Print the settings and stop.")
def main(**options: Any) -> None:
    """Train on DATA; everything else has a default."""
    settle_metric_options(options)
    if options["resume"] and options["init_from"]:
        raise click.UsageError(
            "--resume and --init-from exclude each other: one goes on with a run, the other"
            " starts one"
        )
    try:
        launch = choose_devices(options["device"], options["gpus"], options["procs"])
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    run_in_group(launch.device, lambda: train(options, launch))


if __name__ == "__main__":
    run_cli(main)
