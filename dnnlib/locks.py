"""Locks that their owner's end releases, however it comes about."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]


PAUSE = 0.1  # seconds between looks whether another process has finished


@contextlib.contextmanager
def hold(path: Path, what_others_do: str) -> Iterator[None]:
    """Hold the lock file `path` alone; who has to wait is told for a process that does what.

    Raises:
        OSError: where it cannot be written, or the file system has no locks.
    """
    with open(path, "w") as file:
        if not try_lock(file.fileno()):
            message = f"Waiting for another process that {what_others_do}"
            print(message, file=sys.stderr, flush=True)
            while not try_lock(file.fileno()):
                time.sleep(PAUSE)
        yield


def try_lock(descriptor: int) -> bool:
    """Whether this process has the open file `descriptor` alone from now on; False while another
    one has it.

    Raises:
        OSError: where the file system has no locks.
    """
    if fcntl is None:
        return _try_lock_on_windows(importlib.import_module("msvcrt"), descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _try_lock_on_windows(msvcrt: Any, descriptor: int) -> bool:
    """The file's first byte stands for all of it."""
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except PermissionError:
        return False
    return True
