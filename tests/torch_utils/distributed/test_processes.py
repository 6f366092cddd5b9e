"""Processes that compute together: what they tell, how they end and how they are stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import pytest
import torch
import torch.distributed as dist

from dnnlib.console import UserError
from tests.tiny import PATIENCE, ROOT
from torch_utils.distributed.collectives import (
    note_progress,
    rank,
    sum_over_processes,
    world_size,
)
from torch_utils.distributed.processes import first_process_decides, run_processes

pytestmark = pytest.mark.waits

HINT = "think again"


def write_sum(device: torch.device, folder: Path) -> None:
    value = sum_over_processes(torch.tensor(rank() + 1.0, device=device))
    (folder / str(rank())).write_text(f"{value:.0f} of {world_size()}")


@pytest.mark.parametrize(("count", "results"), [(1, ["1 of 1"]), (3, ["6 of 3"] * 3)])
def test_processes_form_a_group(count: int, results: list[str], tmp_path: Path) -> None:
    run_processes(count, "cpu", write_sum, tmp_path, hint=HINT)
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == results


def complain(_: torch.device) -> None:
    if rank() == 1:
        raise UserError("the second process does not like its data")
    dist.barrier()


def test_a_mistake_met_in_any_process_is_told() -> None:
    with pytest.raises(UserError, match="the second process does not like"):
        run_processes(2, "cpu", complain, hint=HINT)


def die(_: torch.device) -> None:
    if rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def test_a_killed_process_ends_all_with_a_hint() -> None:
    with pytest.raises(UserError, match=f"SIGKILL; {HINT}"):
        run_processes(2, "cpu", die, hint=HINT)


def leave_a_thread_at_work(_: torch.device) -> None:
    def work() -> None:
        while True:
            torch.ones(100).sum()

    for _count in range(4):
        threading.Thread(target=work, daemon=True).start()


def test_threads_of_libraries_do_not_abort_a_process_that_is_done() -> None:
    for _ in range(3):
        run_processes(2, "cpu", leave_a_thread_at_work, hint=HINT)


def wait(_: torch.device, folder: Path) -> None:
    (folder / str(rank())).touch()
    time.sleep(60)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_all_processes(kind: signal.Signals, tmp_path: Path) -> None:
    def interrupt() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), kind)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_processes(2, "cpu", wait, tmp_path, hint=HINT)
    thread.join()


def decide(_: torch.device, folder: Path) -> None:
    made = first_process_decides(lambda: folder / f"decided by {rank()}")
    (folder / f"process {rank()}").write_text(made.name)


def test_the_first_process_decides(tmp_path: Path) -> None:
    run_processes(2, "cpu", decide, tmp_path, hint=HINT)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("process 0", "process 1"), "decided by 0"
    )
    assert first_process_decides(lambda: 5) == 5


def decide_wrongly(_: torch.device, folder: Path) -> None:
    def wrong() -> None:
        raise UserError("no such data")

    try:
        first_process_decides(wrong)
    except UserError as error:
        (folder / f"process {rank()}").write_text(str(error))
    except click.exceptions.Exit as stop:
        (folder / f"process {rank()}").write_text(f"quietly {stop.exit_code}")


def test_a_wrong_decision_is_told_once(tmp_path: Path) -> None:
    run_processes(2, "cpu", decide_wrongly, tmp_path, hint=HINT)
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == [
        "no such data",
        "quietly 1",
    ]


def test_no_other_program_can_take_the_port_before_the_processes_meet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Reached(Exception):
        pass

    def spawn(*_: object, args: tuple[object, ...], **__: object) -> None:
        text = next(value for value in args if str(value).startswith("127.0.0.1:"))
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", int(str(text).partition(":")[2])))
        raise Reached

    monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)
    with pytest.raises(Reached):
        run_processes(2, "cpu", write_sum, hint=HINT)


def hang(_: torch.device, folder: Path) -> None:
    dist.barrier()
    if rank() == 1:
        (folder / "hangs").touch()
        time.sleep(600)
    sum_over_processes(torch.ones(1))


def test_a_process_that_hangs_is_named_and_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPEN_EG3D_TIMEOUT", "0.3")
    start = time.monotonic()
    with pytest.raises(UserError) as raised:
        run_processes(3, "cpu", hang, tmp_path, hint=HINT)
    assert time.monotonic() - start < 120
    message = str(raised.value)
    assert message.startswith("process 1 has made no progress for 0.3 minutes")
    assert "OPEN_EG3D_TIMEOUT" in message
    assert message.endswith(HINT)
    assert (tmp_path / "hangs").exists()


def work_alone(_: torch.device, folder: Path) -> None:
    dist.barrier()
    if rank() == 1:
        until = time.monotonic() + 15
        while time.monotonic() < until:
            note_progress()
            time.sleep(0.1)
    (folder / str(rank())).write_text(f"{sum_over_processes(torch.ones(1)).item():.0f}")


def test_a_process_that_works_alone_for_long_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPEN_EG3D_TIMEOUT", "0.1")
    run_processes(2, "cpu", work_alone, tmp_path, hint=HINT)
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["2", "2"]


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan"])
def test_a_timeout_that_is_no_number_of_minutes(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("OPEN_EG3D_TIMEOUT", value)
    with pytest.raises(UserError, match=f"OPEN_EG3D_TIMEOUT={value} is no positive number"):
        run_processes(2, "cpu", write_sum, hint=HINT)


TORCHRUN = (
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "--",
)
SCRIPT = """
import sys
import torch
from dnnlib.console import UserError
from torch_utils.distributed.collectives import rank, sum_over_processes
from torch_utils.distributed.processes import run_in_group, run_processes

def work(device):
    if sys.argv[1] == "complain" and rank() == 1:
        raise UserError("the second process does not like its data")
    print(f"sum {sum_over_processes(torch.ones(1)).item():.0f} on {device}", flush=True)

run_in_group("cpu", lambda: run_processes(2, "cpu", work, hint=""))
"""


def run_with_torchrun(tmp_path: Path, kind: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*TORCHRUN, str(tmp_path / "script.py"), kind]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=PATIENCE)


def test_torchrun_forms_the_group(tmp_path: Path) -> None:
    ended = run_with_torchrun(tmp_path, "well")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("sum 2 on cpu") == 2


@pytest.mark.slow
def test_a_mistake_under_torchrun_is_one_line_of_each_process(tmp_path: Path) -> None:
    ended = run_with_torchrun(tmp_path, "complain")
    assert ended.returncode == 1
    said = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert said[0] == "error: the second process does not like its data" or said[0].startswith(
        "error: lost contact with another process"
    )
    assert "error: the second process does not like its data" in said
    assert "UserError" not in ended.stderr
