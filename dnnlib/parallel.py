"""Many small jobs on several processes: results in the order of the jobs, a bounded number in
flight, nothing left behind.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from dnnlib.console import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")

IN_FLIGHT_PER_WORKER = 4
JOBS_PER_WORKER = 16  # fewer do not pay for starting a process


def core_count() -> int:
    """Cores this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[Any, Job], Result],
    context: Any,
    jobs: Iterable[Job],
    count: int,
    workers: int = 0,
    jobs_per_worker: int = JOBS_PER_WORKER,
) -> Generator[Result]:
    """`function(context, job)` of each of `count` jobs, in order, by `workers` processes (0 = as
    many as there are cores).

    `function` must be importable and `context` picklable; the context is sent once to each process.
    At most a few jobs per worker are in flight, so memory does not grow with their number. Fewer
    than `jobs_per_worker` run in this process, as does all with one worker.

    Raises:
        UserError: if a worker dies.
    """
    workers = min(workers or core_count(), -(-count // jobs_per_worker))
    if workers <= 1:
        yield from (function(context, job) for job in jobs)
        return
    # spawn: forking a process that runs torch's threads can hang.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_worker, (function, context)
    )
    pending: collections.deque[Future[Result]] = collections.deque()
    try:
        for job in jobs:
            with _interrupts_delayed() if not pending else contextlib.nullcontext():
                pending.append(pool.submit(_run, job))
            if len(pending) >= workers * IN_FLIGHT_PER_WORKER:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "one of several processes died, most likely for lack of memory; try fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_work: tuple[Callable[[Any, Any], Any], Any] | None = None


def _start_worker(function: Callable[[Any, Any], Any], context: Any) -> None:
    global _work
    _work = (function, context)
    # Ctrl-C reaches the whole process group; the parent alone reacts and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A parent that is killed cannot end its workers; they would wait for jobs for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(job: Any) -> Any:
    assert _work is not None
    function, context = _work
    return function(context, job)


@contextlib.contextmanager
def _interrupts_delayed() -> Iterator[None]:
    """Block Ctrl-C: processes started inside are born deaf to it, else one that is still starting
    would print a traceback; this process hears of it at the end.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextlib.contextmanager
def ended_politely() -> Iterator[None]:
    """Inside, SIGTERM and a closed terminal end the work as Ctrl-C does: temporary files are
    removed.
    """
    kinds = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {
        kind: signal.signal(kind, _interrupt)
        for kind in kinds
        if signal.getsignal(kind) is signal.SIG_DFL
    }
    try:
        yield
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
