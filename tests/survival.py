"""Runs that are killed, cut off and starved: how tests start them, wait for them and compare what
they end with.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.tiny import ROOT, TINY_OPTIONS, environment, only_run, state_in

BATCH = 8
# Every state is saved and looked at, so that kills meet checkpoints and pictures too. ADA's state
# must survive as well.
OPTIONS = (
    *TINY_OPTIONS,
    "--batch",
    str(BATCH),
    "--tick",
    "0.008",
    "--snap",
    "1",
    "--aug",
    "ada",
    "--p",
    "0.4",
    "--set",
    "augment.kimg=0.1",
)


def kimg(steps: int) -> str:
    """Value of --kimg for so many steps."""
    return str(steps * BATCH / 1000)


def begin(command: Sequence[str | Path], log: Path, **extra: str) -> subprocess.Popen[bytes]:
    """Start a command of this Python as the leader of a new session; what it says is appended to
    `log`.
    """
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=environment(**extra),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def training(outdir: Path, data: Path, steps: int, *more: str) -> list[str | Path]:
    """Arguments of Python for a run that goes on wherever the last one ended."""
    return [
        "train.py",
        "--resume",
        "latest",
        "--data",
        data,
        "--outdir",
        outdir,
        *OPTIONS,
        "--kimg",
        kimg(steps),
        *more,
    ]


def torchrun(*options: str) -> list[str | Path]:
    """Arguments of Python that come before those of a command which torchrun is to start."""
    return ["-m", "torch.distributed.run", *options]


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 120) -> float:
    """Wait until `condition()` holds; returns the seconds it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"waited in vain: {what}"
        time.sleep(0.005)
    return time.monotonic() - start


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The training processes that a launcher has started, in the order of their start."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            command = " ".join(child.cmdline())
            is_training = (
                "train.py" in command and "torch.distributed.run" not in command
            ) or "spawn_main" in command
            if is_training and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def end_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a launcher and all that it started, if they still live."""
    try:
        family = [
            psutil.Process(process.pid),
            *psutil.Process(process.pid).children(recursive=True),
        ]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        try:
            os.kill(member.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def final_state(outdir: Path) -> dict[str, Any]:
    """What the only run in `outdir` ended with."""
    return state_in(only_run(outdir))
