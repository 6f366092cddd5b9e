"""Reads what `torch.save` wrote, after checks that PyTorch's own loader leaves out.

With `weights_only=True` PyTorch runs no code of a file. But a few bytes can still keep it busy for
ever or ask for more memory than there is, so the archive's records and the instructions of its
pickle are looked at first.
"""

from __future__ import annotations

import os
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from dnnlib.console import UserError
from training.checkpoints.released.pickle_machine import Stub, check_instructions
from training.checkpoints.released.unpickler import STORAGE_ITEM_SIZES

PICKLE_NAME = "data.pkl"
# bytes of an archive's list of records; a checkpoint's has about 0.1 million
MAX_DIRECTORY = 4 << 20
END_RECORD = struct.Struct("<4s4H2LH")
END_MAGIC = b"PK\x05\x06"
NAMES = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    *(("torch", name) for name in STORAGE_ITEM_SIZES),
}
ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
)


def read_torch_archive(path: Path) -> Any:
    """Content of a file that `torch.save` wrote: tensors on the CPU and plain values.

    Raises:
        UserError: if it is cut off, damaged, another kind of archive, or holds more than tensors
            and plain values.
    """
    instructions = _check_archive(path)
    try:
        check_instructions(instructions, NAMES, _check_reference)
        # of a name torch takes the ending for the file's kind
        with open(path, "rb") as file, warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location="cpu", weights_only=True)
    # hostile bytes can fail in any way; the person sees one line whichever it is
    except Exception as error:
        reason = "it holds more than tensors and plain values, and nothing in it was run"
        raise UserError(f"{path} is not a checkpoint of this program: {reason}") from error


def _check_archive(path: Path) -> bytes:
    """The pickle of an archive whose records are whole, stored as they are, and neither share bytes
    nor names.
    """
    damaged = f"{path} is damaged or cut off; take an earlier checkpoint or fetch the file again"
    try:
        if _directory_size(path) > MAX_DIRECTORY:
            raise UserError(damaged)
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            pickles = [
                record for record in records if record.filename.rpartition("/")[2] == PICKLE_NAME
            ]
            if not pickles:
                raise UserError(f"{path} is a zip archive of another program, not a checkpoint")
            if (
                len(pickles) > 1
                or not _are_plain(records, path.stat().st_size)
                or archive.testzip() is not None
            ):
                raise UserError(damaged)
            return archive.read(pickles[0])
    except ARCHIVE_ERRORS as error:
        raise UserError(damaged) from error


def _directory_size(path: Path) -> int:
    """Bytes of the archive's list of records, read from its end, where PyTorch writes no
    comment.
    """
    with open(path, "rb") as file:
        file.seek(-END_RECORD.size, os.SEEK_END)
        magic, *_, size, _offset, comment = END_RECORD.unpack(file.read(END_RECORD.size))
    if magic != END_MAGIC or comment:
        raise zipfile.BadZipFile("no end of the archive")
    return int(size)


def _are_plain(records: list[zipfile.ZipInfo], file_size: int) -> bool:
    """Whether records are stored, all in one folder, under different names, and together no larger
    than the file.

    PyTorch's reader takes names without regard to case, Python's with; so that both see the same
    records, there must be no two.
    """
    folder = records[0].filename.partition("/")[0]
    return (
        all(
            record.compress_type == zipfile.ZIP_STORED and record.file_size == record.compress_size
            for record in records
        )
        and all(record.filename.startswith(f"{folder}/") for record in records)
        and len({record.filename.lower() for record in records}) == len(records)
        and sum(record.file_size for record in records) <= file_size
    )


def _check_reference(value: Any) -> Stub | None:
    """Whether a reference out of the pickle is one to a tensor's numbers."""
    kind, storage, key, location, count = value
    is_storage = (
        kind == "storage" and (storage.module, storage.name) in NAMES and storage.module == "torch"
    )
    if (
        not is_storage
        or type(key) is not str
        or type(location) is not str
        or type(count) is not int
        or count < 0
    ):
        raise ValueError("a tensor in it is no plain tensor")
    return None
