"""Members of ZIP archives, read without unpacking to disk and without believing what the archive
says about itself.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
import struct
import zipfile
from typing import IO

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
MAX_UNPACK_RATIO = 200  # of members above SMALL_BYTES; deflate's best on zeros is 1032
SMALL_BYTES = 64 << 20
LOCAL_HEADER = struct.Struct("<26sHH")  # before a member; the last two: bytes of name and extras


def safe_name(name: str) -> str | None:
    """`name` with forward slashes and without dots that mean folders; None if it is absolute or
    climbs out of its folder.
    """
    name = name.replace("\\", "/")
    if name.startswith("/") or "\0" in name:
        return None
    name = posixpath.normpath(name)
    return None if name == ".." or name.startswith("../") or re.match(r"[A-Za-z]:", name) else name


def is_link(info: zipfile.ZipInfo) -> bool:
    """Whether a member is a symbolic link, which names a file outside the archive."""
    return stat.S_ISLNK(info.external_attr >> 16)


def open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """A member as a stream, to be read in portions.

    Raises:
        ValueError: for methods of packing whose library unpacks all at once, whatever is asked for.
        KeyError, RuntimeError, zipfile.BadZipFile: if there is no such member, or it is encrypted
            or damaged.
    """
    info = archive.getinfo(name)
    _check_method(info)
    return archive.open(info)


def _check_method(info: zipfile.ZipInfo) -> None:
    if info.compress_type not in METHODS:
        raise ValueError(
            "it is packed in an uncommon way; pack the archive again, stored or deflated"
        )


def read_member(archive: zipfile.ZipFile, name: str, largest: int) -> bytes:
    """Content of a member, never more than its stated size in memory.

    Raises:
        ValueError: if it is larger than `largest` bytes, or small and unpacks to far more.
        KeyError, RuntimeError, zipfile.BadZipFile, zlib.error: as `open_member`.
    """
    info = archive.getinfo(name)
    _check_size(info, largest)
    with open_member(archive, name) as file:
        # a size given, the library unpacks no more than that at a time
        return file.read(info.file_size + 1)


def read_member_at(archive: IO[bytes], info: zipfile.ZipInfo, largest: int) -> bytes:
    """`read_member` of an entry that is known, without reading the archive's list of members.

    Raises:
        ValueError, zipfile.BadZipFile, zlib.error: as `read_member`.
    """
    _check_method(info)
    _check_size(info, largest)
    archive.seek(info.header_offset)
    header = archive.read(LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size or header[:4] != b"PK\3\4":
        raise zipfile.BadZipFile("there is no member where the archive's list had one")
    _, name_length, extra_length = LOCAL_HEADER.unpack(header)
    archive.seek(name_length + extra_length, os.SEEK_CUR)
    with zipfile.ZipExtFile(archive, "r", info) as file:
        return file.read(info.file_size + 1)


def _check_size(info: zipfile.ZipInfo, largest: int) -> None:
    packed_hard = info.file_size > SMALL_BYTES and info.file_size > MAX_UNPACK_RATIO * max(
        info.compress_size, 1
    )
    if info.file_size > largest or packed_hard:
        raise ValueError(
            f"it unpacks to {info.file_size >> 20} MB; that is no picture and no list of cameras:"
            " leave it out"
        )
