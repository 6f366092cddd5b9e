"""The folder of a run: options, log, statistics, TensorBoard events. A full disk costs lines at
worst, never the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dnnlib import locks
from dnnlib.console import UserError
from dnnlib.files import atomic_write
from torch_utils.distributed.collectives import rank
from training.config.settings import Config, to_dict
from training.run.wandb_log import WandbLog

OPTIONS_FILE = "training_options.json"
STATS_FILE = "stats.jsonl"
LOG_FILE = "log.txt"
LOCK_SECONDS = 60.0  # that a process of the same run is given to end


class RunFolder:
    """Files of a run. Only process 0 writes; the others' calls do nothing."""

    def __init__(self, path: Path, config: Config, resumed_kimg: float) -> None:
        """Take the folder for this run, waiting for a process of its past to end.

        Raises:
            UserError: if another process goes on writing there, or nothing can be written.
        """
        self.path, self.config = path, config
        self.active = rank() == 0
        if not self.active:
            return
        self._lock = lock_folder(path)
        remove_leftovers(path)
        with atomic_write(path / OPTIONS_FILE) as file:
            file.write(json.dumps(to_dict(config), indent=2).encode())
        keep_lines_until(path / STATS_FILE, resumed_kimg)
        self._files = {name: LineFile(path / name) for name in (LOG_FILE, STATS_FILE)}
        self._is_warned = False

    def __enter__(self) -> RunFolder:
        self.writer = Curves(self._loggers() if self.active else [])
        self._thread_hook, threading.excepthook = threading.excepthook, leave_disk_errors
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()
        threading.excepthook = self._thread_hook
        if self.active:
            self._flush()
            os.close(self._lock)

    def _loggers(self) -> list[Events | WandbLog]:
        wanted = self.config.snapshot.log.split(",")
        loggers: list[Events | WandbLog] = []
        if "tensorboard" in wanted:
            loggers.append(Events(self.path, self.warn))
        if "wandb" in wanted:
            loggers.append(WandbLog(self.path, self.config, self.warn))
        return loggers

    def log(self, line: str) -> None:
        """Show a line and append it to the log."""
        if self.active:
            tqdm.write(line)
            self._files[LOG_FILE].add(line)
            self._flush()

    def warn(self, problem: str) -> None:
        """Log that something could not be written, once until all has been written again."""
        if self.active and not self._is_warned:
            self._is_warned = True
            self.log(f"warning: {problem}; training goes on and tries again")

    def record(self, kimg: float, values: dict[str, float]) -> None:
        """Append one line of statistics and show it in TensorBoard (step = images)."""
        if not self.active:
            return
        self._files[STATS_FILE].add(json.dumps({"kimg": kimg, **values}))
        is_whole = self._flush()
        for name, value in values.items():
            is_whole &= self.writer.add_scalar(name, value, round(kimg * 1000))
        if self.writer.flush() and is_whole:
            self._is_warned = False

    def _flush(self) -> bool:
        """Write the lines that wait; whether that worked."""
        for file in self._files.values():
            try:
                file.flush()
            except OSError as error:
                self.warn(f"cannot write {file.path}: {error.strerror or error}")
                return False
        return True


class LineFile:
    """Appends whole lines to a file; lines that cannot be written wait for the next time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[str] = []

    def add(self, line: str) -> None:
        """Take a line; `flush` writes it."""
        self._waiting.append(line)

    def flush(self) -> None:
        """Write all lines that wait, or none.

        Raises:
            OSError: if that fails; the file is as it was then.
        """
        if not self._waiting:
            return
        with open(self.path, "ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                content = "".join(line + "\n" for line in self._waiting).encode()
                while content:
                    content = content[file.write(content) :]
            except OSError:
                file.truncate(size)
                raise
        self._waiting.clear()


class Curves:
    """All that shows a run's numbers and pictures, as one."""

    def __init__(self, loggers: Sequence[Events | WandbLog]) -> None:
        self.loggers = loggers

    def add_scalar(self, name: str, value: float, images: int) -> bool:
        """Show a number; whether all have written it."""
        written = [one.add_scalar(name, value, images) for one in self.loggers]
        return all(written)

    def add_image(self, name: str, picture: Any, images: int, dataformats: str = "HWC") -> bool:
        """Show a picture (H, W, 3), uint8; whether all have written it."""
        written = [one.add_image(name, picture, images, dataformats) for one in self.loggers]
        return all(written)

    def flush(self) -> bool:
        """Write what waits; whether that worked."""
        written = [one.flush() for one in self.loggers]
        return all(written)

    def close(self) -> None:
        """End writing."""
        for one in self.loggers:
            one.close()


class Events:
    """TensorBoard's writer, which a full disk ends: then what is to be shown is left out, and a new
    writer is begun later.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        """Write to the folder `path`."""
        self.path, self.warn = path, warn
        self._writer: SummaryWriter | None = None

    def add_scalar(self, name: str, value: float, images: int) -> bool:
        """Show a number; whether it was written."""
        return self._try(lambda writer: writer.add_scalar(name, value, images))

    def add_image(self, name: str, picture: Any, images: int, dataformats: str = "HWC") -> bool:
        """Show a picture (H, W, 3), uint8; whether it was written."""
        return self._try(
            lambda writer: writer.add_image(name, picture, images, dataformats=dataformats)
        )

    def flush(self) -> bool:
        """Write what waits; whether that worked."""
        return self._try(lambda writer: writer.flush())

    def close(self) -> None:
        """End writing."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None

    def _try(self, action: Callable[[SummaryWriter], None]) -> bool:
        try:
            if self._writer is None:
                self._writer = SummaryWriter(str(self.path))
            action(self._writer)
        except OSError as error:
            self.close()
            self.warn(f"cannot write TensorBoard events to {self.path}: {error.strerror or error}")
            return False
        return True


def leave_disk_errors(problem: threading.ExceptHookArgs) -> None:
    """Report what ends a thread, but for disk errors: TensorBoard's writing thread hands those to
    the next call of its writer.
    """
    if not isinstance(problem.exc_value, OSError):
        threading.__excepthook__(problem)


def lock_folder(path: Path, seconds: float = LOCK_SECONDS) -> int:
    """Take the folder for this process until it ends or closes the returned descriptor.

    A process whose parent was killed may still save its state there. The lock ends with its owner,
    however that ends.

    Raises:
        UserError: if another process still has it after `seconds`.
    """
    if os.name == "nt":  # where folders cannot be opened
        descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT)
    else:
        descriptor = os.open(path, os.O_RDONLY)
    end, is_told = time.monotonic() + seconds, False
    while True:
        try:
            if locks.try_lock(descriptor):
                return descriptor
        except OSError:  # a file system without locks
            return descriptor
        if time.monotonic() > end:
            os.close(descriptor)
            raise UserError(f"another process trains in {path}; end it, or wait for it")
        if not is_told:
            tqdm.write(f"Waiting for another process that still writes to {path}")
        is_told = True
        time.sleep(0.1)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of a process that was killed while it wrote."""
    for leftover in path.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def keep_lines_until(path: Path, kimg: float) -> None:
    """Drop statistics of steps after `kimg`, which a resumed run takes again."""
    if not path.exists():
        return
    lines = [
        line for line in path.read_text(encoding="utf-8").splitlines() if _line_kimg(line) <= kimg
    ]
    with atomic_write(path) as file:
        file.write("".join(line + "\n" for line in lines).encode())


def _line_kimg(line: str) -> float:
    try:
        return float(json.loads(line)["kimg"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
