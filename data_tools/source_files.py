"""Files of a source of pictures: a folder or a ZIP, read member by member and never unpacked.

Names are relative, with forward slashes. What an archive may contain to do harm (names that climb out of it, a few bytes that
unpack to gigabytes) is refused in one line; names that are not UTF-8 can be read and are shown with escapes.
"""

from __future__ import annotations

import os
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dnnlib.console import UserError

MAX_FILE_BYTES = 1 << 30  # a larger member is no picture and no list of cameras
MAX_UNPACK_RATIO = 200  # of members above SMALL_BYTES; deflate's best on zeros is 1032
SMALL_BYTES = 64 << 20
READ_ERRORS = (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
HIDDEN = ("__MACOSX", "Thumbs.db", "desktop.ini")


def shown(name: str) -> str:
    """A file name that every terminal can print."""
    return name.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")


def safe_name(name: str) -> str | None:
    """`name` with forward slashes and without dots that mean folders; None if it is absolute or climbs out of its folder."""
    name = name.replace("\\", "/")
    if name.startswith("/") or "\0" in name:
        return None
    name = posixpath.normpath(name)
    return None if name == ".." or name.startswith("../") or re.match(r"[A-Za-z]:", name) else name


class SourceFiles:
    """Files below a folder or in a ZIP. Hidden files and what macOS and Windows add are left out.

    Instances can be sent to other processes, which then open the archive anew; the list of names is not sent along.

    Attributes:
        path: the folder or the ZIP. names: sorted names of all files. name: short, for messages.
    """

    def __init__(self, path: Path) -> None:
        """Open and list.

        Raises:
            UserError: if there is nothing, no folder and no whole ZIP, or a member with a harmful name.
        """
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._is_folder = path.is_dir()
        if not path.exists():
            raise UserError(f"source {path} does not exist; check the path")
        try:
            names = self._folder_names() if self._is_folder else self._zip_names()
        except zipfile.BadZipFile as error:
            raise UserError(f"source {path} is neither a folder nor a whole ZIP ({error}); it was cut off or is another kind") from error
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"source {path} cannot be read: {error}") from error
        self.names = sorted(name for name in names if not _hidden(name))
        self._known = frozenset(self.names)
        if not self.names:
            raise UserError(f"source {path} is empty; it must hold pictures and their cameras")

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_archive": None, "names": [], "_known": frozenset()}

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def _folder_names(self) -> list[str]:
        names: list[str] = []
        seen = set()
        for parent, folders, files in os.walk(self.path, followlinks=True, onerror=_raise):
            real = os.path.realpath(parent)
            if real in seen:  # a link to a folder above
                folders.clear()
                continue
            seen.add(real)
            prefix = "" if Path(parent) == self.path else os.path.relpath(parent, self.path).replace(os.sep, "/") + "/"
            folders[:] = [folder for folder in folders if not folder.startswith(".")]
            names += [prefix + name for name in files]
        return names

    def _zip_names(self) -> list[str]:
        names = [info.filename for info in self._zip().infolist() if not info.is_dir()]
        for name in names:
            if safe_name(name) is None:
                raise UserError(
                    f"{self.path} holds the name {shown(name)!r}, which leads out of the archive; pack it again with plain names"
                )
        if len(set(names)) < len(names):
            twice = sorted(names)[next(i for i, (a, b) in enumerate(zip(sorted(names), sorted(names)[1:], strict=False)) if a == b)]
            raise UserError(f"{self.path} holds {shown(twice)} twice; pack it again")
        return names

    def _zip(self) -> zipfile.ZipFile:
        if self._archive is None:
            self._archive = zipfile.ZipFile(self.path)
        return self._archive

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            UserError: naming the file, if it cannot be read or is far too large.
        """
        try:
            with self._open(name) as file:
                return file.read()
        except KeyError as error:
            raise UserError(f"{self.where(name)} does not exist") from error
        except READ_ERRORS as error:
            raise UserError(f"{self.where(name)} cannot be read: {error}; copy or make this file again") from error

    def _open(self, name: str) -> IO[bytes]:
        if self._is_folder:
            path = self.path / name
            self._check_size(name, path.stat().st_size, 1)
            return open(path, "rb")
        info = self._zip().getinfo(name)
        self._check_size(name, info.file_size, info.file_size / max(info.compress_size, 1))
        return self._zip().open(info)

    def _check_size(self, name: str, size: int, ratio: float) -> None:
        if size > MAX_FILE_BYTES or (size > SMALL_BYTES and ratio > MAX_UNPACK_RATIO):
            raise UserError(f"{self.where(name)} unpacks to {size >> 20} MB; that is no picture and no list of cameras: leave it out")

    def text(self, name: str) -> str:
        """Content of a UTF-8 text file.

        Raises:
            UserError: naming the file.
        """
        try:
            return self.read(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.where(name)} is not UTF-8 text ({error.reason} at byte {error.start}); save it again as UTF-8"
            ) from error

    def where(self, name: str) -> str:
        """The file's place, for messages."""
        return f"{self.path}: {shown(name)}"

    def resolve(self, folder: str, name: str, by: str) -> str:
        """Name of the file that a list in `folder` calls `name`; `by` is the list's own name.

        Raises:
            UserError: if `name` is absolute or leads out of the source.
        """
        joined = (
            None if safe_name(name) is None and not name.startswith("..") else safe_name(posixpath.join(folder, name.replace("\\", "/")))
        )
        if joined is None:
            raise UserError(f"{self.where(by)} names {shown(name)!r}, which lies outside of {self.path}; use names relative to the list")
        return joined


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part in HIDDEN for part in name.split("/"))


def _raise(error: OSError) -> None:
    raise error


def folders_with(files: SourceFiles, name: str) -> Iterator[str]:
    """Folders ("" for the top) that hold a file called `name`, in order."""
    for file in files.names:
        folder, _, last = file.rpartition("/")
        if last == name:
            yield folder
