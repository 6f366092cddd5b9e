"""Jobs on several processes: order, a bound on what is in flight, errors, and no process left
behind.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dnnlib import parallel
from dnnlib.console import UserError
from dnnlib.parallel import IN_FLIGHT_PER_WORKER, ended_politely, ordered_map
from tests.tiny import PATIENCE

pytestmark = pytest.mark.waits

ROOT = Path(__file__).resolve().parents[2]


def slow_first(offset: int, job: int) -> tuple[int, int]:
    """Job and process; early jobs take longer."""
    time.sleep(0.02 if job % 7 == 0 else 0)
    return job + offset, os.getpid()


def dies(_: object, job: int) -> int:
    if job == 5:
        os._exit(1)
    return job


def fails(_: object, job: int) -> int:
    if job == 5:
        raise UserError("job 5 is bad")
    return job


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_jobs(workers: int):
    results = list(ordered_map(slow_first, 100, range(60), 60, workers))
    assert [result for result, _ in results] == list(range(100, 160))
    processes = {process for _, process in results}
    assert (processes == {os.getpid()}) == (workers == 1)


def test_few_jobs_start_no_process():
    assert {process for _, process in ordered_map(slow_first, 0, range(5), 5, 4)} == {os.getpid()}


def test_number_in_flight_is_bounded():
    taken = []

    def jobs() -> Iterator[int]:
        for job in range(200):
            taken.append(job)
            yield job

    results = ordered_map(slow_first, 0, jobs(), 200, 2)
    with contextlib.closing(results):
        for done, _ in enumerate(results):
            assert len(taken) <= done + 2 * IN_FLIGHT_PER_WORKER
            if done == 20:
                break
    assert multiprocessing.active_children() == []


def test_errors_of_a_job_end_all():
    with pytest.raises(UserError, match="job 5 is bad"):
        list(ordered_map(fails, None, range(100), 100, 2))
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_is_one_line():
    with pytest.raises(UserError, match="died"):
        list(ordered_map(dies, None, range(100), 100, 2))


def test_termination_is_an_interrupt_inside_only():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), ended_politely():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path: Path):
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from dnnlib.parallel import ordered_map\n"
        "from tests.dnnlib.test_parallel import slow_first\n"
        "if __name__ == '__main__':\n"
        "    for result in ordered_map(slow_first, 0, iter(int, 1), 1000, 2):\n"
        "        print(result[1], flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    workers = {int(process.stdout.readline()) for _ in range(20)}
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    process.stdout.close()
    assert workers <= {child.pid for child in children}
    _, alive = psutil.wait_procs(children, timeout=PATIENCE)
    assert alive == []


def test_an_interrupt_while_processes_start_is_heard_afterwards() -> None:
    inside = []

    def start() -> None:
        with parallel._interrupts_delayed():
            signal.raise_signal(signal.SIGINT)
            inside.append("went on")

    with pytest.raises(KeyboardInterrupt):
        start()
    assert inside == ["went on"]
