"""Checkpoints in the course of a run: written in the background, the old ones thinned out, tried
again where the disk is full.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnnlib.console import UserError
from training.checkpoints.checkpoint import Checkpoint, save_checkpoint
from training.config.settings import SnapshotConfig

SNAPSHOT_PATTERN = "network-snapshot-*.pkl"


def kimg_name(images: int) -> str:
    """Thousands of images in the names of files: 000200, or 000200.032 if they are not whole."""
    kimg, rest = divmod(images, 1000)
    return f"{kimg:06d}.{rest:03d}" if rest else f"{kimg:06d}"


def snapshot_name(images: int) -> str:
    """File name of the checkpoint after `images` images."""
    return f"network-snapshot-{kimg_name(images)}.pkl"


def snapshot_kimg(name: str | os.PathLike[str]) -> float | None:
    """Thousands of images that the name of a snapshot (path or address) tells; None for others."""
    match = re.fullmatch(r"network-snapshot-(\d+(?:\.\d+)?)", Path(name).stem)
    return float(match[1]) if match else None


def snapshots_in(folder: Path) -> list[Path]:
    """Snapshots of a run, oldest first."""
    return sorted(folder.glob(SNAPSHOT_PATTERN), key=lambda path: path.stem)


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


def thin_out(folder: Path, keep: SnapshotConfig) -> None:
    """Remove old snapshots: the last `keep_last` stay (0 = all), and the first one of every
    `keep_kimg` thousand images.
    """
    snapshots = snapshots_in(folder)
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
