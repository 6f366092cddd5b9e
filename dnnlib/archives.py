"""Members of ZIP archives, read without unpacking to disk and without believing what the archive
says about itself.
"""

from __future__ import annotations

import posixpath
import re
import stat
import zipfile
from typing import IO

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
MAX_UNPACK_RATIO = 200  # of members above SMALL_BYTES; deflate's best on zeros is 1032
SMALL_BYTES = 64 << 20


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
    if info.compress_type not in METHODS:
        raise ValueError(
            "it is packed in an uncommon way; pack the archive again, stored or deflated"
        )
    return archive.open(info)


def read_member(archive: zipfile.ZipFile, name: str, largest: int) -> bytes:
    """Content of a member, never more than its stated size in memory.

    Raises:
        ValueError: if it is larger than `largest` bytes, or small and unpacks to far more.
        KeyError, RuntimeError, zipfile.BadZipFile, zlib.error: as `open_member`.
    """
    info = archive.getinfo(name)
    packed_hard = info.file_size > SMALL_BYTES and info.file_size > MAX_UNPACK_RATIO * max(
        info.compress_size, 1
    )
    if info.file_size > largest or packed_hard:
        raise ValueError(
            f"it unpacks to {info.file_size >> 20} MB; that is no picture and no list of cameras:"
            " leave it out"
        )
    with open_member(archive, name) as file:
        # a size given, the library unpacks no more than that at a time
        return file.read(info.file_size + 1)
