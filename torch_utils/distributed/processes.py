"""Processes that compute together, started here or by torchrun: joined, told to stop, and left, in
one place.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
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
from torch_utils.distributed.collectives import any_process, is_distributed, rank
from torch_utils.distributed.watch import Watch

T = TypeVar("T")

INTERRUPTED = 130  # exit status, as shells have it
JOIN_SECONDS = 0.5  # between looks at whether to pass a signal on
JOIN_TIMEOUT = timedelta(minutes=10)  # for all processes to appear
BEAT_TIMEOUT = timedelta(seconds=10)
WORK_TIMEOUT = timedelta(hours=12)
LOST_CONTACT = "lost contact with another process"


class StopSignals:
    """Turns SIGINT and SIGTERM into a flag that is looked at after each step."""

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

    def agreed(self, device: torch.device) -> bool:
        """Whether any process was told to stop."""
        return any_process(self.received is not None, device)


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that torchrun started, here and on other machines."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    restarts: int


def place_from_environment() -> Place | None:
    """What torchrun (or another launcher that sets its variables) says about this process; None if
    nobody does.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if any(name not in os.environ for name in names):
        return None
    rank, size, local_rank, local_size = (int(os.environ[name]) for name in names[:4])
    return Place(
        rank, size, local_rank, local_size, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    )


def run_in_group(device: str, work: Callable[[], Any]) -> None:
    """Call `work()`; where torchrun started this process, as a part of its group, and leave with
    the status that `run_cli` gives.

    Args:
        device: cpu or cuda, where each process takes the GPU of its local rank.
    """
    place = place_from_environment()
    if place is None:
        work()
        return
    watch = _join(device, place.local_rank, "env://", place.rank, place.size, _say_and_leave)
    try:
        status = status_of(work)
    except Exception as error:
        status = _tell_failure(error)
    _end_group(watch, status)


def first_process_decides(decide: Callable[[], T]) -> T:
    """What `decide()` returns in process 0, in all processes; if it fails there, the others leave
    without a word.
    """
    if not is_distributed():
        return decide()
    answer: list[Any] = [None, False]
    try:
        if rank() == 0:
            answer = [decide(), True]
    finally:
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
    SIGINT and SIGTERM are passed on to new ones, which may end in order; if one does not, this is a
    KeyboardInterrupt here.

    Args:
        device: cpu, mps or cuda; with several processes on cuda, process i has GPU i.
        work: A function of a module, so that new processes can import it.
        hint: What to do when a process dies, for the message.

    Raises:
        UserError: the first one of any process, or that one died.
        KeyboardInterrupt: as above.
    """
    place = place_from_environment()
    if is_distributed() and place is not None:
        work(_device(device, place.local_rank), *arguments)
        return
    if count == 1:
        work(torch.device(device), *arguments)
        return
    # it tells of every process that it ends
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, StopSignals() as stop:
        errors = Path(folder)
        address = f"tcp://127.0.0.1:{_free_port()}"
        context = torch.multiprocessing.spawn(
            _worker,
            args=(count, device, address, errors, work, arguments),
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
            # Where one process met a mistake of the user or was killed, the others fail too, for
            # lack of an answer from it.
            own = [message for message in messages if not message.startswith(LOST_CONTACT)]
            reason = own[0] if own else f"a process died: {died or messages[:1] or error}; {hint}"
            raise UserError(reason) from error


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
    errors: Path,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    """Entry point of one of several processes; a mistake of the user is handed to the parent as
    text.
    """

    def hand_over(message: str) -> None:
        (errors / f"{process:05d}").write_text(message, encoding="utf-8")
        os._exit(1)  # without waiting for the others, which may wait for this process

    if device != "cuda":
        torch.set_num_threads(max(torch.get_num_threads() // count, 1))
    watch = _join(
        device,
        process,
        address,
        process,
        count,
        lambda reason: hand_over(f"{LOST_CONTACT}: {reason}"),
    )
    try:
        work(_device(device, process), *arguments)
    except UserError as error:
        watch.tell(str(error))
        hand_over(str(error))
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        hand_over(f"{LOST_CONTACT}: {_first_line(error)}")
    _end_group(watch, 0, at_exit=True)


def _join(
    device: str, local_rank: int, address: str, rank: int, size: int, leave: Callable[[str], None]
) -> Watch:
    """Form the process group, and watch over it."""
    own = _device(device, local_rank)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store, rank, size = next(rendezvous(address, rank, size, timeout=JOIN_TIMEOUT))
    store = dist.PrefixStore(f"open_eg3d/{restarts}", store)
    beats = store.clone()
    beats.set_timeout(BEAT_TIMEOUT)
    # Whether somebody is lost is for the watch to say, however long the others may have to wait for
    # one that works on something alone.
    dist.init_process_group(
        "nccl" if own.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=WORK_TIMEOUT,
    )
    return Watch(beats, rank, size, leave)


def _device(kind: str, local_rank: int) -> torch.device:
    return torch.device("cuda", local_rank) if kind == "cuda" else torch.device(kind)


def _tell_failure(error: Exception) -> int:
    """Say why this process fails, in one line if another one was lost; returns the exit status."""
    if _is_loss(error):
        return tell(f"{LOST_CONTACT}: {_first_line(error)}", 1)
    traceback.print_exception(error)
    return 1


def _say_and_leave(reason: str) -> None:
    tell(f"{LOST_CONTACT}: {reason}", 1)
    _leave(1)


def _is_loss(error: Exception) -> bool:
    """Whether an error is that of a connection to another process."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("connection closed", "connection reset", "broken pipe")
    )


def _first_line(error: Exception) -> str:
    """What an error of the libraries says first, without its place in their code."""
    text = str(error).strip().partition("\n")[0].partition("] ")
    return (text[2] or text[0]).partition(". ")[0] or type(error).__name__


def _end_group(watch: Watch, status: int, at_exit: bool = False) -> None:
    """Leave together with the others, or at once where this process fails.

    A thread of the process group that drops its last tensor while the interpreter is being torn
    down aborts the process (seen), so leave before that: all is written and closed.
    """
    if status:
        watch.tell(f"ended with status {status}")
        _leave(status)
    dist.barrier()
    watch.stop()
    dist.destroy_process_group()
    if at_exit:
        atexit.register(_leave, 0)
    else:
        _leave(0)


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
