"""Training pictures with camera labels: opening and checking a data set, reading pictures, and the order they come in.

A data set is a ZIP or a folder of PNG/JPEG/WebP files plus `dataset.json`: {"labels": [["00000/img00000000.png", [25 numbers]], ...]}
(the layout of the released tools). Everything that can be wrong without decoding pixels is found when the data set is opened.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import signal
import sys
import warnings
import zipfile
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor
from tqdm import tqdm

from dnnlib.archives import is_link, open_member, read_member, safe_name
from dnnlib.console import UserError, brief, progress
from dnnlib.files import local_file
from training.balance import epoch_items
from training.cameras import LABEL_SIZE, mirror_label

T = TypeVar("T")

LABEL_FILE = "dataset.json"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
AUXILIARY_FOLDERS = ("depth", "mask")  # written by `dataset_tool heads --depth`; their files need no label
RESOLUTIONS = (32, 64, 128, 256, 512, 1024)
LOSSLESS_MODES = ("1", "L", "P", "RGB")  # pictures that become RGB without losing anything
TOLERANCE = 1e-3  # of rotations and of the matrices' fixed entries
LARGEST_FOCAL = 100.0  # image sizes (half a degree of view); beyond, it must be pixels
LARGEST_NUMBER = 1e30  # labels are kept in float32
IN_MEMORY_BYTES = 512 << 20  # a data set of up to this many bytes is decoded once
LONG_SCAN = 20_000  # pictures whose check takes long enough for a progress bar
LONG_READ = 100 << 20  # bytes of pixels of which decoding does
LARGEST_PICTURE = 64 << 20  # bytes of a file; a picture of the largest size takes 3 MB unpacked
LABELS_SPARE, LABELS_PER_FILE = 16 << 20, 4096  # bytes of dataset.json: a label takes about 600


# ---------------------------------------------------------------------------------------------------------------------
# Files of a data set


class BrokenPicture(UserError):
    """A file that cannot be read; of pictures, `ImageDataset` can leave some out."""


class _Folder:
    """Files below a folder; names use forward slashes and are relative to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stamps(self) -> dict[str, str]:
        """All file names with a text that changes when the file does."""
        files = [Path(parent) / name for parent, names in self._walk() for name in names]
        status = {file.relative_to(self.path).as_posix(): file.stat() for file in files if file.is_file()}
        return {name: f"{value.st_size} {value.st_mtime_ns}" for name, value in status.items()}

    def _walk(self) -> Iterator[tuple[str, list[str]]]:
        """Folders and the names of their files. Each folder comes once: links may lead back to a folder above."""
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
    """Files of a ZIP, opened anew in every process: processes that share an open file share its position too."""

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
                raise UserError(f"data {self.path}: {brief(info.filename)!r} leads out of the archive; pack it again with plain names")
        return {info.filename: f"{info.file_size} {info.CRC}" for info in members}

    def open(self, name: str) -> IO[bytes]:
        return open_member(self.archive(), name)

    def read(self, name: str, largest: int) -> bytes:
        """Content of a member of at most `largest` bytes."""
        return read_member(self.archive(), name, largest)


_Files = _Folder | _Zip


def _open_files(path: Path) -> tuple[_Files, dict[str, str]]:
    """The files of a data set and their stamps; hidden files and what macOS adds to archives left out."""
    if not path.exists():
        raise UserError(f"data {path} does not exist; check the path")
    if not path.is_dir() and not path.is_file():
        raise UserError(f"data {path} is a device or a pipe; it must be a ZIP or a folder")
    files: _Files = _Folder(path) if path.is_dir() else _Zip(path)
    try:
        stamps = files.stamps()
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read data {path}: {error.strerror or error}; check the file and its permissions") from error
    except Exception as error:  # damaged bytes can fail in any way; the person sees one line whichever it is
        reason = f"{error or type(error).__name__}"
        raise UserError(f"data {path} is neither a folder nor a whole ZIP ({reason}); it was cut off or is another kind of file") from error
    visible = {name: stamp for name, stamp in stamps.items() if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))}
    if not visible:
        raise UserError(f"data {path} is empty; it must hold pictures (PNG, JPEG, WebP) and {LABEL_FILE}")
    return files, visible


def _read(files: _Files, name: str, largest: int = LARGEST_PICTURE) -> bytes:
    with _errors_named(f"{files.path}: {name}"):
        return files.read(name, largest)


@contextlib.contextmanager
def _errors_named(where: str) -> Iterator[None]:
    """What goes wrong while reading or decoding, as a UserError that names the file."""
    try:
        yield
    except BrokenPicture:
        raise
    except UserError as error:
        raise BrokenPicture(str(error)) from error
    except Exception as error:  # zipfile and Pillow let through whatever damaged bytes lead to
        raise BrokenPicture(f"{where} cannot be read: {error or type(error).__name__}; copy or make this file again") from error


# ---------------------------------------------------------------------------------------------------------------------
# Labels


def _read_labels(files: _Files, names: Collection[str]) -> tuple[list[str], np.ndarray]:
    """Names and label numbers (M, 25) in the order of dataset.json."""
    if LABEL_FILE not in names:
        deeper = next((f" (there is {name}: the data must start at its folder)" for name in names if name.endswith("/" + LABEL_FILE)), "")
        raise UserError(f"{files.path}: no {LABEL_FILE} with the camera labels at the top{deeper}; docs/training.md shows how to write it")
    where = f"{files.path}: {LABEL_FILE}"
    try:
        content = _read(files, LABEL_FILE, largest=LABELS_SPARE + LABELS_PER_FILE * len(names))
        entries = json.loads(content, parse_int=float).get("labels")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f'{where} is not JSON of the form {{"labels": [[NAME, [25 numbers]], ...]}}: {error}') from error
    if isinstance(entries, dict):  # the released tools take this form as well
        entries = [list(entry) for entry in entries.items()]
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{where} has no camera labels; it must list 25 numbers for every picture")
    for index, entry in enumerate(entries):
        _check_entry(entry, f"{where}: label {index}")
    return [name.replace("\\", "/") for name, _ in entries], np.array([numbers for _, numbers in entries])


def _check_entry(entry: Any, where: str) -> None:
    """Refuse what is not [NAME, [25 numbers]]."""
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
        raise UserError(f"{where} is {brief(entry)} instead of [NAME, [25 numbers]]")
    name, numbers = entry
    if not isinstance(numbers, list) or len(numbers) != LABEL_SIZE:
        found = f"{len(numbers)} numbers" if isinstance(numbers, list) else brief(numbers)
        raise UserError(f"{where} ({name}) has {found} instead of 25: 16 of the camera-to-world matrix, then 9 of the intrinsics")
    for value in numbers:
        if type(value) is not float:
            raise UserError(f"{where} ({name}) holds {brief(value)!r}, which is not a number; estimate its camera again")


def check_labels(labels: np.ndarray, names: Sequence[str], where: str) -> None:
    """Check camera labels (M, 25): finite numbers, a proper rotation, intrinsics in units of the image size.

    Raises:
        UserError: for the first label with a problem; `where` and the label's index and name are said.
    """
    for bad, problem in label_problems(labels):
        if bad.any():
            index = int(bad.argmax())
            fx, _, cx, _, fy, cy = labels[index, 16:22]
            raise UserError(f"{where}: label {index} ({names[index]}) " + problem.format(fx=fx, fy=fy, cx=cx, cy=cy))


def label_problems(labels: np.ndarray) -> Iterator[tuple[np.ndarray, str]]:
    """Pairs of (which labels are bad (M,), in what way); each test may rely on those before it."""
    yield (
        ~np.all(np.abs(labels) < LARGEST_NUMBER, axis=1),
        "has NaN or infinite numbers; estimate its camera again or leave the picture out",
    )
    cam2world = labels[:, :16].reshape(-1, 4, 4)
    last_row = np.abs(cam2world[:, 3] - (0, 0, 0, 1)).max(1) > TOLERANCE
    last_column = np.abs(cam2world[:, :, 3] - (0, 0, 0, 1)).max(1) > TOLERANCE
    yield last_row & ~last_column, "has a transposed camera matrix; write it row by row, the translation in the last column"
    yield last_row, "has a camera matrix whose last row is not 0 0 0 1; its first 16 numbers must be a camera-to-world matrix, row by row"
    rotation = cam2world[:, :3, :3]
    skewed = np.abs(rotation @ rotation.swapaxes(1, 2) - np.eye(3)).max((1, 2)) > TOLERANCE
    yield skewed, "has a rotation that is not orthonormal to 1e-3; take scale and shear out of the camera matrix"
    yield np.linalg.det(rotation) < 0, "has a rotation of determinant -1; the camera's axes must be x right, y down, z forward"
    focal, centre = labels[:, (16, 20)], labels[:, (18, 21)]
    values = "(focal {fx:g} {fy:g}, centre {cx:g} {cy:g})"
    pixels = np.any(focal > LARGEST_FOCAL, axis=1) | np.any(centre > 1, axis=1)
    yield pixels, f"has intrinsics that look like pixels {values}; divide them by the image size"
    yield np.any(focal <= 0, axis=1), f"has a focal length that is not above 0 {values}; write it in units of the image size"
    yield np.any(centre < 0, axis=1), f"has a principal point outside the picture {values}; cx and cy lie in 0..1"
    fixed = np.abs(labels[:, (19, 22, 23, 24)] - (0, 0, 0, 1)).max(1) > TOLERANCE
    yield fixed, "has intrinsics that are not of the form fx s cx, 0 fy cy, 0 0 1; write them row by row"


def _match_labels(files: _Files, pictures: list[str], labelled: list[str]) -> list[int]:
    """Label index of every picture."""
    index_of = {name: index for index, name in enumerate(labelled)}
    if len(index_of) < len(labelled):
        twice = next(name for index, name in enumerate(labelled) if index_of[name] != index)
        raise UserError(f"{files.path}: {LABEL_FILE} lists {twice} twice; keep one of the two labels")
    if missing := [name for name in pictures if name not in index_of]:
        count = f"{len(missing)} of {len(pictures)} pictures have none"
        raise UserError(f"{files.path}: {missing[0]} has no label in {LABEL_FILE} ({count}); add its 25 numbers or remove the picture")
    if extra := sorted(index_of.keys() - set(pictures), key=index_of.__getitem__):
        raise UserError(
            f"{files.path}: {LABEL_FILE}: label {index_of[extra[0]]} is for {extra[0]}, which is no PNG, JPEG or WebP file there "
            f"({len(extra)} such labels); add the picture or remove the label"
        )
    return [index_of[name] for name in pictures]


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def decode_picture(file: IO[bytes], where: str) -> np.ndarray:
    """Pixels (H, W, 3), uint8, of a picture file; grey and palette pictures become RGB.

    Raises:
        UserError: that names `where`, if the file is damaged or of a kind that `ImageDataset` refuses.
    """
    with _errors_named(where), Image.open(file, formats=FORMATS) as image:
        _check_kind(image, where)
        return np.array(image.convert("RGB"))


def _check_kind(image: ImageFile.ImageFile, where: str) -> None:
    """Refuse what cannot become 8-bit RGB without loss, and sizes no network has."""
    # Pillow shows a 16-bit colour PNG as plain RGB; only the decoder's raw mode tells.
    if image.mode.startswith(("I", "F")) or ";16" in str(image.tile):
        raise UserError(f"{where} has more than 8 bits a channel; save it as 8-bit RGB")
    if image.mode.endswith(("A", "a")) or "transparency" in image.info:
        raise UserError(f"{where} has an alpha channel; put it on a plain background and save it as RGB")
    if image.mode not in LOSSLESS_MODES:
        raise UserError(f"{where} has colour mode {image.mode}; save it as RGB")
    size = f"{image.width}x{image.height}"
    if image.width != image.height:
        raise UserError(f"{where} is {size}, not square; crop it")
    if image.width not in RESOLUTIONS:
        raise UserError(f"{where} is {size}; the size must be a power of two from 32 to 1024: resize it")


def _check_pictures(files: _Files, names: Sequence[str], note_broken: Callable[[dict[int, str]], None]) -> int:
    """Resolution that all pictures share; reads headers only (0.03 ms a picture). Unreadable ones are handed to `note_broken`."""
    first, resolution = "", 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for index, name in enumerate(_long_loop(names, len(names) > LONG_SCAN, "Checking pictures")):
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


def _header_width(files: _Files, name: str, where: str) -> int:
    with _errors_named(where), files.open(name) as file, Image.open(file, formats=FORMATS) as image:
        _check_kind(image, where)
        return image.width


def _long_loop(items: Sequence[T], long: bool, description: str) -> Iterable[T]:
    return progress(items, description, unit="img") if long else items


# ---------------------------------------------------------------------------------------------------------------------
# The data set


class ImageDataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Pictures and camera labels of a ZIP or folder (or the URL of a ZIP), in the order of the file names.

    With `mirror`, item M + i is the left-right mirrored picture i with the mirrored camera.

    Attributes:
        path, name: where it lies on this machine; a short name for run folders.
        resolution: pixels a side.
        labels: (len, 25) float32 camera labels, those of mirrored pictures included.
        file_names: the M names inside the ZIP or folder.
        broken: pictures that turned out to be unreadable and are replaced by the next readable one, by file number, with the reasons.
        has_labels: false for a set without dataset.json, where that is allowed; its labels are all zero.
        key: text that changes with names, contents (ZIP: checksums; folder: sizes and times), labels and `mirror`; for caches.
    """

    def __init__(
        self, path: str | os.PathLike[str], mirror: bool = False, check: bool = True, max_broken: int = 0, needs_labels: bool = True
    ) -> None:
        """Open and check a data set.

        Args:
            path: ZIP, folder or URL.
            mirror: add every picture's mirror image.
            check: read every picture's header; off where another process has just done so.
            max_broken: so many pictures may be unreadable, now or when they are decoded.
            needs_labels: refuse a set without dataset.json.

        Raises:
            UserError: what is wrong, in which file or label, and what to do.
        """
        self._files, stamps = _open_files(local_file(path))
        self.path = self._files.path
        self.name = self.path.stem if self.path.is_file() else self.path.resolve().name
        self.has_labels = needs_labels or any(name.split("/")[-1] == LABEL_FILE for name in stamps)
        if self.has_labels:
            labelled, labels = _read_labels(self._files, stamps)
            check_labels(labels, labelled, f"{self.path}: {LABEL_FILE}")
        else:
            labelled = _picture_names(stamps, set())
            labels = np.zeros((len(labelled), LABEL_SIZE))
        self.file_names = _picture_names(stamps, set(labelled))
        if not self.file_names:
            raise UserError(f"data {self.path} holds no pictures; add PNG, JPEG or WebP files")
        order = _match_labels(self._files, self.file_names, labelled)
        self.max_broken, self.broken = max_broken, dict[int, str]()
        self.resolution = _check_pictures(self._files, self.file_names if check else self.file_names[: 1 + max_broken], self.note_broken)
        self.labels = torch.from_numpy(labels[order]).float()
        if mirror:
            self.labels = torch.cat([self.labels, mirror_label(self.labels)])
        self.key = _content_key([f"{name} {stamps[name]}" for name in self.file_names], self.labels)
        self._pixels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Picture (3, H, W), uint8, and label (25,), float32."""
        images, labels = self.read([range(len(self))[index]])
        return images[0], labels[0]

    def read(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Pictures (N, 3, H, W), uint8, and labels (N, 25), float32, of several items.

        An unreadable picture is replaced by the next readable one, label and all, as long as there are at most `max_broken`.

        Raises:
            UserError: if one more picture cannot be decoded, with its file's name.
        """
        items = torch.as_tensor(indices)
        count = len(self.file_names)
        pictures, mirrored = items % count, items >= count
        if self._pixels is None:
            decoded = [self._decode_readable(i) for i in pictures.tolist()]
            pictures, images = torch.tensor([i for i, _ in decoded]), torch.stack([image for _, image in decoded])
        else:
            pictures = torch.tensor([self._readable(i) for i in pictures.tolist()]) if self.broken else pictures
            images = self._pixels[pictures]
        if mirrored.any():
            images[mirrored] = images[mirrored].flip(-1)
        return images, self.labels[pictures + count * mirrored]

    def preload(self) -> None:
        """Decode all pictures once and keep them in memory.

        Raises:
            UserError: if a picture cannot be decoded, with its file's name.
        """
        if self._pixels is None:
            pixels = torch.empty(len(self.file_names), 3, self.resolution, self.resolution, dtype=torch.uint8)
            for index in _long_loop(range(len(pixels)), self.pixel_bytes > LONG_READ, "Reading pictures"):
                pixels[index] = self._decode_readable(index)[1]
            self._pixels = pixels

    @property
    def pixel_bytes(self) -> int:
        """Memory that `preload` takes."""
        return len(self.file_names) * 3 * self.resolution**2

    def note_broken(self, broken: dict[int, str]) -> None:
        """Remember unreadable pictures, reasons by file number, and say so.

        Raises:
            UserError: the first reason, if there are more than `max_broken`.
        """
        for index in sorted(broken.keys() - self.broken.keys()):
            if len(self.broken) >= min(self.max_broken, len(self.file_names) - 1):
                more = f" (the limit of {self.max_broken} such pictures, data.max_broken, is reached)" if self.max_broken else ""
                raise UserError(broken[index] + more)
            self.broken[index] = broken[index]
            if torch.utils.data.get_worker_info() is None:
                tqdm.write(f"left out: {broken[index]}", file=sys.stderr)

    def _readable(self, index: int) -> int:
        """File number of the first picture from `index` on that is not known to be broken."""
        while index in self.broken:
            index = (index + 1) % len(self.file_names)
        return index

    def _decode_readable(self, index: int) -> tuple[int, Tensor]:
        """File number and pixels (3, H, W) of the first readable picture from `index` on."""
        while True:
            index = self._readable(index)
            try:
                return index, self._decode(index)
            except BrokenPicture as error:
                self.note_broken({index: str(error)})

    def _decode(self, index: int) -> Tensor:
        """Picture (3, H, W) of file number `index`."""
        name = self.file_names[index]
        pixels = decode_picture(io.BytesIO(_read(self._files, name)), f"{self.path}: {name}")
        if len(pixels) != self.resolution:
            raise UserError(f"{self.path}: {name} is {len(pixels)} pixels wide instead of {self.resolution}; do not change data in use")
        return torch.from_numpy(pixels).permute(2, 0, 1)


def _picture_names(names: Iterable[str], labelled: set[str]) -> list[str]:
    pictures = (name for name in names if name.lower().endswith(SUFFIXES))
    return sorted(name for name in pictures if name.split("/")[0] not in AUXILIARY_FOLDERS or name in labelled)


def _content_key(files: list[str], labels: Tensor) -> str:
    content = hashlib.sha256("\0".join(files).encode())
    content.update(labels.numpy().tobytes())
    return content.hexdigest()[:32]


def to_float(images: Tensor) -> Tensor:
    """Pixels 0..255 (any shape) as the networks' -1..1, float32."""
    return images.to(torch.float32) / 127.5 - 1


# ---------------------------------------------------------------------------------------------------------------------
# Order and loading


@functools.lru_cache(maxsize=4)
def epoch_order(dataset_size: int, seed: int, epoch: int) -> np.ndarray:
    """Random order (dataset_size,) of one epoch: a function of its arguments alone.

    RandomState, unlike numpy's newer generators, is promised never to change, so runs can be resumed after an upgrade.
    """
    bits = np.random.MT19937(np.random.SeedSequence([seed % (1 << 64), epoch]))
    order = np.random.RandomState(bits).permutation(dataset_size)
    order.setflags(write=False)
    return order


def batch_indices(dataset_size: int, seed: int, first_image: int, count: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Items number first_image .. first_image + count - 1 (count,) of the endless stream that shows every item once an epoch.

    With `weights` (dataset_size,), at least 1 each, an epoch is longer and shows items about as often as they say.
    """
    length = dataset_size if weights is None else round(float(weights.sum()))
    epochs, places = np.divmod(np.arange(first_image, first_image + count), length)
    parts = []
    for epoch in map(int, np.unique(epochs)):
        chosen = epoch_order(length, seed, epoch)[places[epochs == epoch]]
        parts.append(chosen if weights is None else epoch_items(weights, seed, epoch)[chosen])
    return np.concatenate(parts)


def training_batches(
    dataset: ImageDataset,
    batch: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    start_image: int = 0,
    workers: int = 0,
    weights: np.ndarray | None = None,
) -> Generator[tuple[Tensor, Tensor]]:
    """Endless batches for process `rank`: pictures (batch / world_size, 3, H, W), uint8, and labels (batch / world_size, 25).

    Each global batch of `batch` items is dealt out in turn, item i to process i % world_size. The order depends on `seed` and
    `start_image` only: starting at image n goes on exactly as a stream that has shown n images. Data sets of up to 512 MB are
    decoded once and kept; otherwise `workers` processes decode ahead (two batches each). Close the iterator to end them.
    `weights` (len(dataset),) are those of `batch_indices`.

    Raises:
        UserError: if a picture cannot be decoded, with its file's name; also from a worker.
        ValueError: if `batch` is not a multiple of `world_size`.
    """
    if batch % world_size:
        raise ValueError(f"batch {batch} is not a multiple of {world_size} processes")
    if dataset.pixel_bytes <= IN_MEMORY_BYTES:
        dataset.preload()
        workers = 0
    starts = itertools.count(start_image, batch)
    indices = (batch_indices(len(dataset), seed, start, batch, weights)[rank::world_size] for start in starts)
    return read_batches(dataset, indices, workers)


def read_batches(dataset: ImageDataset, index_batches: Iterable[np.ndarray], workers: int = 0) -> Generator[tuple[Tensor, Tensor]]:
    """`dataset.read` of each of `index_batches`, decoded ahead by `workers` processes, without touching any random state.

    Raises:
        UserError: if a picture cannot be decoded, with its file's name, or if a worker dies.
    """
    if not workers:
        yield from map(dataset.read, index_batches)
        return
    batches = _start_workers(dataset, index_batches, workers)
    try:
        for item in batches:
            if isinstance(item, UserError):
                raise item
            images, labels, broken = item
            dataset.note_broken(broken)
            yield images, labels
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError("a process that reads pictures died, most likely for lack of (shared) memory; try --workers 0") from error
    finally:
        del batches  # ends the workers


def _start_workers(dataset: ImageDataset, index_batches: Iterable[np.ndarray], workers: int) -> Iterator[Any]:
    loader = torch.utils.data.DataLoader(
        _BatchReader(dataset),
        batch_size=None,
        sampler=index_batches,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_leave_signals_to_parent,
        generator=torch.Generator(),  # else starting the workers draws from the global one
    )
    return iter(loader)


class _BatchReader(torch.utils.data.Dataset[Any]):
    """Reads whole batches; hands errors over as values, because a DataLoader would wrap the message in a traceback."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, indices: Any) -> Any:
        try:
            return *self.dataset.read(indices), dict(self.dataset.broken)
        except UserError as error:
            return error


def _as_is(item: Any) -> Any:
    return item


def _leave_signals_to_parent(_: int) -> None:
    """Ctrl-C and a batch system's SIGTERM reach every process of the group; the parent still needs batches to finish its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
