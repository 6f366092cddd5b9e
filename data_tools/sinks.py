"""Where a finished data set goes: a stored ZIP or a folder that appears under its name only when it
is complete.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from dnnlib.console import UserError
from dnnlib.files import atomic_write, make_dir, temporary_dir
from training.data.dataset import ImageDataset
from training.data.files import LABEL_FILE
from training.data.traits import Traits

IMAGES_PER_FOLDER = 1000


def image_name(index: int, suffix: str = ".png") -> str:
    """Relative name of image number `index`."""
    return f"{index // IMAGES_PER_FOLDER:05d}/img{index:08d}{suffix}"


class Sink(Protocol):
    """Takes files by relative name."""

    def write(self, name: str, data: bytes) -> None:
        """Store `data` under a name with forward slashes."""


class _ZipSink:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive

    def write(self, name: str, data: bytes) -> None:
        # A fixed date, so that the same input gives the same archive.
        self.archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), data)


class _FolderSink:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_labels(
    sink: Sink, names: Sequence[str], labels: np.ndarray, traits: Traits | None = None
) -> None:
    """Write dataset.json for pictures `names` with `labels` (M, 25), and their traits."""
    lines = [json.dumps([name, label.tolist()]) for name, label in zip(names, labels, strict=True)]
    more = f',\n"traits": {traits.as_json()}' if traits and traits.rows else ""
    sink.write(LABEL_FILE, ('{"labels": [\n' + ",\n".join(lines) + f"\n]{more}}}\n").encode())


def copy_with_labels(
    dataset: ImageDataset,
    dest: Path,
    labels: np.ndarray,
    traits: Traits | None,
    *,
    overwrite: bool = False,
) -> None:
    """Write the files of a data set as they are, with other labels (M, 25) and traits.

    Raises:
        UserError: if `dest` exists or cannot be written.
    """
    with open_sink(dest, overwrite=overwrite) as sink:
        for name in dataset.files.names:
            if name != LABEL_FILE:
                sink.write(name, dataset.files.read(name))
        write_labels(sink, dataset.file_names, labels, traits)


def check_dest(dest: Path, overwrite: bool, source: Path | None = None) -> None:
    """Refuse a destination that must not or cannot be written.

    Raises:
        UserError: if it exists and is not empty, or is of the other kind (a name that ends in .zip
            is an archive); if overwriting it would remove the `source`, or a folder that is no data
            set.
    """
    is_zip = dest.suffix.lower() == ".zip"
    if dest.exists() and not dest.is_dir() and not dest.is_file():
        raise UserError(f"{dest} is a device or a pipe; choose another --dest")
    if is_zip and dest.is_dir():
        raise UserError(f"{dest} is a folder; remove it or choose another --dest")
    if not is_zip and dest.is_file():
        raise UserError(f"{dest} is a file; choose a folder or a name that ends in .zip")
    if not dest.exists() or (not is_zip and not any(dest.iterdir())):
        return
    if not overwrite:
        raise UserError(f"{dest} already exists; choose another --dest or pass --overwrite")
    if source is not None and source.exists() and source.resolve().is_relative_to(dest.resolve()):
        place = (
            "is the source itself"
            if dest.samefile(source)
            else "holds the source, which would be removed with it"
        )
        raise UserError(f"--dest {dest} {place}; choose another")
    if not is_zip and not (dest / LABEL_FILE).is_file():
        raise UserError(
            f"{dest} is no data set ({LABEL_FILE} is missing), and --overwrite would remove all in"
            " it; choose another --dest"
        )


@contextlib.contextmanager
def open_sink(dest: Path, *, overwrite: bool = False) -> Iterator[Sink]:
    """A sink for `dest`: a stored ZIP if the name ends in .zip, else a folder. Appears under its
    name when the block ends well.

    Raises:
        UserError: if `dest` exists, or cannot be written (full disk, no permission).
    """
    check_dest(dest, overwrite)
    if dest.suffix.lower() == ".zip":
        with atomic_write(dest) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            yield _ZipSink(archive)
        return
    make_dir(dest.absolute().parent)
    try:
        with temporary_dir(dest.absolute().parent) as scratch:
            fresh = Path(scratch) / "fresh"
            fresh.mkdir()
            yield _FolderSink(fresh)
            with contextlib.suppress(FileNotFoundError):
                dest.rename(Path(scratch) / "old")
            fresh.rename(dest)
    except OSError as error:
        raise UserError(
            f"cannot write {dest}: {error.strerror or error}; free some space or choose another"
            " place"
        ) from error
