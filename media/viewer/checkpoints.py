"""Checkpoints of one folder, by name. No name leads out of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from dnnlib.console import UserError
from training.checkpoints.weights_folder import is_weights_folder
from training.networks.generator import Generator

SUFFIXES = (".pkl", ".pt")
MOST_LISTED = 500
KEPT_MODELS = 2  # a session holds on to the one that it shows


class CheckpointFolder:
    """Names and generators of the checkpoints, files and folders of weights, in a folder and in
    those below it. Safe to use from several threads.

    Args:
        folder: None = nothing is opened.
        open_file: Generator of a file, on the device where it is to render.
    """

    def __init__(self, folder: Path | None, open_file: Callable[[Path], Generator]) -> None:
        self.folder = folder.resolve() if folder is not None else None
        self.open_file = open_file
        self._loaded: OrderedDict[str, Generator] = OrderedDict()
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Paths relative to the folder, newest first; files that links bring in from elsewhere are
        left out.
        """
        if self.folder is None:
            return []
        found = [
            path
            for path in self.folder.rglob("*")
            if self._is_checkpoint(path) and path.resolve().is_relative_to(self.folder)
        ]
        found.sort(key=lambda path: (-path.stat().st_mtime, path.as_posix()))
        return [path.relative_to(self.folder).as_posix() for path in found[:MOST_LISTED]]

    @staticmethod
    def _is_checkpoint(path: Path) -> bool:
        return (path.suffix in SUFFIXES and path.is_file()) or is_weights_folder(path)

    def name_of(self, path: Path) -> str | None:
        """The name under which a file is listed, if it is."""
        if self.folder is None or not path.resolve().is_relative_to(self.folder):
            return None
        return path.resolve().relative_to(self.folder).as_posix()

    def load(self, name: str) -> Generator:
        """Generator of one of the `names`.

        Raises:
            UserError: for any other name, and if the file cannot be read.
        """
        if self.folder is None or name not in self.names():
            raise UserError("there is no such checkpoint in the folder; choose one of the list")
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = self.open_file(self.folder / name)
            self._loaded.move_to_end(name)
            while len(self._loaded) > KEPT_MODELS:
                self._loaded.popitem(last=False)
            return self._loaded[name]
