"""Files of a source of pictures: a folder or a ZIP, read member by member and never unpacked.

Names are relative, with forward slashes. What an archive may contain to do harm (names that climb
out of it, a few bytes that unpack to gigabytes) is refused in one line; names that are not UTF-8
can be read and are shown with escapes.
"""

from __future__ import annotations

import os
import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from dnnlib.archives import is_link, read_member, safe_name
from dnnlib.console import UserError

MAX_FILE_BYTES = 1 << 30  # a larger member is no picture and no list of cameras
TEXT_SPARE, TEXT_PER_FILE = 16 << 20, 4096  # bytes of a list of cameras: a picture takes about 1000
READ_ERRORS = (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
HIDDEN = ("__MACOSX", "Thumbs.db", "desktop.ini")


def shown(name: str) -> str:
    """A file name that every terminal can print."""
    return (
        name.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")
    )


class SourceFiles:
    """Files below a folder or in a ZIP. Hidden files and what macOS and Windows add are left out.

    Instances can be sent to other processes, which then open the archive anew; the list of names is
    not sent along.

    Attributes:
        path: the folder or the ZIP. names: sorted names of all files. name: short, for messages.
    """

    def __init__(self, path: Path) -> None:
        """Open and list.

        Raises:
            UserError: if there is nothing, no folder and no whole ZIP, or a member with a harmful
                name.
        """
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._is_folder = path.is_dir()
        if not path.exists():
            raise UserError(f"source {path} does not exist; check the path")
        try:
            names = self._folder_names() if self._is_folder else self._zip_names()
        except zipfile.BadZipFile as error:
            raise UserError(
                f"source {path} is neither a folder nor a whole ZIP ({error}); it was cut off or is"
                " another kind"
            ) from error
        except UserError:
            raise
        # damaged bytes can fail in any way; the person sees one line whichever it is
        except Exception as error:
            raise UserError(
                f"source {path} cannot be read: {error or type(error).__name__}"
            ) from error
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
            prefix = (
                ""
                if Path(parent) == self.path
                else os.path.relpath(parent, self.path).replace(os.sep, "/") + "/"
            )
            folders[:] = [folder for folder in folders if not folder.startswith(".")]
            names += [prefix + name for name in files]
        return names

    def _zip_names(self) -> list[str]:
        names = [info.filename for info in self._zip().infolist() if not info.is_dir()]
        for name in names:
            if safe_name(name) is None or is_link(self._zip().getinfo(name)):
                raise UserError(
                    f"{self.path} holds the name {shown(name)!r}, which leads out of the archive;"
                    " pack it again with plain names"
                )
        if len(set(names)) < len(names):
            twice = sorted(names)[
                next(
                    i
                    for i, (a, b) in enumerate(zip(sorted(names), sorted(names)[1:], strict=False))
                    if a == b
                )
            ]
            raise UserError(f"{self.path} holds {shown(twice)} twice; pack it again")
        return names

    def _zip(self) -> zipfile.ZipFile:
        if self._archive is None:
            self._archive = zipfile.ZipFile(self.path)
        return self._archive

    def read(self, name: str, largest: int = MAX_FILE_BYTES) -> bytes:
        """Content of a file.

        Raises:
            UserError: naming the file, if it cannot be read or is far too large.
        """
        try:
            return (
                self._read_file(self.path / name, largest)
                if self._is_folder
                else read_member(self._zip(), name, largest)
            )
        except KeyError as error:
            raise UserError(f"{self.where(name)} does not exist") from error
        except READ_ERRORS as error:
            raise UserError(
                f"{self.where(name)} cannot be read: {error}; copy or make this file again"
            ) from error

    @staticmethod
    def _read_file(path: Path, largest: int) -> bytes:
        if path.exists() and not path.is_file():
            raise ValueError("it is a device or a pipe")
        if path.stat().st_size > largest:
            raise ValueError(
                f"it unpacks to {path.stat().st_size >> 20} MB; that is no picture and no list of"
                " cameras: leave it out"
            )
        return path.read_bytes()

    def text(self, name: str) -> str:
        """Content of a UTF-8 text file.

        Raises:
            UserError: naming the file.
        """
        try:
            return self.read(name, largest=TEXT_SPARE + TEXT_PER_FILE * len(self.names)).decode(
                "utf-8-sig"
            )
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.where(name)} is not UTF-8 text ({error.reason} at byte {error.start}); save"
                " it again as UTF-8"
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
            None
            if safe_name(name) is None and not name.startswith("..")
            else safe_name(posixpath.join(folder, name.replace("\\", "/")))
        )
        if joined is None:
            raise UserError(
                f"{self.where(by)} names {shown(name)!r}, which lies outside of {self.path}; use"
                " names relative to the list"
            )
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
