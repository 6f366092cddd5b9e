"""--rebalance and --max-broken as people give them: the run sees what they promise, and goes on
exactly after a stop.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import torch

import train
from tests.tiny import (
    TINY_OPTIONS,
    Ended,
    call,
    differing,
    kimg,
    only_run,
    orbit_labels,
    state_in,
    write_dataset,
)

OPTIONS = ("--workers", "0", "--rebalance", "3", "--set", "data.rebalance_bins=3", "--snap", "0")


def train_here(*arguments: str | Path) -> Ended:
    """Run train.py in this process."""
    return call(train.main, *arguments, *TINY_OPTIONS)


def test_a_rebalanced_run_is_resumed_exactly(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "blots.zip")
    plain, whole, parts = (tmp_path / name for name in ("plain", "whole", "parts"))
    train_here("--data", data, "--outdir", whole, *OPTIONS, "--kimg", kimg(5)).assert_done()
    train_here("--data", data, "--outdir", parts, *OPTIONS, "--kimg", kimg(2)).assert_done()
    call(train.main, "--resume", only_run(parts), "--gpus", "0", "--kimg", kimg(5)).assert_done()
    assert not differing(state_in(only_run(parts)), state_in(only_run(whole)))
    train_here(
        "--data", data, "--outdir", plain, "--workers", "0", "--snap", "0", "--kimg", kimg(5)
    ).assert_done()
    assert differing(state_in(only_run(plain))["G"], state_in(only_run(whole))["G"])
    call(
        train.main,
        "--resume",
        only_run(parts),
        "--gpus",
        "0",
        "--rebalance",
        "2",
        "--kimg",
        kimg(6),
    ).assert_refused(2, "--rebalance")


def test_rebalance_out_of_range(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "blots.zip")
    train_here("--data", data, "--outdir", tmp_path / "out", "--rebalance", "0.5").assert_refused(
        2, "--rebalance"
    )
    train_here("--data", data, "--outdir", tmp_path / "out", "--rebalance", "nan").assert_refused(
        2, "--rebalance"
    )
    train_here(
        "--data", data, "--outdir", tmp_path / "out", "--set", "data.rebalance_bins=0"
    ).assert_refused(2, "rebalance_bins")


def test_broken_pictures_are_refused_or_left_out(tmp_path: Path) -> None:
    """Two of them: one empty, one cut off in the middle."""
    good = write_dataset(tmp_path / "good.zip")
    with zipfile.ZipFile(good) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        cut = archive.read(names[5])[:-40]
    data = write_dataset(
        tmp_path / "data.zip",
        labels=json.loads(
            json.dumps(
                [[name, c.tolist()] for name, c in zip(names, orbit_labels(16), strict=True)]
            )
        ),
        files={names[2]: b"", names[5]: cut},
    )
    run = ("--data", data, "--workers", "0", "--kimg", kimg(1), "--outdir")
    train_here(*run, tmp_path / "strict").assert_refused(1, names[2], "cannot be read")
    one = train_here(*run, tmp_path / "one", "--max-broken", "1")
    assert one.status == 1
    assert names[5] in one.lines[-1]
    assert "limit of 1" in one.lines[-1]
    done = train_here(*run, tmp_path / "two", "--max-broken", "2").assert_done()
    for name in (names[2], names[5]):
        assert any(line.startswith("left out: ") and name in line for line in done.lines)
    assert torch.isfinite(next(iter(state_in(only_run(tmp_path / "two"))["G"].values()))).all()
