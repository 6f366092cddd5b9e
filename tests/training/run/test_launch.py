"""Devices, run folders and which checkpoint a run goes on from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from dnnlib.console import UserError
from tests.tiny import tiny_config
from training.checkpoints.checkpoint import Checkpoint, save_checkpoint
from training.run import launch as launch_module
from training.run.launch import (
    DeviceName,
    Job,
    choose_devices,
    find_checkpoint,
    launch_training,
    new_run_dir,
    run_folders,
)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that so many CUDA devices are there."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    return pretend


@pytest.mark.parametrize(
    ("there", "device", "asked", "procs", "chosen", "processes"),
    [
        (0, "auto", None, None, "cpu", 1),
        (0, "auto", 0, None, "cpu", 1),
        (0, "auto", 0, 3, "cpu", 3),
        (0, "auto", None, 2, "cpu", 2),
        (2, "auto", None, None, "cuda", 2),
        (2, "auto", 1, None, "cuda", 1),
        (2, "cuda", 2, 2, "cuda", 2),
        (2, "auto", 0, 4, "cpu", 4),
        (2, "cpu", None, None, "cpu", 1),
    ],
)
def test_devices(
    gpus: Any,
    there: int,
    device: Any,
    asked: int | None,
    procs: int | None,
    chosen: str,
    processes: int,
) -> None:
    gpus(there)
    launch = choose_devices(device, asked, procs)
    assert (launch.device, launch.processes) == (chosen, processes)
    assert "\n" not in launch.note


@pytest.mark.parametrize(
    ("there", "device", "asked", "procs", "words"),
    [
        (0, "auto", 8, None, "--gpus 0"),
        (2, "auto", 3, None, "--gpus 0"),
        (0, "cuda", None, None, "--device cpu"),
        (2, "cuda", 0, None, "--device cpu"),
        (2, "auto", 2, 3, "--procs"),
        (0, "mps", None, None, "--device cpu"),
    ],
)
def test_devices_that_are_not_there(
    gpus: Any, there: int, device: Any, asked: int | None, procs: int | None, words: str
) -> None:
    gpus(there)
    with pytest.raises(ValueError, match=words):
        choose_devices(device, asked, procs)


def test_a_machine_without_gpus_is_told_about(gpus: Any) -> None:
    gpus(0)
    assert "no CUDA device found" in choose_devices("auto", None, None).note
    assert "no CUDA device found" not in choose_devices("auto", 0, None).note


# --------------------------------------------------------------------------------------------------
# Run folders


def test_run_folders_have_names_that_logs_can_take(tmp_path: Path) -> None:
    outdir = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(UserError, match="UTF-8"):
        new_run_dir(outdir, "faces")
    assert not outdir.exists()


def test_run_folders_are_numbered_in_turn(tmp_path: Path) -> None:
    outdir = tmp_path / "new" / "runs"
    assert run_folders(outdir) == []
    names = [new_run_dir(outdir, "faces").name for _ in range(3)]
    assert names == ["00000-faces", "00001-faces", "00002-faces"]
    (outdir / "00041-other").mkdir()
    (outdir / "notes-99999").mkdir()
    (outdir / "99999-file").write_text("")
    assert new_run_dir(outdir, "faces").name == "00042-faces"
    assert [path.name for path in run_folders(outdir)] == [*names, "00041-other", "00042-faces"]


def test_two_runs_that_start_at_once_get_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = new_run_dir(tmp_path, "faces")
    monkeypatch.setattr(launch_module, "_next_number", lambda _: 0)
    assert new_run_dir(tmp_path, "faces").name == "00001-faces"
    assert first.name == "00000-faces"


def write(path: Path, images: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, Checkpoint(config=tiny_config(), progress={"images": images}))
    return path


def test_resume_names_a_file_a_folder_or_the_latest_run(tmp_path: Path) -> None:
    old = write(tmp_path / "00000-a" / "network-snapshot-000009.pkl", 9000)
    write(tmp_path / "00002-b" / "network-snapshot-000001.pkl", 1000)
    write(tmp_path / "00002-b" / "network-snapshot-000010.pkl", 10_000)
    (tmp_path / "00003-died-early").mkdir()
    for resume, expected in (
        ("latest", ("00002-b", 10_000)),
        (str(old.parent), ("00000-a", 9000)),
        (str(old), ("00000-a", 9000)),
        (str(tmp_path / "00002-b" / "network-snapshot-000001.pkl"), ("00002-b", 1000)),
    ):
        found = find_checkpoint(resume, tmp_path)
        assert found is not None
        assert (found[0].parent.name, found[1].progress["images"]) == expected


def test_there_is_no_latest_run(tmp_path: Path) -> None:
    (tmp_path / "00000-died-early").mkdir()
    assert find_checkpoint("latest", tmp_path) is None
    assert find_checkpoint("latest", tmp_path / "nowhere") is None


def test_a_damaged_snapshot_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "00000-a" / "network-snapshot-000001.pkl", 1000)
    newest = write(tmp_path / "00000-a" / "network-snapshot-000002.pkl", 2000)
    newest.write_bytes(newest.read_bytes()[:-100])
    found = find_checkpoint(str(newest.parent), tmp_path)
    assert found is not None
    assert found[0] == newest.with_name("network-snapshot-000001.pkl")
    assert found[1].progress["images"] == 1000
    assert str(newest) in capsys.readouterr().err


def test_nothing_to_resume(tmp_path: Path) -> None:
    only = write(tmp_path / "00000-a" / "network-snapshot-000002.pkl", 2000)
    only.write_bytes(only.read_bytes()[:-100])
    (tmp_path / "empty").mkdir()
    for name in ("00000-a", "00000-a/network-snapshot-000002.pkl", "empty", "nowhere"):
        with pytest.raises(UserError, match=str(tmp_path / name)):
            find_checkpoint(str(tmp_path / name), tmp_path)


# --------------------------------------------------------------------------------------------------
# Several processes


def torchrun_variables(monkeypatch: pytest.MonkeyPatch, size: int, local_size: int) -> None:
    """What torchrun sets."""
    values = {
        "RANK": 0,
        "WORLD_SIZE": size,
        "LOCAL_RANK": 0,
        "LOCAL_WORLD_SIZE": local_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 1,
    }
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(("gpus", "procs"), [(0, None), (None, None), (0, 2), (0, 4)])
def test_torchrun_says_how_many_processes_there_are(
    monkeypatch: pytest.MonkeyPatch, gpus: int | None, procs: int | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torchrun_variables(monkeypatch, 4, 2)
    launch = choose_devices("auto", gpus, procs)
    assert (launch.device, launch.processes) == ("cpu", 4)
    assert "4 processes that torchrun started, 2 here" in launch.note


@pytest.mark.parametrize(("gpus", "started"), [(None, 8), (8, 8), (16, 8), (0, 8), (None, 9)])
def test_torchrun_on_gpus(monkeypatch: pytest.MonkeyPatch, gpus: int | None, started: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    torchrun_variables(monkeypatch, 2 * started, started)
    if started > 8:
        with pytest.raises(ValueError, match="9 processes for 8 CUDA devices"):
            choose_devices("auto", gpus, None)
        return
    launch = choose_devices("auto", gpus, None)
    assert (launch.device, launch.processes) == ("cpu" if gpus == 0 else "cuda", 16)


@pytest.mark.parametrize(
    ("device", "gpus", "procs", "named"),
    [
        ("auto", 0, 3, "--procs 3"),
        ("auto", 3, None, "--gpus 3"),
        ("mps", None, None, "--device mps"),
        ("cuda", None, None, "no CUDA device"),
    ],
)
def test_what_contradicts_torchrun_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    device: DeviceName,
    gpus: int | None,
    procs: int | None,
    named: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torchrun_variables(monkeypatch, 4, 2)
    with pytest.raises(ValueError, match=named):
        choose_devices(device, gpus, procs)


def test_a_mistake_in_a_process_is_one_error_of_the_parent(tmp_path: Path) -> None:
    config = tiny_config()
    config.data.path = str(tmp_path / "absent.zip")
    with pytest.raises(UserError, match=r"absent\.zip does not exist"):
        launch_training(Job(config, tmp_path), choose_devices("cpu", None, 2))
    assert os.listdir(tmp_path) == []
