"""From settings to running processes: devices, run folders, resume."""

from __future__ import annotations

import itertools
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from dnnlib.console import UserError
from dnnlib.files import check_utf8, is_url, make_dir
from dnnlib.numbers import counted
from torch_utils.distributed.processes import TorchrunEnv, run_processes, torchrun_env
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint, load_weights
from training.checkpoints.released.interop import Weights
from training.config.settings import Config
from training.run.loop import Callback, RunOptions, run_training
from training.run.saving import SNAPSHOT_PATTERN, snapshots_in

DeviceName = Literal["auto", "cpu", "cuda", "mps"]


class Launch:
    """How a run is to be started: on which kind of device, with how many processes."""

    def __init__(self, device: str, processes: int, note: str) -> None:
        self.device, self.processes, self.note = device, processes, note


def choose_devices(device: DeviceName, gpus: int | None, procs: int | None) -> Launch:
    """Resolve --device, --gpus and --procs.

    Raises:
        ValueError: if what was asked for is not there; the message says what to ask for instead.
    """
    place = torchrun_env()
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if place is not None:
        return _devices_of_torchrun(place, device, gpus, procs, available)
    if gpus is not None and gpus > available:
        raise ValueError(
            f"--gpus {gpus}: this machine has {counted(available, 'CUDA device')}; use --gpus 0 to"
            " train on the CPU"
        )
    if device == "cuda" and (available == 0 or gpus == 0):
        raise ValueError("--device cuda: no CUDA device to use; use --device cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: not available here; use --device cpu")
    count = available if gpus is None else gpus
    if device in ("auto", "cuda") and count > 0:
        if procs not in (None, count):
            raise ValueError(
                f"--procs {procs}: there is one process for each of the {count} GPUs; leave"
                " --procs out"
            )
        return Launch("cuda", count, f"Training on {count} CUDA device(s)")
    chosen = "mps" if device == "mps" else "cpu"
    processes = procs or 1
    if chosen == "mps" and processes > 1:
        raise ValueError("--procs: only one process can use --device mps")
    why = "" if gpus == 0 or device != "auto" else " (no CUDA device found)"
    return Launch(
        chosen,
        processes,
        f"Training on {chosen.upper()}{why}, {counted(processes, 'process', 'processes')},"
        f" {counted(torch.get_num_threads(), 'thread')}",
    )


def _devices_of_torchrun(
    place: TorchrunEnv, device: DeviceName, gpus: int | None, procs: int | None, available: int
) -> Launch:
    """The same where torchrun has started the processes: it says how many there are."""
    for name, value in (("--gpus", gpus or None), ("--procs", procs)):
        if value not in (None, place.local_size, place.size):
            started = f"torchrun started {place.local_size} here and {place.size} in all"
            raise ValueError(
                f"{name} {value}: {started}; leave {name} out, or give torchrun another"
                " --nproc-per-node"
            )
    if device == "mps":
        raise ValueError("--device mps: only one process can use it, started without torchrun")
    use_cuda = device != "cpu" and gpus != 0 and available > 0
    if (device == "cuda" or gpus) and not use_cuda:
        raise ValueError("no CUDA device to use here; use --gpus 0 to train on the CPU")
    if use_cuda and place.local_size > available:
        raise ValueError(
            f"torchrun started {place.local_size} processes for"
            f" {counted(available, 'CUDA device')}; give it --nproc-per-node {available}"
        )
    kind = "cuda" if use_cuda else "cpu"
    return Launch(
        kind,
        place.size,
        f"Training on {kind.upper()}, {counted(place.size, 'process', 'processes')} that torchrun"
        f" started, {place.local_size} here",
    )


# --------------------------------------------------------------------------------------------------
# Run folders


def new_run_dir(outdir: Path, description: str) -> Path:
    """Create OUTDIR/00000-<description> with the next free number.

    Raises:
        UserError: if the folder cannot be made, or its name is no UTF-8.
    """
    check_utf8(outdir)
    make_dir(outdir)
    for attempt in range(100):
        path = outdir / f"{_next_number(outdir) + attempt:05d}-{description}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot create folder {path}: {error.strerror or error}") from error
        return path
    raise UserError(f"no free run number in {outdir}; choose another --outdir")


def run_folders(outdir: Path) -> list[Path]:
    """Run folders in `outdir`, oldest first."""
    if not outdir.is_dir():
        return []
    return sorted(
        path for path in outdir.iterdir() if path.is_dir() and re.match(r"\d{5}-", path.name)
    )


def _next_number(outdir: Path) -> int:
    return max((int(path.name[:5]) for path in run_folders(outdir)), default=-1) + 1


def find_checkpoint(resume: str, outdir: Path) -> tuple[Path, Checkpoint] | None:
    """The snapshot that --resume FILE|DIR|latest names, and what it holds. None: `latest`, and
    there is no run to go on with.

    In a folder the newest readable snapshot counts; damaged ones are passed over with a line that
    says so.

    Raises:
        UserError: if there is nothing to resume there.
    """
    if resume == "latest":
        folders = [path for path in run_folders(outdir) if snapshots_in(path)]
        if not folders:
            return None
        resume = str(folders[-1])
    if is_url(resume):
        raise UserError(
            f"--resume {resume}: a run goes on in its own folder; start a new one from a URL with"
            " --init-from"
        )
    path = Path(resume)
    if not path.is_dir():
        return path, load_checkpoint(path)
    snapshots = snapshots_in(path)
    if not snapshots:
        runs = [folder for folder in run_folders(path) if snapshots_in(folder)]
        advice = f"its newest run is {runs[-1]}" if runs else "name a run folder or a snapshot"
        raise UserError(f"--resume {path}: the folder holds no {SNAPSHOT_PATTERN}; {advice}")
    return _newest_readable(snapshots[::-1])


def set_aside_later(snapshot: Path) -> None:
    """Rename the snapshots that a run took after `snapshot`, now that it goes on from there:
    `latest` must not mean them.
    """
    for later in snapshot.parent.glob(SNAPSHOT_PATTERN):
        if later.stem > snapshot.stem:
            later.rename(later.with_suffix(".superseded"))


def newest_snapshot(outdir: Path) -> Path:
    """The last snapshot of the newest run in `outdir` that has one.

    Raises:
        UserError: if there is none.
    """
    snapshots = [path for folder in run_folders(outdir) for path in snapshots_in(folder)]
    if not snapshots:
        raise UserError(f"no run in {outdir} has a snapshot yet; train first")
    return snapshots[-1]


def _newest_readable(snapshots: list[Path]) -> tuple[Path, Checkpoint]:
    """The first of `snapshots`, newest first, that can be read."""
    for snapshot, older in itertools.pairwise(snapshots):
        try:
            return snapshot, load_checkpoint(snapshot)
        except UserError as error:
            print(f"warning: {error}; going on from {older.name}", file=sys.stderr)
    return snapshots[-1], load_checkpoint(snapshots[-1])


# --------------------------------------------------------------------------------------------------
# Processes


@dataclass
class Job:
    """A run to carry out: what every process is given.

    Attributes:
        resume: Snapshot to go on from.
        init_from: File whose weights to start from.
        time_limit: Seconds after which to save and stop.
    """

    config: Config
    run_dir: Path
    resume: Path | None = None
    init_from: str | None = None
    time_limit: float | None = None
    callbacks: tuple[Callback, ...] = ()
    metrics: tuple[Callback, ...] = ()

    def run(self, device: torch.device) -> None:
        """Train in this process.

        Raises:
            UserError: as `run_training`.
        """
        run_training(
            self.config,
            RunOptions(
                self.run_dir, device, *self._load(), self.time_limit, self.callbacks, self.metrics
            ),
        )

    def _load(self) -> tuple[Checkpoint | None, Weights | None]:
        if self.resume:
            return load_checkpoint(self.resume), None
        return None, load_weights(self.init_from) if self.init_from else None


def launch_training(job: Job, launch: Launch) -> None:
    """Run the training in this process, in `launch.processes` new ones, or in those that torchrun
    started.

    Raises:
        UserError: as `run_training`.
    """
    run_processes(launch.processes, launch.device, job.run, hint="go on with --resume latest")
