"""Hostile data sets and sources: archives that climb and swell, pictures that claim, labels that
nest.
"""

from __future__ import annotations

import io
import json
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.tiny import encode, orbit_labels, pictures, write_dataset

NAME = "00000/img00000000.png"


def labels_text(name: str = NAME, numbers: Any = None) -> bytes:
    return json.dumps(
        {"labels": [[name, orbit_labels(1)[0].tolist() if numbers is None else numbers]]}
    ).encode()


def picture() -> bytes:
    return encode(pictures(1)[0])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, mode: int = 2, rows: bytes = b"") -> bytes:
    """A PNG that claims a size; `rows` is packed by zlib."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(chunks)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def zeros(count: int) -> bytes:
    return zlib.compress(bytes(count), 1)


def deflated_zeros(megabytes: int) -> bytes:
    """Packed zeros, put together from blocks that do not depend on one another."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * megabytes + packer.flush()


PNG_BOMBS: dict[str, Callable[[], bytes]] = {
    "a picture of 60000 pixels": lambda: png(60_000, 60_000),
    "a picture of 2^31 pixels": lambda: png(2**31 - 1, 2**31 - 1),
    "a picture of no pixels": lambda: png(0, 0),
    "a picture of 12000 pixels": lambda: png(12_000, 12_000),
    "rows that never come": lambda: png(32, 32, rows=b"\0"),
    "rows without end": lambda: png(32, 32, rows=bytes(20 << 20)),
    "text of 100 MB": lambda: png(
        32, 32, chunk(b"zTXt", b"Comment\0\0" + zeros(100 << 20)), rows=bytes(97 * 32)
    ),
    "many texts": lambda: png(
        32, 32, *[chunk(b"zTXt", b"C\0\0" + zeros(1 << 20))] * 200, rows=bytes(97 * 32)
    ),
    "a colour profile of 100 MB": lambda: png(
        32, 32, chunk(b"iCCP", b"p\0\0" + zeros(100 << 20)), rows=bytes(97 * 32)
    ),
    "a chunk of four gigabytes": lambda: png(32, 32)[:33] + struct.pack(">I", 0xFFFFFFFF) + b"tEXt",
    "wrong checksums": lambda: png(32, 32)[:-20] + bytes(20),
    "a palette without colours": lambda: png(32, 32, mode=3, rows=bytes(33 * 32)),
    "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n(rm) run\n",
    "a script as a picture": lambda: (
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    ),
    "a text as a picture": lambda: b"/etc/passwd",
    "an empty picture": lambda: b"",
}

LABEL_BOMBS: dict[str, Callable[[], bytes]] = {
    "labels of deep lists": lambda: b'{"labels":' + b"[" * 500_000,
    "a label of deep lists": lambda: b'{"labels":[' + b"[" * 900 + b"]" * 900 + b"]}",
    "labels of empty lists": lambda: b'{"labels":[' + b"[]," * 5_000_000 + b"[]]}",
    "labels of 17 MB and more": lambda: b'{"labels":[' + b" " * (40 << 20) + b"]}",
    "numbers that are infinite": lambda: labels_text(numbers=[float("inf")] * 25),
    "numbers that are none": lambda: labels_text(numbers=[float("nan")] * 25),
    "numbers of 10000 digits": lambda: (
        b'{"labels":[["' + NAME.encode() + b'",[' + b",".join([b"9" * 10_000] * 25) + b"]]]}"
    ),
    "numbers that are lists": lambda: labels_text(numbers=[[1]] * 25),
    "names outside": lambda: labels_text("../../../../etc/passwd"),
    "names for the terminal": lambda: labels_text("\x1b[2J\r\n\x07" * 1000),
    "names that are half a letter": lambda: (
        b'{"labels":[["\\ud800",' + json.dumps(orbit_labels(1)[0].tolist()).encode() + b"]]}"
    ),
    "labels that are text": lambda: b'{"labels":"' + b"x" * 100_000 + b'"}',
    "labels not UTF-8": lambda: b'{"labels":"\xff\xfe\xfd"}',
    "no labels": lambda: b"[]",
}


def plain_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(
        path, "w", method, compresslevel=9 if method == zipfile.ZIP_DEFLATED else None
    ) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def with_link(path: Path) -> Path:
    """An archive with a symbolic link to a file outside, as `zip --symlinks` packs it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("dataset.json", labels_text())
        link = zipfile.ZipInfo(NAME)
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    return path


def swelling(path: Path, name: str, megabytes: int, stated: int | None = None) -> Path:
    """A data set whose member `name` unpacks to zeros, and is said to have `stated` bytes in its
    header and in the list.
    """
    packed = deflated_zeros(megabytes)
    members = {"dataset.json": labels_text(), NAME: picture(), name: packed}
    data = bytearray(plain_zip(path, members).read_bytes())
    for magic, method, size, name_at in ((b"PK\x03\x04", 8, 22, 30), (b"PK\x01\x02", 10, 24, 46)):
        entry = data.index(name.encode(), name_at) - name_at
        while data[entry : entry + 4] != magic:  # the name also stands in the labels
            entry = data.index(name.encode(), entry + name_at + 1) - name_at
        data[entry + method : entry + method + 2] = struct.pack("<H", zipfile.ZIP_DEFLATED)
        data[entry + size : entry + size + 4] = struct.pack("<I", stated or megabytes << 20)
    path.write_bytes(data)
    return path


def encrypted(path: Path) -> Path:
    """An archive whose members are marked as encrypted."""
    data = bytearray(plain_zip(path, {"dataset.json": labels_text(), NAME: picture()}).read_bytes())
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.find(magic)
        while start >= 0:
            data[start + place] |= 1
            start = data.find(magic, start + 4)
    path.write_bytes(data)
    return path


def folder_with(path: Path, make: Callable[[Path], object]) -> Path:
    """A data set as a folder whose picture is made by `make`."""
    (path / "00000").mkdir(parents=True)
    (path / "dataset.json").write_bytes(labels_text())
    make(path / NAME)
    return path


def looping(path: Path) -> Path:
    """Links to folders above, several in each: 8^40 ways down."""
    (path / "00000").mkdir(parents=True)
    for index in range(8):
        (path / f"loop{index}").symlink_to("..", target_is_directory=True)
        (path / "00000" / f"loop{index}").symlink_to(".", target_is_directory=True)
    return path


def a_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def data_archives() -> dict[str, Callable[[Path], Path]]:
    """Data sets; each call writes one to a path."""
    good = {"dataset.json": labels_text(), NAME: picture()}
    blanks = {**good, "dataset.json": b" " * (20 << 20)}
    strange = [
        b"PK\x05\x06" + b"\xff" * 18,
        b"PK\x03\x04" + bytes(100),
        bytes(1000),
        b"PK\x06\x06" + b"\xff" * 80,
    ]
    writers: dict[str, Callable[[Path], Path]] = {
        "labels that swell": lambda path: swelling(path, "dataset.json", 4000),
        "labels that swell by bzip2": lambda path: plain_zip(path, blanks, zipfile.ZIP_BZIP2),
        "labels that swell by lzma": lambda path: plain_zip(path, blanks, zipfile.ZIP_LZMA),
        "labels said to be small": lambda path: swelling(path, "dataset.json", 4000, stated=5000),
        "a picture said to be small": lambda path: swelling(path, NAME, 4000, stated=5000),
        "a name above": lambda path: plain_zip(path, {**good, "../../evil.png": picture()}),
        "a name from the root": lambda path: plain_zip(path, {**good, "/etc/evil.png": picture()}),
        "a name of Windows": lambda path: plain_zip(path, {**good, "C:\\evil.png": picture()}),
        "a link": with_link,
        "encrypted": encrypted,
        "pipe as a picture": lambda path: folder_with(path, os.mkfifo),
        "zeros without end as a picture": lambda path: folder_with(
            path, lambda file: file.symlink_to("/dev/zero")
        ),
        "a link to itself as a picture": lambda path: folder_with(
            path, lambda file: file.symlink_to(file)
        ),
        "a secret as a picture": lambda path: folder_with(
            path, lambda file: file.symlink_to("/etc/passwd")
        ),
        "folders in a ring": looping,
        "a pipe": a_pipe,
    }
    for index, content in enumerate(strange):
        writers[f"no archive {index}"] = lambda path, content=content: (
            path.write_bytes(content),
            path,
        )[1]  # type: ignore[misc]
    for name, make in PNG_BOMBS.items():
        writers[name] = lambda path, make=make: plain_zip(path, {**good, NAME: make()})  # type: ignore[misc]
    for name, make in LABEL_BOMBS.items():
        writers[name] = lambda path, make=make: plain_zip(path, {**good, "dataset.json": make()})  # type: ignore[misc]
    return writers


# --------------------------------------------------------------------------------------------------
# Sources to convert


def transforms(**changes: Any) -> bytes:
    frame = {"file_path": "a.png", "transform_matrix": np.eye(4).tolist(), "fl_x": 100.0}
    return json.dumps({"frames": [{**frame, **changes}]}).encode()


def large_picture(mode: str) -> bytes:
    """A small file that is really a picture of 11000 x 11000 pixels."""
    file = io.BytesIO()
    Image.new(mode, (11_000, 11_000)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def one_frame(cameras: bytes, image: bytes | None = None) -> dict[str, bytes]:
    return {"transforms.json": cameras, "a.png": picture() if image is None else image}


SOURCES: dict[str, Callable[[], dict[str, bytes]]] = {
    "source: a name above": lambda: one_frame(transforms(file_path="../../../etc/passwd")),
    "source: an absolute name": lambda: one_frame(transforms(file_path="/etc/passwd")),
    "source: deep JSON": lambda: one_frame(b'{"frames":' + b"[" * 500_000),
    "source: deep frame": lambda: one_frame(b'{"frames":[' + b"[" * 900 + b"]" * 900 + b"]}"),
    "source: a list of 30 MB": lambda: one_frame(b" " * (30 << 20)),
    "source: infinite lens": lambda: one_frame(transforms(fl_x=1e999)),
    "source: a matrix of lists": lambda: one_frame(transforms(transform_matrix=[[[1]]] * 4)),
    "source: a matrix of numbers of 5000 digits": lambda: one_frame(
        transforms().replace(b"1.0", b"9" * 5000, 1)
    ),
    "source: COLMAP counts": lambda: {
        "images.bin": b"\xff" * 200, "cameras.bin": b"\xff" * 200, "a.png": picture()
    },
    "source: COLMAP names": lambda: {
        "images.bin": struct.pack("<Q", 2**40) + bytes(64) + b"x" * 1000,
        "cameras.bin": struct.pack("<Q", 0), "a.png": picture()
    },
    "source: a table of a million columns": lambda: {
        "a.csv": b"a," * 1_000_000, "a.png": picture()
    },
    "source: an endless cell": lambda: {
        "a.csv": b'file,yaw,pitch,radius,focal\n"' + b"x" * 1_000_000, "a.png": picture()
    },
    "source: 60000 pixels": lambda: one_frame(transforms(), png(60_000, 60_000)),
    "source: 12500 pixels": lambda: one_frame(transforms(), png(12_500, 12_500)),
    "source: rows that never come": lambda: one_frame(transforms(), png(11_000, 11_000)),
    "source: text of 100 MB": lambda: one_frame(transforms(), PNG_BOMBS["text of 100 MB"]()),
    "source: PostScript": lambda: one_frame(transforms(), PNG_BOMBS["PostScript"]()),
}  # fmt: skip
# Whole pictures of 121 million pixels: allowed, and to stay within the limits.
LARGE_SOURCES: dict[str, Callable[[], dict[str, bytes]]] = {
    f"source: a large picture, {mode}": lambda mode=mode: {
        "transforms.json": transforms(),
        "a.png": large_picture(mode),
    }  # type: ignore[misc]
    for mode in ("RGB", "RGBA", "I;16")
}


def good_data(path: Path) -> Path:
    """A whole data set."""
    return write_dataset(path, count=3)
