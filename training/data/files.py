"""Files of a data set, a ZIP or a folder, and the pictures in them: opening, reading, checking,
decoding. Needs no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from PIL import Image, ImageFile

from dnnlib.archives import is_link, open_member, read_member, safe_name
from dnnlib.console import UserError, brief, progress

T = TypeVar("T")

LABEL_FILE = "dataset.json"
TRAINING_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# written by `dataset_tool heads --depth`; their files need no label
AUXILIARY_FOLDERS = ("depth", "mask")
FORMATS = ("PNG", "JPEG", "WEBP")
RESOLUTIONS = (32, 64, 128, 256, 512, 1024)
LOSSLESS_MODES = ("1", "L", "P", "RGB")  # pictures that become RGB without losing anything
LONG_SCAN = 20_000  # pictures whose check takes long enough for a progress bar
LARGEST_PICTURE = 64 << 20  # bytes of a file; a picture of the largest size takes 3 MB unpacked


class BrokenPicture(UserError):
    """A file that cannot be read; of pictures, `ImageDataset` can leave some out."""


class _Folder:
    """Files below a folder; names use forward slashes and are relative to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stamps(self) -> dict[str, str]:
        """All file names with a text that changes when the file does."""
        files = [Path(parent) / name for parent, names in self._walk() for name in names]
        status = {
            file.relative_to(self.path).as_posix(): file.stat() for file in files if file.is_file()
        }
        return {name: f"{value.st_size} {value.st_mtime_ns}" for name, value in status.items()}

    def _walk(self) -> Iterator[tuple[str, list[str]]]:
        """Folders and the names of their files. Each folder comes once: links may lead back to a
        folder above.
        """
        seen = set()
        for parent, folders, names in os.walk(self.path, followlinks=True):
            real = os.path.realpath(parent)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            yield parent, names

    def open(self, name: str) -> IO[bytes]:
        return open(self.path / name, "rb")

    def read(self, name: str, largest: int) -> bytes:
        """Content of a file of at most `largest` bytes."""
        with self.open(name) as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise ValueError(f"it is larger than {largest >> 20} MB")
        return content


class _Zip:
    """Files of a ZIP, opened anew in every process: processes that share an open file share its
    position too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}

    def archive(self) -> zipfile.ZipFile:
        if self._archive is None or self._process != os.getpid():
            self._archive, self._process = zipfile.ZipFile(self.path), os.getpid()
        return self._archive

    def stamps(self) -> dict[str, str]:
        """All file names with a text that changes when the file does."""
        members = [info for info in self.archive().infolist() if not info.is_dir()]
        for info in members:
            if safe_name(info.filename) is None or is_link(info):
                raise UserError(
                    f"data {self.path}: {brief(info.filename)!r} leads out of the archive; pack it"
                    " again with plain names"
                )
        return {info.filename: f"{info.file_size} {info.CRC}" for info in members}

    def open(self, name: str) -> IO[bytes]:
        return open_member(self.archive(), name)

    def read(self, name: str, largest: int) -> bytes:
        """Content of a member of at most `largest` bytes."""
        return read_member(self.archive(), name, largest)


DataFiles = _Folder | _Zip


def open_files(path: Path) -> tuple[DataFiles, dict[str, str]]:
    """The files of a data set and their stamps; hidden files and what macOS adds to archives left
    out.
    """
    if not path.exists():
        raise UserError(f"data {path} does not exist; check the path")
    if not path.is_dir() and not path.is_file():
        raise UserError(f"data {path} is a device or a pipe; it must be a ZIP or a folder")
    files: DataFiles = _Folder(path) if path.is_dir() else _Zip(path)
    try:
        stamps = files.stamps()
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"cannot read data {path}: {error.strerror or error}; check the file and its"
            " permissions"
        ) from error
    # damaged bytes can fail in any way; the person sees one line whichever it is
    except Exception as error:
        reason = f"{error or type(error).__name__}"
        raise UserError(
            f"data {path} is neither a folder nor a whole ZIP ({reason}); it was cut off or is"
            " another kind of file"
        ) from error
    visible = {
        name: stamp
        for name, stamp in stamps.items()
        if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    }
    if not visible:
        raise UserError(
            f"data {path} is empty; it must hold pictures (PNG, JPEG, WebP) and {LABEL_FILE}"
        )
    return files, visible


def read_file(files: DataFiles, name: str, largest: int = LARGEST_PICTURE) -> bytes:
    """Content of a file of a data set.

    Raises:
        BrokenPicture: if it cannot be read, or has more than `largest` bytes.
    """
    with errors_named(f"{files.path}: {name}"):
        return files.read(name, largest)


def label_entries(content: str | bytes, where: str) -> list[Any]:
    """The entries of dataset.json, not yet checked one by one.

    Raises:
        UserError: that names `where`, if the content is no JSON of that form.
    """
    try:
        entries = json.loads(content, parse_int=float).get("labels")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f'{where} is not JSON of the form {{"labels": [[NAME, [25 numbers]], ...]}}: {error}'
        ) from error
    if isinstance(entries, dict):  # the released tools take this form as well
        entries = [list(entry) for entry in entries.items()]
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{where} has no camera labels; it must list 25 numbers for every picture")
    return entries


@contextlib.contextmanager
def errors_named(where: str) -> Iterator[None]:
    """What goes wrong while reading or decoding, as a UserError that names the file."""
    try:
        yield
    except BrokenPicture:
        raise
    except UserError as error:
        raise BrokenPicture(str(error)) from error
    except Exception as error:  # zipfile and Pillow let through whatever damaged bytes lead to
        raise BrokenPicture(
            f"{where} cannot be read: {error or type(error).__name__}; copy or make this file again"
        ) from error


# --------------------------------------------------------------------------------------------------
# Pictures


def decode_picture(file: IO[bytes], where: str) -> np.ndarray:
    """Pixels (H, W, 3), uint8, of a picture file; grey and palette pictures become RGB.

    Raises:
        UserError: that names `where`, if the file is damaged or of a kind that `ImageDataset`
            refuses.
    """
    with errors_named(where), Image.open(file, formats=FORMATS) as image:
        _check_kind(image, where)
        return np.array(image.convert("RGB"))


def _check_kind(image: ImageFile.ImageFile, where: str) -> None:
    """Refuse what cannot become 8-bit RGB without loss, and sizes no network has."""
    # Pillow shows a 16-bit colour PNG as plain RGB; only the decoder's raw mode tells.
    if image.mode.startswith(("I", "F")) or ";16" in str(image.tile):
        raise UserError(f"{where} has more than 8 bits a channel; save it as 8-bit RGB")
    if image.mode.endswith(("A", "a")) or "transparency" in image.info:
        raise UserError(
            f"{where} has an alpha channel; put it on a plain background and save it as RGB"
        )
    if image.mode not in LOSSLESS_MODES:
        raise UserError(f"{where} has colour mode {image.mode}; save it as RGB")
    size = f"{image.width}x{image.height}"
    if image.width != image.height:
        raise UserError(f"{where} is {size}, not square; crop it")
    if image.width not in RESOLUTIONS:
        raise UserError(
            f"{where} is {size}; the size must be a power of two from 32 to 1024: resize it"
        )


def check_pictures(
    files: DataFiles, names: Sequence[str], note_broken: Callable[[dict[int, str]], None]
) -> int:
    """Resolution that all pictures share; reads headers only (0.03 ms a picture). Unreadable ones
    are handed to `note_broken`.
    """
    first, resolution = "", 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for index, name in enumerate(long_loop(names, len(names) > LONG_SCAN, "Checking pictures")):
            where = f"{files.path}: {name}"
            try:
                width = _header_width(files, name, where)
            except BrokenPicture as error:
                note_broken({index: str(error)})
                continue
            first, resolution = first or name, resolution or width
            if width != resolution:
                sizes = f"{width}x{width} but {first} is {resolution}x{resolution}"
                raise UserError(f"{where} is {sizes}; make all pictures one size")
    return resolution


def _header_width(files: DataFiles, name: str, where: str) -> int:
    with errors_named(where), files.open(name) as file, Image.open(file, formats=FORMATS) as image:
        _check_kind(image, where)
        return image.width


def long_loop(items: Sequence[T], is_long: bool, description: str) -> Iterable[T]:
    """The items, with a progress bar if going through them takes long."""
    return progress(items, description, unit="img") if is_long else items
