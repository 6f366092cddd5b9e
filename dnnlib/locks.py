"""Locks that their owner's end releases, however it comes about."""

from __future__ import annotations

import importlib
from typing import Any

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]


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
