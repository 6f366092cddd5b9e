"""Processes that compute together: what they tell, how they end and how they are stopped."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dnnlib.console import UserError
from torch_utils.distributed import rank, sum_over_processes, world_size
from torch_utils.processes import run_processes

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
