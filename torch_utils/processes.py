"""Processes of one machine that compute together: started, told to stop, and left, in one place."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from dnnlib.console import UserError
from torch_utils.distributed import is_distributed, sum_over_processes

INTERRUPTED = 130  # exit status, as shells have it
JOIN_SECONDS = 0.5  # between looks at whether to pass a signal on


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
        if not is_distributed():
            return self.received is not None
        return bool(sum_over_processes(torch.tensor(float(self.received is not None), device=device)) > 0)


def run_processes(count: int, device: str, work: Callable[..., None], *arguments: Any, hint: str) -> None:
    """Call `work(device, *arguments)` in this process, or in `count` new ones that form a process group.

    SIGINT and SIGTERM are passed on to the new ones, which may end in order; if one does not, this is a KeyboardInterrupt here.

    Args:
        device: cpu, mps or cuda; with several processes on cuda, process i has GPU i.
        work: A function of a module, so that new processes can import it.
        hint: What to do when a process dies, for the message.

    Raises:
        UserError: the first one of any process, or that one died.
        KeyboardInterrupt: as above.
    """
    if count == 1:
        work(torch.device(device), *arguments)
        return
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it tells of every process that it ends
    with tempfile.TemporaryDirectory() as folder, StopSignals() as stop:
        errors = Path(folder)
        address = f"tcp://127.0.0.1:{_free_port()}"
        try:
            _run_to_end(stop, count, (count, device, address, errors, work, arguments))
        except (torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException) as error:
            if stop.received:
                raise KeyboardInterrupt from error
            # Where one process met a mistake of the user, the others fail too, for lack of an answer from it.
            messages = [path.read_text(encoding="utf-8") for path in sorted(errors.iterdir())]
            if not messages and isinstance(error, torch.multiprocessing.ProcessRaisedException):
                raise
            raise UserError(messages[0] if messages else f"a process died: {error}; {hint}") from error


def _run_to_end(stop: StopSignals, count: int, arguments: tuple[Any, ...]) -> None:
    context = torch.multiprocessing.spawn(_worker, args=arguments, nprocs=count, join=False)
    is_told = False
    while not context.join(timeout=JOIN_SECONDS):
        if stop.received and not is_told:
            is_told = True
            for process in context.pids():
                os.kill(process, signal.SIGTERM)


def _worker(
    process: int, count: int, device: str, address: str, errors: Path, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    """Entry point of one of several processes; a mistake of the user is handed to the parent as text."""
    own = torch.device("cuda", process) if device == "cuda" else torch.device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    else:
        torch.set_num_threads(max(torch.get_num_threads() // count, 1))
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo", init_method=address, rank=process, world_size=count)
    try:
        work(own, *arguments)
    except UserError as error:
        (errors / f"{process:05d}").write_text(str(error), encoding="utf-8")
        os._exit(1)  # without waiting for the others, which may wait for this process
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    dist.barrier()
    dist.destroy_process_group()
    # All is written and closed. A thread of the process group that drops its last tensor while the interpreter is being torn down
    # aborts the process (seen), so leave before that.
    atexit.register(_leave)


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
