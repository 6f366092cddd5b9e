"""The run folder on a disk that fills up, or that another process still writes to."""

from __future__ import annotations

import errno
import importlib
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dnnlib.console import UserError
from tests.tiny import tiny_config
from training.run import folder as run_folder
from training.run.folder import LineFile, RunFolder, lock_folder

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_lines_that_cannot_be_written_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with room for four more bytes: what it took of a line is taken back."""
    file = LineFile(tmp_path / "lines")
    file.add("first")
    file.flush()

    class Filling:
        def __init__(self, path: Path, *_: Any, **__: Any) -> None:
            self.file, self.room = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND), "wb", 0), 4

        def __enter__(self) -> Filling:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def seek(self, *place: int) -> int:
            return self.file.seek(*place)

        def truncate(self, size: int) -> None:
            self.file.truncate(size)

        def write(self, content: bytes) -> int:
            if not self.room:
                raise FULL
            written = self.file.write(content[: self.room])
            self.room -= written
            return written

    file.add("second")
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "open", Filling, raising=False)
        with pytest.raises(OSError, match="No space"):
            file.flush()
    assert file.path.read_text() == "first\n"
    file.add("third")
    file.flush()
    file.flush()
    assert file.path.read_text() == "first\nsecond\nthird\n"


def test_a_disk_that_fills_up_and_is_emptied_loses_no_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise FULL

    with RunFolder(tmp_path, tiny_config(), 0.0) as folder:
        folder.record(0.004, {"Loss/G": 1.0})
        with monkeypatch.context() as patch:
            patch.setattr(run_folder, "open", full, raising=False)
            patch.setattr(run_folder.SummaryWriter, "add_scalar", full)
            for step in (2, 3):
                folder.record(step * 0.004, {"Loss/G": float(step)})
                folder.log(f"step {step}")
        folder.record(0.016, {"Loss/G": 4.0})
        folder.log("step 4")
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert [line["Loss/G"] for line in lines] == [1, 2, 3, 4]
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert len(log) == 4
    assert log[0].startswith("warning: cannot write")
    assert "No space left on device" in log[0]
    assert log[1:] == ["step 2", "step 3", "step 4"]
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    events.Reload()
    # what TensorBoard lacks, stats.jsonl has
    # (of two files of one second the second may come first by its name)
    assert sorted(event.step for event in events.Scalars("Loss/G")) == [4, 16]


def test_a_second_full_disk_is_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise FULL

    with RunFolder(tmp_path, tiny_config(), 0.0) as folder:
        for round_ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(run_folder, "open", full, raising=False)
                folder.log(f"round {round_}")
            folder.record(0.004, {})
    assert (tmp_path / "log.txt").read_text().count("warning:") == 2


def test_errors_of_threads_that_are_no_disk_errors_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(error: Exception) -> None:
        raise error

    with RunFolder(tmp_path, tiny_config(), 0.0):
        for error in (FULL, ValueError("a real mistake")):
            thread = threading.Thread(target=fail, args=(error,))
            thread.start()
            thread.join()
    shown = capsys.readouterr().err
    assert "a real mistake" in shown
    assert "No space" not in shown


HOLD = "import sys, time\nfrom pathlib import Path\nfrom training.run.folder import lock_folder\n"
HOLD += "lock_folder(Path(sys.argv[1]))\nprint('held', flush=True)\ntime.sleep(60)"


@pytest.mark.waits
def test_a_folder_has_one_process(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process trains in"):
            lock_folder(tmp_path, seconds=0.2)
        threading.Timer(0.5, holder.kill).start()
        os.close(lock_folder(tmp_path))  # the lock ends with a process that is killed
    finally:
        holder.kill()
        holder.wait()
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    for name in (
        ".network-snapshot-000001.pkl.77.tmp",
        ".stats.jsonl.77.tmp",
        "network-snapshot-000001.pkl",
    ):
        (tmp_path / name).write_text("half")
    with RunFolder(tmp_path, tiny_config(), 0.0):
        pass
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
    assert (tmp_path / "network-snapshot-000001.pkl").exists()


# --------------------------------------------------------------------------------------------------
# Loggers


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """Records of a log of LevelDB, whose form wandb's files have after seven bytes of their own:
    blocks of 32 KiB with pieces of (checksum, length, kind), whole or first, middle, last.
    """
    place, parts = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def wandb_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of the history that wandb wrote offline, by its own description of the records."""
    import wandb

    protocol: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    wandb.teardown()  # what a process does at its end: all is written then
    (file,) = path.glob("wandb/offline-run-*/run-*.wandb")
    rows = []
    for data in leveldb_records(file.read_bytes()):
        record = protocol.Record.FromString(data)
        items = record.history.item
        rows.append({".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return [row for row in rows if row]


def test_curves_and_pictures_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, in the run's folder; TensorBoard's events stand beside it."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = tiny_config("snapshot.log=tensorboard,wandb")
    with RunFolder(tmp_path, config, 0.0) as folder:
        folder.record(0.004, {"Loss/G": 1.5})
        folder.record(0.008, {"Loss/G": 2.5})
        folder.writer.add_image("Fakes", np.zeros((4, 6, 3), np.uint8), 8)
    rows = wandb_rows(tmp_path)
    assert [(row["Loss/G"], row["images"]) for row in rows if "Loss/G" in row] == [
        (1.5, 4),
        (2.5, 8),
    ]
    sizes = [(row["Fakes.width"], row["Fakes.height"]) for row in rows if "Fakes.width" in row]
    assert sizes == [(6, 4)]
    assert list(tmp_path.glob("events.out.tfevents*"))


@pytest.mark.parametrize(("log", "count"), [("tensorboard", 1), ("none", 0)])
def test_only_what_was_asked_for(tmp_path: Path, log: str, count: int) -> None:
    with RunFolder(tmp_path, tiny_config(f"snapshot.log={log}"), 0.0) as folder:
        folder.record(0.004, {"Loss/G": 1.5})
    assert len(list(tmp_path.glob("events.out.tfevents*"))) == count
    assert not (tmp_path / "wandb").exists()


def test_without_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = tiny_config("snapshot.log=wandb")
    with (
        pytest.raises(UserError, match=r"open-eg3d\[wandb\]"),
        RunFolder(tmp_path, config, 0.0),
    ):
        raise AssertionError


def test_wandb_that_is_not_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what helps, and that does."""
    import wandb

    def refuse(**_: Any) -> None:
        raise wandb.Error("no API key")

    config = tiny_config("snapshot.log=wandb")
    with monkeypatch.context() as patch:
        patch.setattr(wandb, "init", refuse)
        with pytest.raises(UserError, match="set WANDB_MODE=offline"):
            RunFolder(tmp_path, config, 0.0).__enter__()


class FakeRun:
    """What wandb gives, without its processes."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def define_metric(self, *_: Any, **__: Any) -> None:
        pass

    def log(self, _values: Any) -> None:
        if self.error:
            raise self.error

    def finish(self) -> None:
        self.log(None)


def test_folders_of_one_name_are_runs_of_their_own_and_resumed_ones_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    ids = []

    def init(**options: Any) -> FakeRun:
        ids.append(options["id"])
        return FakeRun(None)

    monkeypatch.setattr(wandb, "init", init)
    for outdir in ("a", "b", "a"):
        path = tmp_path / outdir / "00000-data-auto-batch8"
        path.mkdir(parents=True, exist_ok=True)
        with RunFolder(path, tiny_config("snapshot.log=wandb"), 0.0):
            pass
    assert ids[0] == ids[2] != ids[1]


def test_wandb_that_fails_on_the_way_costs_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **_: FakeRun(wandb.Error("the service died")))
    with RunFolder(tmp_path, tiny_config("snapshot.log=wandb"), 0.0) as folder:
        folder.record(0.004, {"Loss/G": 1.5})
        folder.log("goes on")
    log = (tmp_path / "log.txt").read_text()
    assert "wandb cannot write: the service died" in log
    assert "goes on" in log
    assert json.loads((tmp_path / "stats.jsonl").read_text())["Loss/G"] == 1.5
