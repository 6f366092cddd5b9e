"""Runs that are killed at any moment end with the weights of undisturbed ones."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.survival import begin, end_all, final_state, torchrun, training, wait_for, workers
from tests.tiny import differing, write_dataset
from training.checkpoints.checkpoint import load_checkpoint
from training.run.folder import STATS_FILE

METRIC = "relief8"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "blots.zip")


def undisturbed(folder: Path, data: Path, steps: int, *more: str) -> dict[str, Any]:
    process = begin(training(folder / "whole", data, steps, *more), folder / "whole.log")
    assert process.wait(timeout=300) == 0, (folder / "whole.log").read_text()
    return final_state(folder / "whole")


def lines(outdir: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in outdir.glob(f"*/{STATS_FILE}"))


def has_gone_on(outdir: Path, before: int, process: subprocess.Popen[bytes]) -> bool:
    return lines(outdir) != before and len(workers(process)) == 2


def has_restarted(log: Path, restarts: int) -> bool:
    return log.read_text().count("Going on from") == restarts


def is_writing(outdir: Path) -> bool:
    return any(outdir.glob("*/.network-snapshot-*.tmp"))


def is_looking(outdir: Path, since: float) -> bool:
    """Whether pictures of a snapshot are being made: one is there that is new, the last is not."""
    newest = [
        max((path.stat().st_mtime for path in outdir.glob(f"*/{kind}-*.png")), default=0.0)
        for kind in ("fakes", "yaw")
    ]
    return newest[0] > since and newest[1] < newest[0]


def is_measuring(outdir: Path, since: float) -> bool:
    """Whether a snapshot is being measured: its pictures are there, its figures are not."""
    newest = [
        max((path.stat().st_mtime for path in outdir.glob(f"*/{kind}")), default=0.0)
        for kind in ("yaw-*.png", f"metric-{METRIC}.jsonl")
    ]
    return newest[0] > since and newest[1] < newest[0]


def live_and_die(
    outdir: Path, data: Path, steps: int, log: Path, moment: random.Random, *more: str
) -> str:
    """One life of a run, ended by SIGKILL at some moment; returns how far it came."""
    start, before = time.time(), lines(outdir)
    process = begin(training(outdir, data, steps, *more), log)
    kind = moment.choice(
        [
            "start",
            "any",
            "any",
            "writing",
            "looking",
            *(["measuring"] * 2 if "--metrics" in more else []),
        ]
    )
    if kind == "start":
        time.sleep(moment.uniform(0, 6))
    else:
        wait_for(lambda: lines(outdir) != before or process.poll() is not None, "a step", 200)
        condition = {
            "any": lambda: True,
            "writing": lambda: is_writing(outdir),
            "looking": lambda: is_looking(outdir, start),
            "measuring": lambda: is_measuring(outdir, start),
        }[kind]
        wait_for(lambda: condition() or process.poll() is not None, kind, 200)
        time.sleep(moment.uniform(0, 1.5) if kind == "any" else 0)
    if process.poll() is not None:
        return "done" if process.returncode == 0 else f"failed: {log.read_text()}"
    # of several processes the parent, of which the others are to hear
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return kind


def check_kills(folder: Path, data: Path, kills: int, steps: int, *more: str) -> None:
    """Kill a run `kills` times, let it end, and compare."""
    moment, outdir, log = random.Random(kills), folder / "killed", folder / "killed.log"
    kinds = [live_and_die(outdir, data, steps, log, moment, *more) for _ in range(kills)]
    assert not [kind for kind in kinds if kind.startswith(("done", "failed"))], kinds
    process = begin(training(outdir, data, steps, *more), log)
    assert process.wait(timeout=500) == 0, log.read_text()
    assert not differing(final_state(outdir), undisturbed(folder, data, steps, *more))
    assert "Traceback" not in log.read_text()
    assert not list(outdir.glob("*/.*.tmp"))


def test_a_run_that_is_killed_goes_on(tmp_path: Path, data: Path) -> None:
    check_kills(tmp_path, data, 1, 5)


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "processes"), [(14, 1), (6, 2)])
def test_a_run_that_is_killed_at_many_moments_goes_on(
    tmp_path: Path, data: Path, kills: int, processes: int
) -> None:
    check_kills(
        tmp_path,
        data,
        kills,
        120 if processes == 1 else 60,
        "--procs",
        str(processes),
        "--metrics",
        METRIC,
    )


def test_a_killed_process_ends_the_others_with_a_reason(tmp_path: Path, data: Path) -> None:
    process = begin(training(tmp_path / "runs", data, 1000, "--procs", "2"), tmp_path / "log")
    try:
        wait_for(lambda: lines(tmp_path / "runs") > 0, "a step")
        workers(process)[-1].kill()
        assert wait_for(lambda: process.poll() is not None, "the end", 60) < 60
    finally:
        end_all(process)
    said = (tmp_path / "log").read_text()
    assert process.returncode == 1
    assert (
        "error: a process died: process 1 terminated with signal SIGKILL; go on with --resume"
        " latest" in said
    )
    assert "Traceback" not in said


@pytest.mark.slow
def test_torchrun_starts_a_job_again_from_its_last_checkpoint(tmp_path: Path, data: Path) -> None:
    steps, log, outdir = 60, tmp_path / "log", tmp_path / "runs"
    options = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "3")
    process = begin([*torchrun(*options, "--"), *training(outdir, data, steps)], log)
    try:
        for restarts in (1, 2):
            before = lines(outdir)
            wait_for(partial(has_gone_on, outdir, before, process), "steps")
            time.sleep(1)
            workers(process)[-restarts].kill()
            wait_for(partial(has_restarted, log, restarts), "a restart", 60)
        assert process.wait(timeout=300) == 0, log.read_text()
    finally:
        end_all(process)
    assert not differing(final_state(outdir), undisturbed(tmp_path, data, steps, "--procs", "2"))


@pytest.mark.slow
def test_torchrun_passes_sigterm_on(tmp_path: Path, data: Path) -> None:
    outdir, log = tmp_path / "runs", tmp_path / "log"
    process = begin(
        [*torchrun("--standalone", "--nproc-per-node", "2", "--"), *training(outdir, data, 1000)],
        log,
    )
    try:
        wait_for(lambda: lines(outdir) > 0, "a step")
        started = workers(process)
        os.kill(process.pid, signal.SIGTERM)
        wait_for(lambda: process.poll() is not None, "the end", 60)
        assert not any(worker.is_running() and worker.status() != "zombie" for worker in started)
    finally:
        end_all(process)
    assert "Stopped by" in log.read_text()
    assert final_state(outdir)["progress"]["images"] > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB of its own."""
    if os.geteuid():
        pytest.skip("mounting a file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_nothing(
    small_disk: Path, tmp_path: Path, data: Path
) -> None:
    outdir, log, steps, filler = small_disk / "runs", tmp_path / "log", 60, small_disk / "filler"
    process = begin(training(outdir, data, steps), log)
    try:
        wait_for(lambda: any(outdir.glob("*/network-snapshot-*.pkl")), "a checkpoint")
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        said = log.read_text().count("Saved")
        wait_for(lambda: "tries again" in log.read_text(), "a warning")
        wait_for(lambda: log.read_text().count("kimg ") > 3, "training that goes on")
        assert process.poll() is None
        (snapshot,) = outdir.glob("*/network-snapshot-*.pkl")
        assert load_checkpoint(snapshot).progress["images"] > 0  # the last good one is as it was
        filler.unlink()
        wait_for(lambda: log.read_text().count("Saved") > said + 1, "checkpoints again")
        assert process.wait(timeout=300) == 0, log.read_text()
    finally:
        end_all(process)
    assert lines(outdir) == steps  # statistics have waited for room
    assert "Traceback" not in log.read_text()
    assert not differing(final_state(outdir), undisturbed(tmp_path, data, steps))
