"""Data sets of several ZIPs (shards), for sets too large to be kept in memory name by name.

Each shard is a data set of its own, with its dataset.json. Of each an index is made once and kept
in the cache: where its pictures lie, their sizes, checksums and labels. Then neither opening nor a
process that reads needs the list of all files; reading holds the indices of `WINDOW` shards or so.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, overload

import numpy as np

from dnnlib import locks
from dnnlib.archives import read_member_at
from dnnlib.console import UserError, progress
from dnnlib.files import atomic_write, cache_dir, local_file, make_dir
from dnnlib.parallel import ordered_map
from training.data.dataset import PLAIN_BACKGROUND, Colour, ImageDataset
from training.data.files import LABEL_FILE, TRAINING_SUFFIXES, DataFiles, errors_named, shown
from training.data.labels import read_labels
from training.data.order import WINDOW
from training.data.pictures import LARGEST_PICTURE

SEPARATOR = "|"  # between names of shards
INDEX_VERSION = 1
SHARDS_PER_PROCESS = 4  # fewer do not pay for starting one
COLUMNS = (
    ("offset", "<i8"),
    ("packed", "<i8"),
    ("size", "<i8"),
    ("crc", "<u4"),
    ("method", "<u2"),
    ("width", "<u2"),  # of the shard's first picture
    ("label", "<f4", (25,)),
)


def open_images(
    path: str | os.PathLike[str],
    mirror: bool = False,
    check: bool = True,
    max_broken: int = 0,
    needs_labels: bool = True,
    background: Colour | None = None,
) -> ImageDataset:
    """The data set at `path`, of one ZIP or folder or of shards; arguments and errors are those of
    `ImageDataset`.
    """
    if shard_paths(path):
        return ShardedDataset(path, mirror, max_broken, needs_labels, background)
    return ImageDataset(path, mirror, check, max_broken, needs_labels, background)


def shard_paths(path: str | os.PathLike[str]) -> list[Path]:
    """The ZIPs that `path` stands for: names with | between, a pattern with *, or a folder that
    holds ZIPs in the place of pictures; empty for a data set in one piece.

    Raises:
        UserError: if no file fits a pattern, or a name is empty.
    """
    text = os.fspath(path)
    if os.path.isfile(text):
        return []
    if os.path.isdir(text):
        names = [entry.name for entry in os.scandir(text) if not entry.name.startswith(".")]
        is_set = any(name.lower().endswith((*TRAINING_SUFFIXES, LABEL_FILE)) for name in names)
        zips = [name for name in sorted(names) if name.lower().endswith(".zip")]
        return [] if is_set else [Path(text, name) for name in zips]
    if SEPARATOR in text:
        return [local_file(name) for name in text.split(SEPARATOR)]
    if not re.search(r"[*?]", text) or "://" in text:
        return []
    found = sorted(map(Path, glob.glob(text)))
    if not found:
        raise UserError(f"no file fits {text}; check the path and the pattern")
    return found


def absolute_data(path: str) -> str:
    """`path` of a data set with whole paths, wherever the program is run."""
    return SEPARATOR.join(str(local_file(name).resolve()) for name in path.split(SEPARATOR))


def data_name(path: str) -> str:
    """A short name for run folders."""
    shards = shard_paths(path)
    named = shards[0] if shards and not os.path.isdir(path) else Path(path).resolve()
    name = named.name if named.is_dir() else named.stem
    return re.sub("[\ud800-\udfff]", "_", name)  # bytes that are no UTF-8


# --------------------------------------------------------------------------------------------------
# Indices


def read_index(shard: Path, index: Path) -> np.ndarray:
    """Records (M,) of the pictures of a shard by `COLUMNS` and "name", on disk; made again if the
    cache has lost them.
    """
    if not index.exists():
        _make_index(0, (shard, index))
    return np.load(index, mmap_mode="r")


def index_path(shard: Path) -> Path:
    """Where the index of a shard is kept, as long as the shard is not changed.

    Raises:
        UserError: if there is no such file.
    """
    try:
        status = shard.stat()
    except OSError as error:
        raise UserError(f"cannot read {shard}: {error.strerror or error}; check the path") from None
    known = f"{shard.resolve()} {status.st_size} {status.st_mtime_ns} {INDEX_VERSION}"
    digest = hashlib.sha256(known.encode(errors="surrogatepass")).hexdigest()
    return cache_dir() / "shards" / f"{digest[:32]}.npy"


def _make_index(max_broken: int, shard_and_index: tuple[Path, Path]) -> None:
    shard, path = shard_and_index
    if shard.is_dir():
        raise UserError(f"{shard} is a folder; each part of a data set must be a ZIP: pack it")
    # whether alpha is wanted shows when pictures are decoded: an index serves either way
    options: Any = {"check": False, "needs_labels": False, "background": PLAIN_BACKGROUND}
    data = ImageDataset(shard, max_broken=max_broken, **options)
    names = [name.encode(errors="surrogatepass") for name in data.file_names]
    columns = [*COLUMNS, ("name", f"S{max(map(len, names))}")]
    index = np.zeros(len(names), dtype=columns)
    members = [data.files.member(name) for name in data.file_names]
    index["name"], index["label"], index["width"] = names, data.labels, data.resolution
    for column, values in (
        ("offset", [info.header_offset for info in members]),
        ("packed", [info.compress_size for info in members]),
        ("size", [info.file_size for info in members]),
        ("crc", [info.CRC for info in members]),
        ("method", [info.compress_type for info in members]),
    ):
        index[column] = values
    with atomic_write(path) as file:
        np.save(file, index)


def _make_indices(shards: list[Path], max_broken: int) -> list[Path]:
    """The files of all indices. Those that are missing are made, in as many processes as there are
    cores. Of several processes that open the same data, one makes them and the others wait for it.
    """
    indices = [index_path(shard) for shard in shards]
    if all(index.exists() for index in indices):
        return indices
    with _index_lock():
        missing = [pair for pair in zip(shards, indices, strict=True) if not pair[1].exists()]
        made = ordered_map(
            _make_index, max_broken, missing, len(missing), jobs_per_worker=SHARDS_PER_PROCESS
        )
        for _ in progress(made, "Indexing shards", total=len(missing), unit="ZIP"):
            pass
    return indices


@contextlib.contextmanager
def _index_lock() -> Iterator[None]:
    folder = make_dir(cache_dir() / "shards")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.hold(folder / "lock", "indexes shards"))
        except OSError as error:
            raise UserError(
                f"cannot lock {folder}: {error.strerror or error}; set OPEN_EG3D_CACHE to a"
                " writable folder"
            ) from error
        yield


@functools.lru_cache(maxsize=2 * WINDOW)
def _open_shard(shard: Path, index: Path, _: int) -> tuple[IO[bytes], np.ndarray]:
    """A shard and its index, of one process: those that share an open file share its position.

    Raises:
        UserError: if the shard is not there any more, or not the one that `index` is of.
    """
    if index_path(shard) != index:
        raise UserError(f"{shard} has changed since it was opened; do not change data in use")
    return open(shard, "rb"), read_index(shard, index)


# --------------------------------------------------------------------------------------------------
# The data set


class _Names(Sequence[str]):
    """Names of all pictures, read from the indices when they are asked for."""

    def __init__(self, shards: list[Path], indices: list[Path], firsts: np.ndarray) -> None:
        self._shards, self._indices, self._firsts = shards, indices, firsts

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __iter__(self) -> Iterator[str]:
        for shard, index in zip(self._shards, self._indices, strict=True):
            for name in read_index(shard, index)["name"]:
                yield f"{shard.stem}/{name.decode(errors='surrogatepass')}"

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        shard, kept = self._shards[number], self._indices[number]
        name = _open_shard(shard, kept, os.getpid())[1]["name"][index - self._firsts[number]]
        return f"{shard.stem}/{name.decode(errors='surrogatepass')}"


class ShardedDataset(ImageDataset):
    """A data set of several ZIPs, in their order and in each in the order of the names.

    Of each shard the first picture's kind and size are checked when it is indexed, all others when
    they are decoded. `files` are those of the first shard; depth maps and traits are not read.
    """

    other_size_advice = "make all pictures one size (`dataset_tool.py check` finds them)"

    def __init__(
        self,
        path: str | os.PathLike[str],
        mirror: bool = False,
        max_broken: int = 0,
        needs_labels: bool = True,
        background: Colour | None = None,
    ) -> None:
        """Open, and index what has no index yet.

        Raises:
            UserError: as `ImageDataset`; if the shards' pictures differ in size.
        """
        self.shards, self.background = shard_paths(path), background
        self._indices = _make_indices(self.shards, max_broken)
        indices = [read_index(*pair) for pair in zip(self.shards, self._indices, strict=True)]
        self.path, self.name = Path(absolute_data(os.fspath(path))), data_name(os.fspath(path))
        self.files = DataFiles(self.shards[0])
        self.max_broken, self.broken = max_broken, dict[int, str]()
        self.resolution = self._common_width(indices)
        self.has_labels = self._all_labelled(indices, needs_labels)
        counts = np.array([len(index) for index in indices])
        self._firsts = np.concatenate([[0], np.cumsum(counts)])
        self.file_names = _Names(self.shards, self._indices, self._firsts)
        self.file_sizes = np.concatenate([index["size"] for index in indices])
        self.set_labels(np.concatenate([index["label"] for index in indices]), mirror)
        shard_of = np.repeat(np.arange(len(indices), dtype=np.int32), counts)
        self.shard_of = np.tile(shard_of, 2) if mirror else shard_of
        content = hashlib.sha256(self.labels.numpy().tobytes())
        for index in indices:
            content.update(index["crc"].tobytes())
        self.key = content.hexdigest()[:32]

    def _common_width(self, indices: list[np.ndarray]) -> int:
        widths = [int(index["width"][0]) for index in indices]
        for shard, width in zip(self.shards, widths, strict=True):
            if width != widths[0]:
                raise UserError(
                    f"{shard} has pictures of {width} pixels, {self.shards[0]} of {widths[0]};"
                    " make all pictures one size"
                )
        return widths[0]

    def _all_labelled(self, indices: list[np.ndarray], needs_labels: bool) -> bool:
        # the last number of a camera matrix is 1, those of no label are 0
        missing = [
            shard
            for shard, index in zip(self.shards, indices, strict=True)
            if index["label"][0, 15] == 0
        ]
        if missing and needs_labels:
            read_labels(DataFiles(missing[0]))  # says what is to be done
        return not missing

    def _content(self, index: int) -> tuple[bytes, str]:
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        file, records = _open_shard(self.shards[number], self._indices[number], os.getpid())
        record = records[index - self._firsts[number]]
        name = record["name"].decode(errors="surrogatepass")
        info = zipfile.ZipInfo(name)
        info.header_offset, info.compress_size = int(record["offset"]), int(record["packed"])
        info.file_size, info.CRC = int(record["size"]), int(record["crc"])
        info.compress_type = int(record["method"])
        where = f"{self.shards[number]}: {shown(name)}"
        with errors_named(where):
            return read_member_at(file, info, LARGEST_PICTURE), where
