"""Files of a data set or of a source of pictures: a folder or a ZIP, read file by file and never
unpacked. Needs no torch.

Everybody who reads names reads them here, by the same rules. Names of files are relative, with
forward slashes and without "." parts, whatever the archive holds. A name in a list finds its file
even if it writes the ending in capitals or accents in another Unicode form (NFC, NFD).
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import shlex
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dnnlib.archives import is_link, open_member, read_member, safe_name
from dnnlib.console import UserError

LABEL_FILE = "dataset.json"
TRAINING_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# written by `dataset_tool heads --depth`; their files need no label
AUXILIARY_FOLDERS = ("depth", "mask")
MAX_FILE_BYTES = 1 << 30  # a larger file is no picture and no list of cameras
TEXT_SPARE, TEXT_PER_FILE = 16 << 20, 4096  # bytes of a list of cameras: a picture takes about 1000
HIDDEN = ("__MACOSX", "Thumbs.db", "desktop.ini")


class BrokenFile(UserError):
    """A file that cannot be read; of pictures, `ImageDataset` can leave some out."""


class UnfitPicture(BrokenFile):
    """A whole picture of a kind that training does not take; `dataset_tool.py convert` with
    `options` makes it one.
    """

    def __init__(self, message: str, options: str = "") -> None:
        super().__init__(message)
        self.options = options


def convert_command(source: str | os.PathLike[str], options: str = "") -> str:
    """The command line that mends a data set, or makes one of another source of cameras."""
    own, dest = shlex.quote(os.fspath(source)), _other_name(source, "mended")
    return f"python dataset_tool.py convert --source {own} --dest {dest} {options}".strip()


def faces_command(source: str | os.PathLike[str]) -> str:
    """The command line that makes a data set of photos of people."""
    own, dest = shlex.quote(os.fspath(source)), _other_name(source, "portraits")
    return f"python dataset_tool.py faces --source {own} --dest {dest} --resolution 256"


def _other_name(source: str | os.PathLike[str], stem: str) -> str:
    names = (f"{stem}.zip", f"{stem}2.zip")
    return next(name for name in names if not os.fspath(source).endswith(name))


def shown(name: str) -> str:
    """A file name that every terminal can print."""
    return (
        name.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")
    )


@contextlib.contextmanager
def errors_named(where: str, *others: type[Exception]) -> Iterator[None]:
    """What goes wrong while reading or decoding, as a BrokenFile that names the file; errors of
    `others` stay as they are.
    """
    try:
        yield
    except BrokenFile:
        raise
    except UserError as error:
        raise BrokenFile(str(error)) from error
    # zipfile and Pillow let through whatever damaged bytes lead to
    except Exception as error:
        if isinstance(error, others):
            raise
        raise BrokenFile(
            f"{where} cannot be read: {str(error) or type(error).__name__}; copy or make this file"
            " again"
        ) from error


class DataFiles:
    """Files below a folder or in a ZIP. Hidden files and what macOS and Windows add are left out.

    Instances can be sent to other processes, which then open the archive anew; the list of names is
    not sent along.

    Attributes:
        path: the folder or the ZIP. names: sorted names of all files.
    """

    def __init__(self, path: Path) -> None:
        """Open and list.

        Raises:
            UserError: if there is nothing, no folder and no whole ZIP, a member with a harmful
                name, or the same name twice.
        """
        self.path = path
        self._is_folder = path.is_dir()
        self._archive: zipfile.ZipFile | None = None
        self._process = 0
        self._alike: dict[str, list[str]] | None = None
        if not path.exists():
            raise UserError(f"{path} does not exist; check the path")
        if not self._is_folder and not path.is_file():
            raise UserError(f"{path} is a device or a pipe; it must be a ZIP or a folder")
        try:
            listed = self._folder_names() if self._is_folder else self._zip_names()
        except UserError:
            raise
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {error.strerror or error}; check the file and its permissions"
            ) from error
        # damaged bytes can fail in any way; the person sees one line whichever it is
        except Exception as error:
            reason = str(error) or type(error).__name__
            is_picture = path.suffix.lower() in TRAINING_SUFFIXES
            other = "it was cut off or is another kind of file"
            raise UserError(
                f"{path} is neither a folder nor a whole ZIP ({reason}); "
                + ("name the folder of the pictures instead of one" if is_picture else other)
            ) from error
        stored = [(safe_name(name) or name, name) for name in listed]
        stored = [(name, own) for name, own in stored if not _hidden(name)]
        self.names = sorted(name for name, _ in stored)
        self._stored = {name: own for name, own in stored if name != own}
        self._known = frozenset(self.names)
        if len(self._known) < len(self.names):
            twice = next(name for name, count in Counter(self.names).items() if count > 1)
            raise UserError(f"{path} holds {shown(twice)} twice; pack it again")
        if not self.names:
            raise UserError(f"{path} is empty; it must hold pictures")

    def __getstate__(self) -> dict[str, object]:
        own: dict[str, object] = {
            "_archive": None,
            "names": [],
            "_known": frozenset(),
            "_alike": None,
        }
        return {**self.__dict__, **own}

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def _folder_names(self) -> Iterator[str]:
        """Names of the files, each folder once: links may lead back to a folder above."""
        seen = set()
        for parent, folders, files in os.walk(self.path, followlinks=True, onerror=_raise):
            real = os.path.realpath(parent)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
            inside = os.path.relpath(parent, self.path).replace(os.sep, "/")
            prefix = "" if inside == "." else inside + "/"
            yield from (prefix + name for name in files)

    def _zip_names(self) -> list[str]:
        members = [info for info in self._zip().infolist() if not info.is_dir()]
        for info in members:
            if safe_name(info.filename) is None or is_link(info):
                raise UserError(
                    f"{self.path} holds the name {shown(info.filename)!r}, which leads out of the"
                    " archive; pack it again with plain names"
                )
        return [info.filename for info in members]

    def _zip(self) -> zipfile.ZipFile:
        """The archive, opened anew in every process: processes that share an open file share its
        position too.
        """
        if self._archive is None or self._process != os.getpid():
            self._archive, self._process = zipfile.ZipFile(self.path), os.getpid()
        return self._archive

    def _own(self, name: str) -> str:
        """The name that the folder or archive itself has for a file."""
        return self._stored.get(name, name)

    def _plain_file(self, name: str) -> Path:
        path = self.path / self._own(name)
        if path.exists() and not path.is_file():
            raise ValueError("it is a device or a pipe")
        return path

    def open(self, name: str) -> IO[bytes]:
        """A file as a stream, for those who need its beginning only."""
        if self._is_folder:
            return open(self._plain_file(name), "rb")
        return open_member(self._zip(), self._own(name))

    def read(self, name: str, largest: int = MAX_FILE_BYTES) -> bytes:
        """Content of a file.

        Raises:
            BrokenFile: naming the file, if it cannot be read or is far too large.
        """
        with errors_named(self.where(name)):
            if not self._is_folder:
                return read_member(self._zip(), self._own(name), largest)
            path = self._plain_file(name)
            if (size := path.stat().st_size) > largest:
                raise ValueError(
                    f"it unpacks to {size >> 20} MB; that is no picture and no list of cameras:"
                    " leave it out"
                )
            return path.read_bytes()

    def text(self, name: str) -> str:
        """Content of a text file, such as a list of cameras.

        Raises:
            BrokenFile, UserError: naming the file.
        """
        return decode_text(
            self.read(name, TEXT_SPARE + TEXT_PER_FILE * len(self.names)), self.where(name)
        )

    def member(self, name: str) -> zipfile.ZipInfo:
        """What the ZIP's list of members says of a file."""
        return self._zip().getinfo(self._own(name))

    def stamp(self, name: str) -> str:
        """A text that changes when the file does: size and checksum, in a folder size and time."""
        if not self._is_folder:
            info = self.member(name)
            return f"{info.file_size} {info.CRC}"
        try:
            status = (self.path / self._own(name)).stat()
        except OSError:  # a link to nowhere; reading it will say so
            return "-"
        return f"{status.st_size} {status.st_mtime_ns}"

    def where(self, name: str) -> str:
        """The file's place, for messages."""
        return f"{self.path}: {shown(name)}"

    def resolve(self, folder: str, name: str, by: str) -> str:
        """The file that a list in `folder` calls `name`, or its name if there is none; `by` is the
        list's own name.

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
        return self.find(joined) or joined

    def find(self, name: str) -> str | None:
        """The file of this name, or else the only one whose name differs in the Unicode form or in
        capitals of the ending alone.
        """
        if name in self._known:
            return name
        if self._alike is None:
            self._alike = {}
            for own in self.names:
                self._alike.setdefault(_key(own), []).append(own)
        alike = self._alike.get(_key(name), [])
        return alike[0] if len(alike) == 1 else None

    def lists(self, name: str) -> list[str]:
        """All files called `name` in whatever folder, those nearest to the top first."""
        found = [own for own in self.names if _key(own.rpartition("/")[2]) == name]
        return sorted(found, key=lambda own: (own.count("/"), own))


def _key(name: str) -> str:
    """What names of the same file have in common."""
    stem, ending = posixpath.splitext(unicodedata.normalize("NFC", name))
    return stem + ending.lower()


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part in HIDDEN for part in name.split("/"))


def _raise(error: OSError) -> None:
    raise error


def decode_text(content: bytes, where: str) -> str:
    """Text in any of the encodings that JSON may have, with or without a byte order mark.

    Raises:
        UserError: naming `where`.
    """
    try:
        return content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 text ({error.reason} at byte {error.start}); save it again as"
            " UTF-8"
        ) from error


def parse_json(text: str, where: str, form: str = "") -> Any:
    """A JSON document; all its numbers are floats.

    Raises:
        UserError: naming `where` and the `form` that is wanted, if it is none or gives two values
            for one name.
    """
    try:
        return json.loads(text, parse_int=float, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON{form}: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(
            name for name, count in Counter(name for name, _ in pairs).items() if count > 1
        )
        raise ValueError(f"it holds {shown(twice)[:60]!r} twice")
    return found
