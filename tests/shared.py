"""Folders that are made once for all processes of pytest: what several tests look at and none
changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name`, filled by `make` in the process that comes first; the others wait."""
    base = factory.getbasetemp()
    common = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, is_made = common / f"shared-{name}", common / f"shared-{name}.made"
    with _alone(common / f"shared-{name}.lock"):
        if not is_made.exists():
            folder.mkdir()
            make(folder)
            is_made.touch()
    return folder


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
