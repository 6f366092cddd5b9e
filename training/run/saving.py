"""Checkpoints in the course of a run: written in the background, the old ones thinned out, tried
again where the disk is full.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnnlib.console import UserError
from training.checkpoints.checkpoint import Checkpoint, save_checkpoint
from training.config.settings import SnapshotConfig

SNAPSHOT_PATTERN = "network-snapshot-*.pkl"
# what a snapshot of the same name replaced, should that turn out to be damaged
OLDER_SUFFIX = ".older"


def snapshot_name(images: int) -> str:
    """File name of the checkpoint after `images` images."""
    return f"network-snapshot-{images // 1000:06d}.pkl"


def snapshot_kimg(name: str | os.PathLike[str]) -> int | None:
    """Thousands of images that the name of a snapshot (path or address) tells; None for others."""
    match = re.fullmatch(r"network-snapshot-(\d+)", Path(name).stem)
    return int(match[1]) if match else None


def older_of(path: Path) -> Path:
    """Where the snapshot is kept that the one at `path` replaced, if it did."""
    return path.with_suffix(OLDER_SUFFIX)


class SnapshotWriter:
    """Writes checkpoints one after the other in a thread, from copies, so that training need not
    wait.

    Attributes:
        is_behind: the last checkpoint could not be written; a new one is due.
    """

    def __init__(self, keep: SnapshotConfig, log: Callable[[str], None]) -> None:
        self.keep, self.log = keep, log
        self.is_behind = False
        self._thread: threading.Thread | None = None
        self._path = Path()
        self._problem: UserError | None = None

    def submit(self, path: Path, checkpoint: Checkpoint) -> None:
        """Copy `checkpoint` and begin to write it to `path`; waits for the one before."""
        self.wait()
        content = copy_tensors(checkpoint)
        self._path, self._problem = path, None
        self._thread = threading.Thread(target=self._write, args=(path, content), name="checkpoint")
        self._thread.start()

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is being written at this moment."""
        return self._thread is not None and self._thread.is_alive()

    def poll(self) -> None:
        """Tell of a checkpoint that has been written meanwhile, or could not be."""
        if not self.is_writing:
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint has been written, or could not be."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        self.is_behind = self._problem is not None
        self.log(
            f"warning: {self._problem}; training goes on and tries again"
            if self._problem
            else f"Saved {self._path}"
        )

    def finish(self) -> None:
        """Wait for the last checkpoint of a run.

        Raises:
            UserError: if it could not be written.
        """
        self.wait()
        if self.is_behind and self._problem is not None:
            raise self._problem

    def _write(self, path: Path, content: Checkpoint) -> None:
        try:
            with keeping_older(path):
                save_checkpoint(path, content)
            thin_out(path.parent, self.keep)
        except UserError as error:
            self._problem = error
        except Exception as error:  # a thread's errors reach nobody else
            self._problem = UserError(f"cannot write {path}: {error}")


def copy_tensors(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` with copies of its tensors, on the CPU, that training does not change any
    more.
    """
    return Checkpoint(
        **{
            item.name: _copied(getattr(checkpoint, item.name))
            for item in dataclasses.fields(checkpoint)
        }
    )


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item) for item in value)
    return copy.deepcopy(value)


@contextlib.contextmanager
def keeping_older(path: Path) -> Iterator[None]:
    """Keep what is at `path` under another name while it is replaced, and after: names tell
    thousands of images, short runs less.
    """
    older = older_of(path)
    if path.exists():
        # a file system without links; then the file is replaced and that is all
        with contextlib.suppress(OSError):
            older.unlink(missing_ok=True)
            os.link(path, older)
    yield


def thin_out(folder: Path, keep: SnapshotConfig) -> None:
    """Remove old snapshots: the last `keep_last` stay (0 = all), and the first one of every
    `keep_kimg` thousand images.
    """
    snapshots = sorted(folder.glob(SNAPSHOT_PATTERN))
    for older in folder.glob(f"*{OLDER_SUFFIX}"):
        if snapshots and older.stem != snapshots[-1].stem:
            older.unlink(missing_ok=True)
    if keep.keep_last == 0:
        return
    milestones = _milestones(snapshots, keep.keep_kimg)
    for path in snapshots[: -keep.keep_last]:
        if path not in milestones:
            path.unlink(missing_ok=True)


def _milestones(snapshots: list[Path], kimg: float) -> set[Path]:
    """The first of `snapshots`, in order, at or after each multiple of `kimg`; none with 0."""
    first: dict[int, Path] = {}
    for path in snapshots if kimg > 0 else ():
        first.setdefault(int((snapshot_kimg(path) or 0) // kimg), path)
    return {path for number, path in first.items() if number > 0}


def is_finite(state: dict[str, Any]) -> bool:
    """Whether the networks in `state` hold finite numbers only: others are not worth keeping."""
    tensors = [
        value
        for name in ("G", "D", "G_ema")
        for value in state[name].values()
        if value.is_floating_point()
    ]
    return all(bool(norm.isfinite()) for norm in torch._foreach_norm(tensors, float("inf")))
