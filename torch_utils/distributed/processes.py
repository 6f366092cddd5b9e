"""Processes that compute together, started here or by torchrun: how they form a group, stop and
end.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.distributed.rendezvous import rendezvous

from dnnlib.console import UserError, status_of, tell
from torch_utils.distributed.collectives import (
    any_process,
    is_distributed,
    note_collective,
    rank,
)
from torch_utils.distributed.watchdog import NO_PROGRESS, PATIENCE_MINUTES, Pace, Watchdog

T = TypeVar("T")

INTERRUPTED = 130  # exit status, as shells have it
JOIN_SECONDS = 0.5  # between checks whether to pass a signal on
JOIN_TIMEOUT = timedelta(minutes=10)  # for all processes to appear
BEAT_TIMEOUT = timedelta(seconds=10)
# Of a collective operation: `Watchdog` ends a group that hangs long before, but waits for a process
# that works on something alone.
COLLECTIVE_TIMEOUT = timedelta(hours=12)
PATIENCE_VARIABLE = "OPEN_EG3D_TIMEOUT"
BACKENDS = "cpu:gloo,cuda:nccl"  # numbers on the host are exchanged without the GPUs
HOST = "127.0.0.1"
LOST_CONTACT = "lost contact with another process"


class StopSignals:
    """Turns SIGINT and SIGTERM into a flag that is checked after each step."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.received = signal.Signals(number).name

    def agreed(self) -> bool:
        """Whether any process was told to stop."""
        return any_process(self.received is not None)


@dataclass(frozen=True)
class TorchrunEnv:
    """Which process this is of those that torchrun started, here and on other machines."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    restarts: int


def torchrun_env() -> TorchrunEnv | None:
    """Read the variables that torchrun (or a launcher like it) sets; None where there are none."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if any(name not in os.environ for name in names):
        return None
    rank, size, local_rank, local_size = (int(os.environ[name]) for name in names[:4])
    return TorchrunEnv(
        rank, size, local_rank, local_size, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    )


def run_in_group(device: str, work: Callable[[], Any]) -> None:
    """Call `work()`. Where torchrun started this process, join its group first, and end with the
    exit status that `run_cli` gives.

    Args:
        device: cpu or cuda, where each process takes the GPU of its local rank.
    """
    env = torchrun_env()
    if env is None:
        work()
        return
    pace = _pace()
    _use_device(device, env.local_rank)
    store, _, _ = next(rendezvous("env://", env.rank, env.size, timeout=JOIN_TIMEOUT))
    watchdog = _join(store, device, env.rank, env.size, pace, _say_and_leave)
    try:
        status = status_of(work)
    except Exception as error:
        status = _tell_failure(error)
    _end_group(watchdog, status)


def first_process_decides(decide: Callable[[], T]) -> T:
    """Return in all processes what `decide()` returns in process 0; if it fails there, the others
    exit without a message.
    """
    if not is_distributed():
        return decide()
    answer: list[Any] = [None, False]
    try:
        if rank() == 0:
            answer = [decide(), True]
    finally:
        note_collective()
        dist.broadcast_object_list(answer, src=0)
    if not answer[1]:
        raise click.exceptions.Exit(1)
    return answer[0]


def run_processes(
    count: int, device: str, work: Callable[..., None], *arguments: Any, hint: str
) -> None:
    """Call `work(device, *arguments)` in this process, or in `count` new ones that form a process
    group.

    In a process that has a group already (`run_in_group`), it is called there, as in the others.
    SIGINT and SIGTERM are passed on to new processes, which may stop in order; if one does not, a
    KeyboardInterrupt is raised here. A group in which no process makes progress for an hour, or for
    $OPEN_EG3D_TIMEOUT minutes, is ended.

    Args:
        device: cpu, mps or cuda; with several processes on cuda, process i has GPU i.
        work: A function of a module, so that new processes can import it.
        hint: What to do when a process dies, for the message.

    Raises:
        UserError: the first one of any process, or that one died or hung.
        KeyboardInterrupt: as above.
    """
    env = torchrun_env()
    if is_distributed() and env is not None:
        work(_device(device, env.local_rank), *arguments)
        return
    if count == 1:
        work(torch.device(device), *arguments)
        return
    pace = _pace()
    # PyTorch logs every process that it ends
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, StopSignals() as stop:
        errors = Path(folder)
        # The system chooses a free port, which the store then occupies.
        store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
        context = torch.multiprocessing.spawn(
            _worker,
            args=(count, device, f"{HOST}:{store.port}", pace, errors, work, arguments),
            nprocs=count,
            join=False,
        )
        try:
            _run_to_end(stop, context)
        except (
            torch.multiprocessing.ProcessExitedException,
            torch.multiprocessing.ProcessRaisedException,
        ) as error:
            if stop.received:
                raise KeyboardInterrupt from error
            messages = [path.read_text(encoding="utf-8") for path in sorted(errors.iterdir())]
            died = _killed(context)
            if (
                not messages
                and not died
                and isinstance(error, torch.multiprocessing.ProcessRaisedException)
            ):
                raise
            died = died or (messages or [str(error)])[0]
            raise UserError(_reason(messages, died, hint)) from error


def _reason(messages: list[str], died: str, hint: str) -> str:
    """The message to show. Where one process met a mistake of the user or was killed, the others
    fail too, for lack of an answer from it.
    """
    own = [message for message in messages if not message.startswith(LOST_CONTACT)]
    if own:
        return f"{own[0]}; {hint}" if NO_PROGRESS in own[0] else own[0]
    return f"a process died: {died}; {hint}"


def _pace() -> Pace:
    """How long a group may make no progress: $OPEN_EG3D_TIMEOUT minutes, an hour by default."""
    text = os.environ.get(PATIENCE_VARIABLE) or str(PATIENCE_MINUTES)
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < math.inf:
        raise UserError(
            f"{PATIENCE_VARIABLE}={text} is no positive number of minutes; leave it unset for"
            f" {PATIENCE_MINUTES:g}"
        )
    return Pace(patience=minutes)


def _run_to_end(stop: StopSignals, context: Any) -> None:
    is_told = False
    while not context.join(timeout=JOIN_SECONDS):
        if stop.received and not is_told:
            is_told = True
            for process in context.pids():
                os.kill(process, signal.SIGTERM)


def _killed(context: Any) -> str:
    """Which process a signal ended, other than those that end the rest."""
    for index, process in enumerate(context.processes):
        if (
            process.exitcode is not None
            and process.exitcode < 0
            and process.exitcode != -signal.SIGTERM
        ):
            return (
                f"process {index} terminated with signal {signal.Signals(-process.exitcode).name}"
            )
    return ""


def _worker(
    process: int,
    count: int,
    device: str,
    address: str,
    pace: Pace,
    errors: Path,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    """Entry point of one of several processes; its errors of the user go to the parent as text."""

    def hand_over(message: str) -> None:
        (errors / f"{process:05d}").write_text(message, encoding="utf-8")
        os._exit(1)  # without waiting for the others, which may wait for this process

    if device != "cuda":
        torch.set_num_threads(max(torch.get_num_threads() // count, 1))
    _use_device(device, process)
    host, _, port = address.partition(":")
    store = dist.TCPStore(host, int(port), timeout=JOIN_TIMEOUT)
    watchdog = _join(store, device, process, count, pace, lambda reason: hand_over(_loss(reason)))
    try:
        work(_device(device, process), *arguments)
    except UserError as error:
        watchdog.tell(str(error))
        hand_over(str(error))
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        hand_over(f"{LOST_CONTACT}: {_first_line(error)}")
    _end_group(watchdog, 0, at_exit=True)


def _join(
    store: dist.Store, device: str, rank: int, size: int, pace: Pace, leave: Callable[[str], None]
) -> Watchdog:
    """Form the process group and start its watchdog."""
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"open_eg3d/{restarts}", store)
    beats = store.clone()
    beats.set_timeout(BEAT_TIMEOUT)
    dist.init_process_group(
        BACKENDS if device == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    return Watchdog(beats, rank, size, leave, pace)


def _use_device(kind: str, local_rank: int) -> None:
    """Make the GPU of `local_rank` the current one, where GPUs compute."""
    if kind == "cuda":
        torch.cuda.set_device(_device(kind, local_rank))


def _device(kind: str, local_rank: int) -> torch.device:
    return torch.device("cuda", local_rank) if kind == "cuda" else torch.device(kind)


def _tell_failure(error: Exception) -> int:
    """Print why this process fails, in one line if it lost another one; returns the exit status."""
    if _is_loss(error):
        return tell(f"{LOST_CONTACT}: {_first_line(error)}", 1)
    traceback.print_exception(error)
    return 1


def _say_and_leave(reason: str) -> None:
    tell(_loss(reason), 1)
    _leave(1)


def _loss(reason: str) -> str:
    """The message for a reason to end that `Watchdog` gives."""
    return reason if NO_PROGRESS in reason else f"{LOST_CONTACT}: {reason}"


def _is_loss(error: Exception) -> bool:
    """Whether an error is that of a connection to another process."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("connection closed", "connection reset", "broken pipe")
    )


def _first_line(error: Exception) -> str:
    """The first sentence of a library's error, without the place in its code."""
    text = str(error).strip().partition("\n")[0].partition("] ")
    return (text[2] or text[0]).partition(". ")[0] or type(error).__name__


def _end_group(watchdog: Watchdog, status: int, at_exit: bool = False) -> None:
    """Leave together with the others, or at once where this process fails.

    A thread of the process group that drops its last tensor while the interpreter is being torn
    down aborts the process (seen), so leave before that: all is written and closed.
    """
    if status:
        watchdog.tell(f"ended with status {status}")
        _leave(status)
    note_collective()
    dist.barrier()
    watchdog.stop()
    dist.destroy_process_group()
    if at_exit:
        atexit.register(_leave, 0)
    else:
        _leave(0)


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
