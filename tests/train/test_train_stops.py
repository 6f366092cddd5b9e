"""Signals and time limits: a run that is told to stop saves, says how to go on and loses
nothing.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import (
    BATCH,
    PATIENCE,
    TINY_OPTIONS,
    differing,
    finish,
    kimg,
    only_run,
    start,
    state_in,
)
from tests.train.runs import RUN_OPTIONS, snapshot_in, train_here
from training.checkpoints.checkpoint import load_checkpoint
from training.gan.trainer import Trainer

pytestmark = pytest.mark.waits


def wait_for(condition: Callable[[], bool], process: Any, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_sigterm_saves_says_how_to_go_on_and_loses_nothing(data: Path, tmp_path: Path) -> None:
    outdir = tmp_path / "runs"
    process = start(
        "train.py",
        "--data",
        data,
        "--outdir",
        outdir,
        *RUN_OPTIONS,
        "--snap",
        "0",
        "--kimg",
        "1000",
    )
    wait_for(lambda: any(outdir.glob("*/stats.jsonl")), process)
    process.send_signal(signal.SIGTERM)
    ended = finish(process).assert_done()
    run_dir = only_run(outdir)
    assert f"python train.py --resume {run_dir}" in ended.out
    assert "SIGTERM" in ended.out
    steps = load_checkpoint(snapshot_in(run_dir)).progress["steps"]
    assert steps >= 1

    again = train_here("--resume", run_dir, "--minutes", "1e-9").assert_done()
    assert "Time limit" in again.out
    resumed = state_in(run_dir)
    assert resumed["progress"]["steps"] == steps + 1
    train_here(
        "--data", data, "--outdir", tmp_path / "whole", *RUN_OPTIONS, "--kimg", kimg(steps + 1)
    ).assert_done()
    assert not differing(resumed, state_in(only_run(tmp_path / "whole")))


def test_sigterm_before_the_run_begins_leaves_nothing(data: Path, tmp_path: Path) -> None:
    process = start(
        "train.py", "--data", data, "--outdir", tmp_path / "runs", *RUN_OPTIONS, "--kimg", "1000"
    )
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    ended = finish(process)
    assert ended.status == -signal.SIGTERM
    assert not (tmp_path / "runs").exists()


def test_sigterm_right_after_the_run_folder_appears(data: Path, tmp_path: Path) -> None:
    outdir = tmp_path / "runs"
    process = start("train.py", "--data", data, "--outdir", outdir, *RUN_OPTIONS, "--kimg", "1000")
    wait_for(lambda: outdir.exists() and any(outdir.iterdir()), process)
    process.send_signal(signal.SIGTERM)
    ended = finish(process)
    run_dir = only_run(outdir)
    if ended.status == 0:
        assert load_checkpoint(snapshot_in(run_dir)).progress["steps"] >= 0
    else:  # a moment before anything was written
        assert ended.status == -signal.SIGTERM
        assert os.listdir(run_dir) == []


def test_ctrl_c_is_no_error(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer._judge_both

    def interrupted(trainer: Trainer, *arguments: Any) -> Any:
        if trainer.progress.steps == 1:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # an impatient person
        return original(trainer, *arguments)

    monkeypatch.setattr(Trainer, "_judge_both", interrupted)
    ended = train_here(
        "--data", data, "--outdir", tmp_path / "runs", *RUN_OPTIONS, "--kimg", "1000"
    ).assert_done()
    run_dir = only_run(tmp_path / "runs")
    assert "Stopped by SIGINT" in ended.out
    assert f"python train.py --resume {run_dir}" in ended.out
    assert load_checkpoint(snapshot_in(run_dir)).progress["steps"] == 2


def test_minutes(data: Path, tmp_path: Path) -> None:
    limit = ("--kimg", "1000", "--minutes", "0.0001")
    ended = train_here(
        "--data", data, "--outdir", tmp_path / "runs", *TINY_OPTIONS, *limit
    ).assert_done()
    run_dir = only_run(tmp_path / "runs")
    assert "Time limit reached" in ended.out
    assert f"--resume {run_dir}" in ended.out
    assert load_checkpoint(snapshot_in(run_dir)).progress["steps"] == 1


def test_two_processes_train_and_stop_together(data: Path, tmp_path: Path) -> None:
    outdir = tmp_path / "runs"
    process = start(
        "train.py",
        "--data",
        data,
        "--outdir",
        outdir,
        *RUN_OPTIONS,
        "--procs",
        "2",
        "--kimg",
        "1000",
    )
    wait_for(lambda: any(outdir.glob("*/stats.jsonl")), process)
    process.send_signal(signal.SIGTERM)  # to the parent alone, as batch systems do
    ended = finish(process).assert_done()
    assert "2 processes" in ended.out
    assert "Minibatch statistics over groups of 2 samples instead of 4" in ended.out
    assert "SIGTERM" in ended.out
    assert ended.out.count("Saved ") == 1
    state = state_in(only_run(outdir))
    assert state["progress"]["images"] == BATCH * state["progress"]["steps"] > 0
    assert all(
        bool(value.isfinite().all())
        for name in ("G", "D", "G_ema")
        for value in state[name].values()
    )
