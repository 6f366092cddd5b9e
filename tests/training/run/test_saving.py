"""Checkpoints written in the background: what they hold, which stay, and what becomes of them on a
full disk.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from dnnlib.console import UserError
from tests.tiny import tiny_config
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint
from training.config.settings import SnapshotConfig
from training.run import saving
from training.run.launch import find_checkpoint, set_aside_later
from training.run.saving import (
    SnapshotWriter,
    is_finite,
    snapshot_kimg,
    snapshot_name,
    snapshots_in,
    thin_out,
)

KEEP_ALL = SnapshotConfig(keep_last=0)


def checkpoint(value: float) -> Checkpoint:
    weights = {"w": torch.full((3, 4), float(value))}
    return Checkpoint(
        tiny_config(), {"images": int(value)}, weights, {"d": torch.ones(2)}, dict(weights)
    )


def held(path: Path) -> float:
    state = load_checkpoint(path).G
    assert state is not None
    return float(state["w"][0, 0])


# --------------------------------------------------------------------------------------------------
# Writing


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is the state at the time of asking, though the weights change before the
    first byte.
    """
    lines: list[str] = []
    go = threading.Event()
    original = saving.save_checkpoint

    def slowly(path: Path, content: Checkpoint) -> None:
        assert go.wait(30)
        original(path, content)

    monkeypatch.setattr(saving, "save_checkpoint", slowly)
    writer, state, path = (
        SnapshotWriter(KEEP_ALL, lines.append),
        checkpoint(1),
        tmp_path / snapshot_name(1000),
    )
    writer.submit(path, state)
    assert state.G is not None
    state.G["w"].fill_(7)
    state.progress["images"] = 7
    writer.poll()
    assert not path.exists()
    assert lines == []
    go.set()
    writer.finish()
    assert held(path) == 1
    assert load_checkpoint(path).progress == {"images": 1}
    assert lines == [f"Saved {path}"]


def test_checkpoints_are_written_in_turn(tmp_path: Path) -> None:
    lines: list[str] = []
    writer = SnapshotWriter(KEEP_ALL, lines.append)
    paths = [tmp_path / snapshot_name(1000 * number) for number in range(1, 5)]
    for number, path in enumerate(paths):
        writer.submit(path, checkpoint(number))
    writer.finish()
    assert [held(path) for path in paths] == [0, 1, 2, 3]
    assert lines == [f"Saved {path}" for path in paths]


def test_a_full_disk_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    writer, path = (
        SnapshotWriter(SnapshotConfig(keep_last=1), lines.append),
        tmp_path / snapshot_name(1000),
    )
    writer.submit(path, checkpoint(1))
    writer.wait()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        writer.submit(tmp_path / snapshot_name(2000), checkpoint(2))
        writer.wait()
        assert writer.is_behind
        assert os.listdir(tmp_path) == [path.name]
        assert held(path) == 1
        with pytest.raises(UserError, match="No space left"):
            writer.finish()
    writer.submit(tmp_path / snapshot_name(2000), checkpoint(2))
    writer.finish()
    assert not writer.is_behind
    assert os.listdir(tmp_path) == [snapshot_name(2000)]
    assert [line.split()[0] for line in lines] == ["Saved", "warning:", "Saved"]
    assert "tries again" in lines[1]


def test_a_mistake_in_the_thread_is_told(tmp_path: Path) -> None:
    lines: list[str] = []
    writer, wrong = SnapshotWriter(KEEP_ALL, lines.append), checkpoint(1)
    wrong.augment["x"] = {1, 2}
    writer.submit(tmp_path / snapshot_name(0), wrong)
    with pytest.raises(UserError, match="tensors and plain values"):
        writer.finish()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_noticed(value: float) -> None:
    state: dict[str, Any] = vars(checkpoint(1))
    assert is_finite(state)
    state["D"]["d"][1] = value
    assert not is_finite(state)


# --------------------------------------------------------------------------------------------------
# Which stay


def write_all(folder: Path, kimg: list[int]) -> None:
    for number in kimg:
        (folder / snapshot_name(number * 1000)).write_bytes(b"x")


def left(folder: Path) -> list[float]:
    return [snapshot_kimg(path) or 0 for path in sorted(folder.glob("*.pkl"))]


@pytest.mark.parametrize(
    ("last", "every", "expected"),
    [
        (0, 1, [200, 400, 600, 800, 1000, 1200, 1400, 1600, 1800, 2000, 2200]),
        (3, 0, [1800, 2000, 2200]),
        (2, 1000, [1000, 2000, 2200]),
        (1, 500, [600, 1000, 1600, 2000, 2200]),
        (20, 0, [200, 400, 600, 800, 1000, 1200, 1400, 1600, 1800, 2000, 2200]),
    ],
)
@pytest.mark.parametrize("stepwise", [True, False])
def test_the_last_and_every_so_many_kimg_stay(
    tmp_path: Path, last: int, every: float, expected: list[int], stepwise: bool
) -> None:
    """Whether old ones are removed one by one in the course of a run or all at once."""
    for kimg in range(200, 2400, 200):
        write_all(tmp_path, [kimg])
        if stepwise:
            thin_out(tmp_path, SnapshotConfig(keep_last=last, keep_kimg=every))
    thin_out(tmp_path, SnapshotConfig(keep_last=last, keep_kimg=every))
    assert left(tmp_path) == expected


def test_short_runs_keep_their_last_snapshots(tmp_path: Path) -> None:
    writer = SnapshotWriter(SnapshotConfig(keep_last=2), lambda _: None)
    for images in (4, 8, 12, 1000):
        writer.submit(tmp_path / snapshot_name(images), checkpoint(images))
        writer.finish()
    assert [held(path) for path in snapshots_in(tmp_path)] == [12, 1000]


def test_a_damaged_snapshot_gives_way_to_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = SnapshotWriter(KEEP_ALL, lambda _: None)
    for images in (0, 512):
        writer.submit(tmp_path / snapshot_name(images), checkpoint(images))
        writer.finish()
    path = tmp_path / snapshot_name(512)
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((3, 4), 512.0).numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    found = find_checkpoint(str(tmp_path), tmp_path)
    assert found is not None
    assert found[1].progress == {"images": 0}
    assert capsys.readouterr().err.count("warning:") == 1
    set_aside_later(found[0])
    assert snapshots_in(tmp_path) == [tmp_path / snapshot_name(0)]


def test_every_byte_counts(tmp_path: Path) -> None:
    """A changed byte anywhere is found out, or lies where nothing is stored."""
    path = tmp_path / snapshot_name(0)
    saving.save_checkpoint(path, checkpoint(5))
    content = path.read_bytes()
    state, unnoticed = vars(load_checkpoint(path)), 0
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        try:
            loaded = vars(load_checkpoint(path))
        except UserError:
            continue
        unnoticed += 1
        assert loaded["progress"] == state["progress"]
        for network in ("G", "D", "G_ema"):
            assert all(
                torch.equal(loaded[network][name], value) for name, value in state[network].items()
            )
    assert unnoticed < len(range(0, len(content), 7))
