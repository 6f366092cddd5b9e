"""Reads released snapshots without running anything in them.

A handful of names that they need (tensors, numpy scalars, ordered dicts, persistent modules) are
rebuilt by functions of this file; every other name becomes an inert `Stub`. Nothing is imported and
no embedded source is compiled.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import MAGIC_NUMBER

from dnnlib.console import UserError
from training.checkpoints.released.pickle_machine import (
    MAX_INSTRUCTIONS,
    Machine,
    Name,
    Stub,
    hashable,
    set_items,
)

MAX_STORAGE_INSTRUCTIONS = 100  # of each of the pickles around a tensor's numbers
SPARE_BYTES = 1 << 20
STORAGE_ITEM_SIZES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8,
    "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
NUMPY_TYPE_CODES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """Object graph of the pickle at `path`: plain values, CPU tensors and `Stub` objects. Runs
    nothing.

    Raises:
        UserError: if the file is missing, cut off, damaged, or asks for something no snapshot
            needs.
    """
    path = Path(path)
    try:
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return _SnapshotReader(_Budget(2 * len(content) + SPARE_BYTES)).run(content)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    # hostile bytes can fail in any way; the person sees one line whichever it is
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        advice = "nothing in it was run; fetch it again from a source you trust"
        raise UserError(f"{path} cannot be read as a snapshot: {reason}; {advice}") from error


class _Budget:
    """Limits what calls may copy altogether: a pickle can mention one large object a million
    times.
    """

    def __init__(self, data_bytes: int) -> None:
        self.bytes, self.items = data_bytes, MAX_INSTRUCTIONS

    def charge(self, args: tuple[Any, ...]) -> None:
        """Count what a call is given."""
        self.bytes -= sum(len(arg) for arg in args if isinstance(arg, (bytes, bytearray, str)))
        self.items -= len(args) + sum(
            len(arg) for arg in args if isinstance(arg, (list, tuple, dict, set, frozenset))
        )
        if self.bytes < 0 or self.items < 0:
            raise UnpicklingError("it copies its content again and again")


class _SnapshotReader(Machine):
    """The machine with the rebuilders of this file, which may copy so much."""

    def __init__(self, budget: _Budget) -> None:
        super().__init__(REBUILDERS)
        self.budget = budget

    def rebuild(self, rebuilder: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """What stands for a call, if the budget allows it."""
        self.budget.charge(args)
        return super().rebuild(rebuilder, args)

    def set_state(self, target: Any, state: Any) -> None:
        """The state of numpy's values comes after them; tensors are complete without their extra
        attributes.
        """
        if isinstance(target, _NumpyType):
            target.set_byte_order(state)
        elif isinstance(target, np.ndarray):
            if isinstance(state, tuple):
                self.budget.charge(state)
            _fill_array(target, state)
        elif not isinstance(target, Tensor):
            super().set_state(target, state)


# --------------------------------------------------------------------------------------------------
# What may be rebuilt


def _rebuild_module(meta: Any) -> Stub:
    """A persistent module: its class name and state are kept, the source text that travels with it
    is dropped unread.
    """
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
        raise UnpicklingError("a module in it has no class name")
    return Stub(Name("", meta["class_name"]), (), meta.get("state"))


def _load_storage(payload: Any) -> Any:
    """Flat tensor data from a nested torch file; checked first, so that a small file cannot ask for
    much memory.
    """
    if not isinstance(payload, bytes):
        raise UnpicklingError("a tensor in it has no data")
    _check_storage_payload(payload)
    with warnings.catch_warnings(action="ignore"):
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)


def _check_storage_payload(payload: bytes) -> None:
    """Refuse a nested torch file that holds anything but one storage whose declared size is the
    size of its data.
    """
    stream = io.BytesIO(payload)
    magic, _version, _system, reference, keys = (_read_part(stream) for _ in range(5))
    try:
        ((kind, storage, key, location, length, view),) = reference
        item_size = STORAGE_ITEM_SIZES[storage.name]
    except (TypeError, ValueError, AttributeError, KeyError):
        raise UnpicklingError("a tensor in it is no plain tensor") from None
    is_plain = (
        magic == MAGIC_NUMBER and kind == "storage" and storage.module == "torch" and view is None
    )
    if (
        not is_plain
        or type(key) is not str
        or type(location) is not str
        or keys != [key]
        or type(length) is not int
    ):
        raise UnpicklingError("a tensor in it is no plain tensor")
    if length < 0 or len(payload) - stream.tell() != 8 + length * item_size:
        raise UnpicklingError("a tensor in it is cut off")


def _read_part(stream: IO[bytes]) -> Any:
    """One of the pickles of a nested torch file."""
    return Machine(
        {}, persistent=lambda value: (value,), max_instructions=MAX_STORAGE_INSTRUCTIONS
    ).run(stream)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """Tensor over a storage, after a check that it lies inside and repeats no element."""
    if not isinstance(storage, torch.storage.TypedStorage):
        raise UnpicklingError("a tensor in it has no data")
    if len(size) != len(stride) or any(
        type(value) is not int or value < 0 for value in (offset, *size, *stride)
    ):
        raise UnpicklingError("a tensor in it has an impossible shape")
    count, available = math.prod(size), storage._size()
    last = (
        offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if count
        else 0
    )
    if count > available or (count and last >= available):
        raise UnpicklingError("a tensor in it is larger than its data")
    return torch._utils._rebuild_tensor(storage, offset, tuple(size), tuple(stride))


def _rebuild_parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise UnpicklingError("a parameter in it is no tensor")
    return data


@dataclass
class _NumpyType:
    """A plain numeric numpy type; its byte order arrives later, as the state."""

    dtype: np.dtype[Any]

    def set_byte_order(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.dtype = self.dtype.newbyteorder(state[1])
        else:
            raise UnpicklingError("it has a number of an unknown type")


def _numpy_type(code: Any, *_: Any) -> _NumpyType:
    if code not in NUMPY_TYPE_CODES:
        raise UnpicklingError("it has a number of an unknown type")
    return _NumpyType(np.dtype(code))


def _numpy_scalar(kind: Any, data: Any) -> int | float | bool:
    """A numpy scalar as the Python number it equals."""
    if (
        not isinstance(kind, _NumpyType)
        or not isinstance(data, bytes)
        or len(data) != kind.dtype.itemsize
    ):
        raise UnpicklingError("it has a number of an unknown type")
    return np.frombuffer(data, kind.dtype)[0].item()


def _empty_array(*_: Any) -> np.ndarray:
    """An array that gets its shape and content later, as the state; its numbers become float64."""
    return np.empty(0)


def _fill_array(array: np.ndarray, state: Any) -> None:
    _version, shape, kind, fortran, data = state
    if not isinstance(kind, _NumpyType) or not isinstance(data, bytes):
        raise UnpicklingError("it has an array of an unknown type")
    values = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if fortran else "C")
    array.resize(values.shape, refcheck=False)
    array[...] = values


def _plain_set(items: Iterable[Any] = ()) -> set[Any]:
    return set(map(hashable, items))


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise UnpicklingError("it has bytes in an unknown form")
    return text.encode("latin1")


def _plain_dict(items: Any = ()) -> dict[Any, Any]:
    return set_items({}, [part for key, value in items for part in (key, value)])


REBUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _rebuild_module,
    ("collections", "OrderedDict"): _plain_dict,
    ("dnnlib.util", "EasyDict"): _plain_dict,
    ("torch.storage", "_load_from_bytes"): _load_storage,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch", "Size"): lambda sizes=(): tuple(sizes),
    ("numpy", "dtype"): _numpy_type,
    ("builtins", "set"): _plain_set,
    ("__builtin__", "set"): _plain_set,
    ("_codecs", "encode"): _encode,
}
for _package in ("numpy.core.multiarray", "numpy._core.multiarray"):
    REBUILDERS[_package, "scalar"] = _numpy_scalar
    REBUILDERS[_package, "_reconstruct"] = _empty_array
