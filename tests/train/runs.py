"""train.py in this process, and what its tests look for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import train
from tests.tiny import TINY_OPTIONS, Ended, call

ADA = ("--aug", "ada", "--p", "0.4", "--set", "augment.kimg=0.1")
RUN_OPTIONS = (*TINY_OPTIONS, *ADA)


def train_here(*arguments: str | Path) -> Ended:
    """The command in this process."""
    return call(train.main, *arguments)


def snapshot_in(run_dir: Path) -> Path:
    return sorted(run_dir.glob("network-snapshot-*.pkl"))[-1]


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    """All files with their sizes and times."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in found
    }


def write_bytes(content: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return write
