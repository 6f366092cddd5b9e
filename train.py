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

from cli.metrics import METRIC_FILES, Metrics, metric_network_options
from cli.program import program
from cli.settings import (
    check_assignments,
    given_settings,
    option_name,
    setting_option,
    setting_options,
)
from cli.values import FiniteRange
from data_tools.faces.angles import open_pose_estimator
from dnnlib.console import UserError, run_cli
from dnnlib.files import is_url
from media.pictures.snapshots import save_pictures
from metrics.names import parse_metrics
from metrics.results import drop_later_results
from open_eg3d.measuring import metrics_of_run
from torch_utils.distributed.collectives import rank
from torch_utils.distributed.processes import (
    first_process_decides,
    run_in_group,
    torchrun_env,
)
from training.config.checks import group_note, rendering_note
from training.config.presets import PRESETS
from training.config.settings import Config, from_dict, set_option, to_dict
from training.data.shards import SEPARATOR, absolute_data, open_images
from training.run.data_content import contents_of_files, note_on_data, notes_on_files
from training.run.launch import (
    Job,
    Launch,
    choose_devices,
    find_checkpoint,
    launch_training,
    new_run_dir,
    set_aside_later,
)
from training.run.loop import Callback
from training.run.settings import (
    OF_DATA,
    RunData,
    RunRequest,
    asked_background,
    changes_refused_on_resume,
    check_run,
    new_config,
)

# --------------------------------------------------------------------------------------------------
# Options and settings


def run_request(options: dict[str, Any]) -> RunRequest:
    """What a new run is asked to be."""
    return RunRequest(
        options["cfg"],
        options["sizes"],
        options["init_from"],
        given_settings(options),
        fades=options["nrr_final"] is not None,
        base=options["config"],
    )


def read_config(ctx: click.Context, param: click.Parameter, file: Path | None) -> Config | None:
    """Settings in a file as `training_options.json`."""
    if file is None:
        return None
    try:
        values = json.loads(file.read_bytes())
        config: Config = from_dict(Config, values, str(file))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise click.BadParameter(f"cannot read {file}: {reason}", ctx, param) from error
    if config.preset not in PRESETS:
        raise click.BadParameter(f"{file}: there is no preset {config.preset!r}", ctx, param)
    if "resolution" not in values.get("model", {}):
        config.model.resolution = OF_DATA
    return config


def resumed_config(own: Config, options: dict[str, Any]) -> tuple[Config, list[str]]:
    """Settings of a run that goes on: its own, except for those that may change; and lines on data
    and files that have moved.

    Raises:
        click.UsageError: naming the options that differ from those of the run.
        UserError: if the run's data or files are not there any more, or are others.
    """
    wanted = copy.deepcopy(own)
    for assignment in given_settings(options):
        set_option(wanted, assignment)
    if options["data"] is not None:
        wanted.data.path = absolute_data(options["data"])
    refused = [option_name(name, options) for name in changes_refused_on_resume(own, wanted)]
    refused += [
        f"--{name}"
        for name, value in (("cfg", own.preset), ("sizes", own.sizes))
        if options[name] not in (None, value)
    ]
    if refused:
        raise click.UsageError(
            f"--resume goes on with the run's own options, but {', '.join(refused)}"
            " would change; leave these options out, or start a new run from its weights with"
            " --init-from"
        )
    if wanted.training.kimg < own.training.kimg:
        raise click.UsageError(
            f"--kimg {wanted.training.kimg:g} is less than the run's {own.training.kimg:g}; it may"
            " only grow"
        )
    notes = [note for note in [note_on_data(own.data, wanted.data)] if note]
    if wanted.snapshot.metrics:
        notes += notes_on_files(own.snapshot, wanted.snapshot)
        wanted.snapshot.contents = contents_of_files(wanted.snapshot)
    return wanted, notes


def check_combination(options: dict[str, Any]) -> None:
    """Refuse options that exclude each other."""
    if options["resume"] and options["init_from"]:
        raise click.UsageError(
            "--resume and --init-from exclude each other: one goes on with a run, the other"
            " starts one"
        )
    for name in ("resume", "cfg", "sizes"):
        if options["config"] and options[name]:
            raise click.UsageError(
                f"--config and --{name} exclude each other: the file says all settings of a new run"
            )
    if options["json"] and not options["dry_run"]:
        raise click.UsageError("--json says how --dry-run prints; add --dry-run")


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


def settle_data(options: dict[str, Any]) -> None:
    """All data in one name; the shell makes of --data *.zip the first file and further words."""
    more = options.pop("more_data")
    strays = [word for word in more if not options["data"] or not word.lower().endswith(".zip")]
    if strays:
        raise click.UsageError(f"unexpected extra argument ({strays[0]}); name data with --data")
    options["data"] = SEPARATOR.join((options["data"], *more)) if more else options["data"]


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


def snapshot_metrics(config: Config) -> tuple[Callback, ...]:
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


def chosen_data(options: dict[str, Any]) -> RunData:
    """The pictures of a new run; without --data those of --config, or the built-in heads, rendered
    into the cache the first time, but not for a dry run.
    """
    from data_tools.heads.dataset import BUILT_IN, built_in_heads, render_built_in_heads

    base: Config | None = options["config"]
    background = asked_background(given_settings(options), base)
    name = options["data"] or (base.data.path if base else "")
    if name:
        max_broken = options["max_broken"] or (base.data.max_broken if base else 0)
        return RunData.of(open_images(name, max_broken=max_broken, background=background))
    path = built_in_heads()
    if not path.exists():
        if options["dry_run"]:
            return RunData(path, BUILT_IN.resolution)
        click.echo(f"No --data: rendering {BUILT_IN.count} heads into {path} (once)")
    return RunData.of(open_images(render_built_in_heads(), background=background))


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
    place = torchrun_env()
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
    if options["config"] is None:
        options["cfg"] = options["cfg"] or ("auto" if options["data"] else "heads")
    data = chosen_data(options)
    config, notes = new_config(run_request(options), data, launch.device)
    if config.model.resolution != data.resolution:
        raise click.UsageError(
            f"model.resolution is {config.model.resolution}, but the pictures have"
            f" {data.resolution} pixels; leave it out of --set, or of the file of --config"
        )
    check_options(config, launch)
    if tell_plan(options, config, launch, *notes):
        return None
    metrics = snapshot_metrics(config)
    run_dir = new_run_dir(
        options["outdir"], f"{data.name}-{config.preset}-batch{config.training.batch}"
    )
    click.echo(f"Run folder {run_dir}")
    return job_of(options, config, run_dir, metrics, init_from=options["init_from"])


def resume_run(
    options: dict[str, Any], launch: Launch, snapshot: Path, own: Config, kimg: float
) -> Job | None:
    """Go on with a run in its folder from a snapshot taken after `kimg`."""
    config, notes = resumed_config(own, options)
    check_options(config, launch)
    if tell_plan(options, config, launch, f"Going on from {snapshot}", *notes):
        return None
    metrics = snapshot_metrics(config)
    set_aside_later(snapshot)
    drop_later_results(snapshot.parent, kimg)
    return job_of(options, config, snapshot.parent, metrics, resume=snapshot)


def job_of(
    options: dict[str, Any],
    config: Config,
    run_dir: Path,
    metrics: tuple[Callback, ...],
    **start: Any,
) -> Job:
    """A run to carry out, from where `start` says."""
    minutes = options["minutes"]
    return Job(
        config,
        run_dir,
        time_limit=None if minutes is None else minutes * 60,
        callbacks=(save_pictures,),
        metrics=metrics,
        **start,
    )


def tell_plan(options: dict[str, Any], config: Config, launch: Launch, *notes: str) -> bool:
    """Say what is going to be done; with --dry-run show the settings and return True."""
    lines = (launch.note, *notes, group_note(config, launch.processes), rendering_note(config))
    for line in filter(None, () if options["json"] else lines):
        click.echo(line, err=options["dry_run"])
    if options["dry_run"]:
        click.echo(json.dumps(to_dict(config), indent=2))
    return options["dry_run"]


# --------------------------------------------------------------------------------------------------
# The command line


@program(
    Data="data alpha poses mirror rebalance max_broken workers",
    Recipe="cfg sizes config batch gamma aug p target freeze_d gen_pose_cond"
    " nrr_initial nrr_final nrr_fade_kimg seed overrides",
    Begin_and_end="resume init_from kimg minutes dry_run json",
    What_is_written="outdir tick snap keep keep_every log",
    Metrics="metrics detector detector_weights lpips_weights pose_model identity_model",
    Machine="device gpus procs batch_gpu precision deterministic compile",
)
@click.option(
    "--data",
    multiple=True,
    callback=lambda _, __, names: SEPARATOR.join(names) if names else None,
    metavar="ZIP|DIR|URL",
    help="Pictures and dataset.json; several ZIPs, a pattern or a folder of ZIPs make one data set."
    "  [default: the built-in heads]",
)
@click.argument("more_data", nargs=-1, metavar="[ZIP]...")
@click.option(
    "--outdir",
    type=click.Path(path_type=Path),
    default="training-runs",
    help="Where run folders go.",
)
@click.option(
    "--cfg",
    type=click.Choice(PRESETS),
    help="Preset.  [default: auto; heads without --data]",
)
@click.option(
    "--sizes",
    type=click.Choice(["laptop", "published"]),
    help="Network sizes.  [default: laptop on a CPU up to 128 pixels]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    callback=read_config,
    help="Start from the settings in a file, as training_options.json; other options go before.",
)
@click.option(
    "--gpus", type=click.IntRange(0), help="CUDA devices; 0 = CPU.  [default: all there are]"
)
@click.option("--procs", type=click.IntRange(1), help="Processes on the CPU.  [default: 1]")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    help="Where to compute.",
)
@setting_options(
    "training.batch",
    "training.batch_gpu",
    "training.gamma",
    "rendering.alpha",
    "data.poses",
    "data.mirror",
    "data.rebalance",
    "data.max_broken",
    "augment.mode",
    "augment.p",
    "augment.target",
)
@click.option("--resume", metavar="FILE|DIR|latest", help="Go on exactly where a run stood.")
@click.option(
    "--init-from", metavar="FILE|URL", help="Start a new run from these weights, ours or released."
)
@setting_options(
    "training.freeze_d",
    "generator.pose_conditioning",
    "training.resolution_initial",
    "rendering.resolution",
    "training.resolution_fade_kimg",
    "training.kimg",
)
@click.option(
    "--minutes", type=FiniteRange(0, min_open=True), help="Save and stop after this time."
)
@setting_options(
    "snapshot.tick_kimg",
    "snapshot.snap_ticks",
    "snapshot.keep_last",
    "snapshot.keep_kimg",
    "snapshot.log",
    "training.seed",
)
@setting_option(
    "snapshot.metrics",
    type=Metrics(may_be_none=True),
    default="none",
    multiple=False,
)
@metric_network_options
@setting_options("data.workers", "training.precision", "training.deterministic", "training.compile")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.FIELD=VALUE",
    callback=check_assignments,
    help="Any other setting (docs/settings.md); may be repeated.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Print the settings as JSON and stop.")
@click.option("--json", is_flag=True, help="With --dry-run: print nothing else.")
def main(**options: Any) -> None:
    """Train on DATA; everything else has a default."""
    settle_data(options)
    settle_metric_options(options)
    check_combination(options)
    try:
        launch = choose_devices(options["device"], options["gpus"], options["procs"])
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    run_in_group(launch.device, lambda: train(options, launch))


if __name__ == "__main__":
    run_cli(main)
