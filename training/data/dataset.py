"""Training pictures with camera labels: a data set that is checked when it is opened, and read by
item.

A data set is a ZIP or a folder of PNG/JPEG/WebP files plus `dataset.json`: {"labels":
[["00000/img00000000.png", [25 numbers]], ...]} (the layout of the released tools). Everything that
can be wrong without decoding pixels is found when the data set is opened.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dnnlib.console import UserError
from dnnlib.files import local_file
from training.cameras import LABEL_SIZE, mirror_label
from training.config.settings import RenderingConfig
from training.data.files import LABEL_FILE, BrokenFile, DataFiles
from training.data.labels import check_labels, first_fault, pictures_below, read_labels
from training.data.pictures import LARGEST_PICTURE, check_pictures, decode_picture, long_loop

Colour = tuple[float, float, float]
PLAIN_BACKGROUND: Colour = (1.0, 1.0, 1.0)  # of pictures with alpha, unless a model has another
IN_MEMORY_BYTES = 512 << 20  # a data set of up to this many bytes is decoded once
LONG_READ = 100 << 20  # bytes of pixels whose decoding takes long enough for a progress bar


class ImageDataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Pictures and camera labels of a ZIP or folder (or the URL of a ZIP), in the order of the file
    names.

    With `mirror`, item M + i is the left-right mirrored picture i with the mirrored camera.

    Attributes:
        files, path, name: its files; where it lies on this machine; a short name for run folders.
        resolution: pixels a side.
        is_mirrored: whether every picture is there twice.
        labels: (len, 25) float32 camera labels, those of mirrored pictures included.
        file_names, file_sizes: the M names inside the ZIP or folder, and their bytes.
        broken: pictures that turned out to be unreadable and are replaced by the next readable one,
            by file number, with the reasons.
        has_labels: false for a set without dataset.json, where that is allowed; its labels are all
            zero.
        shard_of: (len,) for sets of several ZIPs the number of each item's; None otherwise.
        background: red, green and blue in [0, 1] that pictures with alpha are laid over; None =
            such pictures are refused.
        key: text that changes with names, contents (ZIP: checksums; folder: sizes and times),
            labels and `mirror`; for caches.
    """

    other_size_advice = "do not change data in use"
    shard_of: np.ndarray | None = None

    def __init__(
        self,
        path: str | os.PathLike[str],
        mirror: bool = False,
        check: bool = True,
        max_broken: int = 0,
        needs_labels: bool = True,
        background: Colour | None = None,
    ) -> None:
        """Open and check a data set.

        Args:
            path: ZIP, folder or URL.
            mirror: add every picture's mirror image.
            check: read every picture's header; off where another process has just done so.
            max_broken: so many pictures may be unreadable, now or when they are decoded.
            needs_labels: refuse a set without dataset.json.
            background: take pictures with alpha; the attribute says what it is.

        Raises:
            UserError: what is wrong, in which file or label, and what to do.
        """
        self.files = DataFiles(local_file(path))
        self.path = self.files.path
        name = self.path.stem if self.path.is_file() else self.path.resolve().name
        self.name = re.sub("[\ud800-\udfff]", "_", name)  # bytes that are no UTF-8
        self.has_labels = needs_labels or bool(self.files.lists(LABEL_FILE))
        self.file_names: Sequence[str]
        self.file_names, labels = self._read_labels()
        self.max_broken, self.broken = max_broken, dict[int, str]()
        self.resolution = check_pictures(
            self.files,
            self.file_names if check else self.file_names[: 1 + max_broken],
            self.note_broken,
            background is not None,
        )
        self.background = background
        self.set_labels(labels, mirror)
        stamps = [self.files.stamp(name) for name in self.file_names]  # each begins with the size
        self.file_sizes: Sequence[int] | np.ndarray = [int(stamp.split()[0]) for stamp in stamps]
        self.key = _content_key(
            [f"{name} {stamp}" for name, stamp in zip(self.file_names, stamps, strict=True)],
            self.labels,
        )

    def set_labels(self, labels: np.ndarray, mirror: bool) -> None:
        """Take the labels (M, 25) of the pictures; with `mirror`, each is there twice."""
        self._pixels: Tensor | None = None
        self.labels = torch.from_numpy(labels).float()
        self.is_mirrored = mirror
        if mirror:
            self.labels = torch.cat([self.labels, mirror_label(self.labels)])

    def _read_labels(self) -> tuple[list[str], np.ndarray]:
        """Sorted names of the pictures (M) and their labels (M, 25)."""
        listed = read_labels(self.files) if self.has_labels else None
        names = listed.pictures if listed else pictures_below(self.files, "")
        if not names:
            raise UserError(f"{self.path} holds no pictures; add PNG, JPEG or WebP files")
        if listed is None:
            return names, np.zeros((len(names), LABEL_SIZE))
        if listed.faults:
            raise first_fault(listed.faults, str(self.path))
        check_labels(listed.numbers, listed.names, f"{self.path}: {LABEL_FILE}")
        index_of = {name: index for index, name in enumerate(listed.names)}
        return names, listed.numbers[[index_of[name] for name in names]]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Picture (3, H, W), uint8, and label (25,), float32."""
        images, labels = self.read([range(len(self))[index]])
        return images[0], labels[0]

    def read(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Pictures (N, 3, H, W), uint8, and labels (N, 25), float32, of several items; what has
        alpha is laid over `background`.

        An unreadable picture is replaced by the next readable one, label and all, as long as there
        are at most `max_broken`.

        Raises:
            UserError: if one more picture cannot be decoded, with its file's name.
        """
        images, labels = self.read_stored(indices)
        return images if self.background is None else lay_over(images, self.background), labels

    def read_stored(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """The same with alpha as a fourth channel, colours straight, where `background` is not
        None.
        """
        items = torch.as_tensor(indices)
        count = len(self.file_names)
        pictures, mirrored = items % count, items >= count
        if self._pixels is None:
            decoded = [self._decode_readable(i) for i in pictures.tolist()]
            pictures, images = (
                torch.tensor([i for i, _ in decoded]),
                torch.stack([image for _, image in decoded]),
            )
        else:
            pictures = (
                torch.tensor([self._readable(i) for i in pictures.tolist()])
                if self.broken
                else pictures
            )
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
            shape = (len(self.file_names), self.channels, self.resolution, self.resolution)
            pixels = torch.empty(shape, dtype=torch.uint8)
            for index in long_loop(
                range(len(pixels)), self.pixel_bytes > LONG_READ, "Reading pictures"
            ):
                pixels[index] = self._decode_readable(index)[1]
            self._pixels = pixels

    @property
    def pixel_bytes(self) -> int:
        """Memory that `preload` takes."""
        return len(self.file_names) * self.channels * self.resolution**2

    @property
    def has_alpha(self) -> bool:
        """Whether the first picture has transparent parts, and they are wanted."""
        return self.background is not None and bool((self.read_stored([0])[0][:, 3] < 255).any())

    @property
    def channels(self) -> int:
        """Of the pictures as they are stored: with alpha 4."""
        return 3 if self.background is None else 4

    @property
    def fits_memory(self) -> bool:
        """Whether the set is small enough to be decoded once and kept."""
        return self.pixel_bytes <= IN_MEMORY_BYTES

    def note_broken(self, broken: dict[int, str]) -> None:
        """Remember unreadable pictures, reasons by file number, and say so.

        Raises:
            UserError: the first reason, if there are more than `max_broken`.
        """
        for index in sorted(broken.keys() - self.broken.keys()):
            if len(self.broken) >= min(self.max_broken, len(self.file_names) - 1):
                more = (
                    f" (the limit of {self.max_broken} such pictures, data.max_broken, is reached)"
                    if self.max_broken
                    else ""
                )
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
            except BrokenFile as error:
                self.note_broken({index: str(error)})

    def _decode(self, index: int) -> Tensor:
        """Picture (3, H, W) of file number `index`."""
        content, where = self._content(index)
        pixels = decode_picture(io.BytesIO(content), where, self.channels == 4)
        if len(pixels) != self.resolution:
            raise UserError(
                f"{where} is {len(pixels)} pixels wide instead of {self.resolution};"
                f" {self.other_size_advice}"
            )
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _content(self, index: int) -> tuple[bytes, str]:
        """Bytes of file number `index`, and its place for messages."""
        name = self.file_names[index]
        return self.files.read(name, LARGEST_PICTURE), self.files.where(name)


def _content_key(files: list[str], labels: Tensor) -> str:
    # file systems have names that are no UTF-8
    content = hashlib.sha256("\0".join(files).encode(errors="surrogatepass"))
    content.update(labels.numpy().tobytes())
    return content.hexdigest()[:32]


def alpha_background(rendering: RenderingConfig) -> Colour | None:
    """`background` of the data of a model: None = it knows no alpha."""
    if rendering.alpha == "ignore":
        return None
    return rendering.background or PLAIN_BACKGROUND


def lay_over(images: Tensor, background: Colour) -> Tensor:
    """Pictures (N, 3, H, W), uint8, of straight colours and alpha (N, 4, H, W), uint8, over red,
    green and blue in [0, 1].
    """
    colours, alpha = images[:, :3], images[:, 3:]
    if bool((alpha == 255).all()):
        return colours
    behind = torch.tensor(background).view(3, 1, 1) * 255
    return (behind + (colours - behind) * (alpha / 255)).round().to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """Pixels 0..255 (any shape) as the networks' -1..1, float32."""
    return images.to(torch.float32) / 127.5 - 1
