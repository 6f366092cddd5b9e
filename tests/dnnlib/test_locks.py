"""Locks of open files, with the system's functions and, pretended, on Windows."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dnnlib import locks
from dnnlib.console import UserError
from training.run.folder import lock_folder


@pytest.fixture(params=["here", "windows"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Without the module fcntl, its neighbour of Windows is asked."""
    held: set[tuple[int, int]] = set()

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert (mode, count) == (7, 1)
        import os

        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) in held:
            raise PermissionError(13, "Permission denied")
        held.add((status.st_dev, status.st_ino))

    if request.param == "windows":
        monkeypatch.setattr(locks, "fcntl", None)
        monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=7))
    return str(request.param)


@pytest.mark.usefixtures("system")
def test_a_file_has_one_owner(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with open(path, "w") as first, open(path) as second:
        assert locks.try_lock(first.fileno())
        assert not locks.try_lock(second.fileno())


@pytest.mark.usefixtures("system")
def test_the_locks_of_builds_and_run_folders(tmp_path: Path) -> None:
    with locks.hold(tmp_path / "lock", "works"):
        pass
    lock_folder(tmp_path, seconds=0)
    with pytest.raises(UserError, match="another process trains in"):
        lock_folder(tmp_path, seconds=0)
