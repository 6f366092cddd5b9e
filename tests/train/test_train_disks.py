"""Places that cannot be written and disks that are full: what was trained before stays."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import TINY_OPTIONS, Ended, differing, finish, kimg, only_run, start, state_in
from tests.train.runs import snapshot_in, train_here
from training.checkpoints.checkpoint import load_checkpoint
from training.run import folder as run_folder


def test_an_outdir_that_is_a_file(data: Path, tmp_path: Path) -> None:
    outdir = tmp_path / "runs"
    outdir.write_text("a file")
    train_here("--data", data, "--outdir", outdir, *TINY_OPTIONS).assert_refused(1, str(outdir))
    assert outdir.read_text() == "a file"


def test_an_outdir_that_cannot_be_written(data: Path, tmp_path: Path) -> None:
    # root may write everywhere but there
    outdir = Path("/proc/runs") if os.geteuid() == 0 else tmp_path
    os.chmod(tmp_path, 0o500)
    try:
        train_here("--data", data, "--outdir", outdir / "here", *TINY_OPTIONS).assert_refused(
            1, str(outdir)
        )
    finally:
        os.chmod(tmp_path, 0o700)
    assert os.listdir(tmp_path) == []


def test_a_run_folder_that_cannot_be_written(half_copy: Path) -> None:
    before = state_in(half_copy)
    (half_copy / "training_options.json").unlink()
    (half_copy / "training_options.json").mkdir()
    train_here("--resume", half_copy, "--kimg", kimg(4)).assert_refused(1, "training_options.json")
    assert not differing(state_in(half_copy), before)


def test_a_full_disk_keeps_the_last_snapshot(
    whole: tuple[Path, Ended], half_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_in(half_copy)
    original = os.fsync

    def full(descriptor: int) -> None:
        if "network-snapshot" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        ended = train_here("--resume", half_copy, "--kimg", kimg(6))
    ended.assert_refused(1, "network-snapshot", "No space left on device")
    assert not [name for name in os.listdir(half_copy) if name.startswith(".")]
    assert not differing(state_in(half_copy), before)
    train_here("--resume", half_copy, "--kimg", kimg(6)).assert_done()
    assert not differing(state_in(half_copy), state_in(whole[0]))


@pytest.mark.waits
def test_a_system_that_refuses_large_files(data: Path, tmp_path: Path) -> None:
    process = start(
        "train.py",
        "--data",
        data,
        "--outdir",
        tmp_path / "runs",
        *TINY_OPTIONS,
        "--snap",
        "0",
        "--kimg",
        kimg(2),
    )
    # less than a checkpoint, more than the rest
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (150_000, 150_000))
    ended = finish(process)
    ended.assert_refused(1, "network-snapshot")
    names = os.listdir(only_run(tmp_path / "runs"))
    assert "stats.jsonl" in names
    assert not [name for name in names if name.startswith(".") or "network" in name]


def test_a_disk_that_is_full_for_tensorboard(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_folder.SummaryWriter, "add_scalar", full)
    ended = train_here(
        "--data", data, "--outdir", tmp_path / "runs", *TINY_OPTIONS, "--kimg", kimg(3)
    ).assert_done()
    run_dir = only_run(tmp_path / "runs")
    assert len((run_dir / "stats.jsonl").read_text().splitlines()) == 3
    assert ended.out.count("No space left on device") == 1
    assert load_checkpoint(snapshot_in(run_dir)).progress["steps"] == 3
