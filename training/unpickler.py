"""Reads pickles without running anything in them.

A pickle is a program: it names functions and has them called. This reader decodes its instructions with the standard
library's disassembler and carries out only those that build plain data. A handful of names that released snapshots need
(tensors, numpy scalars, ordered dicts, persistent modules) are rebuilt by functions of this file; every other name becomes
an inert `Stub` that remembers what was asked for. Nothing is imported and no embedded source is compiled.
"""

from __future__ import annotations

import functools
import io
import math
import mmap
import os
import pickletools
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import MAGIC_NUMBER

from dnnlib.console import UserError

MAX_INSTRUCTIONS = 2_000_000  # a 512-pixel snapshot has about 0.1 million
MAX_STORAGE_INSTRUCTIONS = 100  # of each of the pickles around a tensor's numbers
SPARE_BYTES = 1 << 20
STORAGE_ITEM_SIZES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8,
    "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
NUMPY_TYPE_CODES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
HARMLESS_STANDARD_MODULES = {"collections", "datetime", "functools", "pathlib"}  # calls to these become stubs; the rest is refused


@dataclass(frozen=True)
class Name:
    """A class or function that the file mentions. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return repr(f"{self.module}.{self.name}")[1:81].rstrip("'")


@dataclass(eq=False, repr=False)
class Stub:
    """An object that the file wanted to build by calling `name` with `args`, and the state it wanted to give it."""

    name: Name
    args: tuple[Any, ...] = ()
    state: Any = None


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """Object graph of the pickle at `path`: plain values, CPU tensors and `Stub` objects. Runs nothing.

    Raises:
        UserError: if the file is missing, cut off, damaged, or asks for something no snapshot needs.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Machine(REBUILDERS, budget=_Budget(2 * len(content) + SPARE_BYTES)).run(content)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # hostile bytes can fail in any way; the person sees one line whichever it is
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        advice = "nothing in it was run; fetch it again from a source you trust"
        raise UserError(f"{path} cannot be read as a snapshot: {reason}; {advice}") from error


def check_instructions(content: bytes, names: Collection[tuple[str, str]], persistent: Callable[[Any], Any]) -> None:
    """Go through a pickle that another reader is to open, building nothing, and refuse what could hurt that reader.

    Args:
        names: Module and name of all that the pickle may mention.
        persistent: Checks each reference to data outside the pickle.

    Raises:
        UnpicklingError: for other names, keys that take for ever to hash, and more instructions than any checkpoint has.
        Exception: of any kind, for damaged content.
    """
    inert = {(module, name): functools.partial(_inert, Name(module, name)) for module, name in names}
    _Machine(inert, persistent, names=names).run(io.BytesIO(content))


def _inert(name: Name, *args: Any) -> Any:
    """What stands for a call; an ordered dict must take entries."""
    return {} if name.name == "OrderedDict" else Stub(name, args)


# ---------------------------------------------------------------------------------------------------------------------
# The stack machine

_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE",
    "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_COLLECT: dict[str, Callable[[list[Any]], Any]] = {
    "TUPLE": tuple,
    "LIST": list,
    "DICT": lambda items: _set_items({}, items),
    "FROZENSET": lambda items: frozenset(map(_hashable, items)),
}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = {"PROTO", "FRAME"}
_STORE = {"PUT", "BINPUT", "LONG_BINPUT"}
_FETCH = {"GET", "BINGET", "LONG_BINGET"}


class _Budget:
    """Limits what calls may copy altogether: a pickle can mention one large object a million times."""

    def __init__(self, data_bytes: int) -> None:
        self.bytes, self.items = data_bytes, MAX_INSTRUCTIONS

    def charge(self, args: tuple[Any, ...]) -> None:
        """Count what a call is given."""
        self.bytes -= sum(len(arg) for arg in args if isinstance(arg, (bytes, bytearray, str)))
        self.items -= len(args) + sum(len(arg) for arg in args if isinstance(arg, (list, tuple, dict, set, frozenset)))
        if self.bytes < 0 or self.items < 0:
            raise UnpicklingError("it copies its content again and again")


class _Machine:
    """Carries out a pickle's instructions on a stack; `rebuilders` are the only functions that a pickle can reach.

    Args:
        persistent: What a reference to data outside the pickle stands for; None = there may be none.
        names: All that the pickle may mention; None = anything, which stays inert.
        budget: None = calls copy nothing.
    """

    def __init__(
        self,
        rebuilders: Mapping[tuple[str, str], Callable[..., Any]],
        persistent: Callable[[Any], Any] | None = None,
        *,
        names: Collection[tuple[str, str]] | None = None,
        budget: _Budget | None = None,
        max_instructions: int = MAX_INSTRUCTIONS,
    ) -> None:
        self.rebuilders = rebuilders
        self.persistent = persistent
        self.names = names
        self.budget = budget
        self.max_instructions = max_instructions
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: IO[bytes] | mmap.mmap) -> Any:
        """Result of the pickle that starts at the position of `stream`, which is left behind its end."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
            if count > self.max_instructions:
                raise UnpicklingError("it has more instructions than any snapshot")
            if opcode.name != "STOP":
                self._step(opcode.name, argument)
        return self.stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _FRESH:
            stack.append(_FRESH[name]())
        elif name in _FETCH:
            stack.append(self.memo[int(argument)])
        elif name in _STORE:
            self.memo[int(argument)] = stack[-1]
        elif name in _SHORT_TUPLES:
            stack.append(tuple(self._pop(_SHORT_TUPLES[name])))
        elif name in _COLLECT:
            stack.append(_COLLECT[name](self._pop_mark()))
        elif name not in _IGNORED:
            handler = getattr(self, f"_on_{name.lower()}", None)
            if handler is None:
                raise UnpicklingError(f"it uses the instruction {name}, which no snapshot needs")
            handler(argument)

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise UnpicklingError("its instructions do not fit together")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def _pop_mark(self) -> list[Any]:
        return self._pop(len(self.stack) - self.marks.pop())

    def _on_mark(self, _: None) -> None:
        self.marks.append(len(self.stack))

    def _on_pop(self, _: None) -> None:
        self._pop(1)

    def _on_pop_mark(self, _: None) -> None:
        self._pop_mark()

    def _on_dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def _on_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _on_append(self, _: None) -> None:
        _add_items(self.stack[-2], self._pop(1))

    def _on_appends(self, _: None) -> None:
        items = self._pop_mark()
        _add_items(self.stack[-1], items)

    _on_additems = _on_appends

    def _on_setitem(self, _: None) -> None:
        items = self._pop(2)
        _set_items(self.stack[-1], items)

    def _on_setitems(self, _: None) -> None:
        items = self._pop_mark()
        _set_items(self.stack[-1], items)

    def _on_global(self, argument: str) -> None:
        self._mention(*argument.split(" ", 1))

    def _on_stack_global(self, _: None) -> None:
        module, name = self._pop(2)
        if type(module) is not str or type(name) is not str:
            raise UnpicklingError("it names a class by something that is no text")
        self._mention(module, name)

    def _mention(self, module: str, name: str) -> None:
        if self.names is not None and (module, name) not in self.names:
            raise UnpicklingError(f"it names {Name(module, name)}, which no checkpoint needs")
        self.stack.append(Name(module, name))

    def _on_reduce(self, _: None) -> None:
        callee, args = self._pop(2)
        self.stack.append(self._call(callee, args))

    _on_newobj = _on_reduce

    def _on_newobj_ex(self, _: None) -> None:
        callee, args, _keywords = self._pop(3)
        self.stack.append(self._call(callee, args))

    def _call(self, callee: Any, args: Any) -> Any:
        """What stands for `callee(*args)`."""
        if not isinstance(callee, Name) or not isinstance(args, tuple):
            raise UnpicklingError("it calls something that is no name")
        rebuild = self.rebuilders.get((callee.module, callee.name))
        if rebuild is not None:
            if self.budget is not None:
                self.budget.charge(args)
            return rebuild(*args)
        root = callee.module.split(".")[0]
        if root == "__builtin__" or (root in sys.stdlib_module_names and root not in HARMLESS_STANDARD_MODULES):
            raise UnpicklingError(f"it asks to call {callee}, which no snapshot needs")
        return Stub(callee, args)

    def _on_build(self, _: None) -> None:
        (state,) = self._pop(1)
        target = self.stack[-1]
        if isinstance(target, Stub):
            target.state = state
        elif isinstance(target, _NumpyType):
            target.set_byte_order(state)
        elif isinstance(target, np.ndarray):
            if self.budget is not None and isinstance(state, tuple):
                self.budget.charge(state)
            _fill_array(target, state)
        elif not isinstance(target, (dict, Tensor)):  # these are complete without their extra attributes
            raise UnpicklingError("it gives a state to something that has none")

    def _on_binpersid(self, _: None) -> None:
        if self.persistent is None:
            raise UnpicklingError("it refers to data outside itself")
        self.stack.append(self.persistent(*self._pop(1)))


def _hashable(key: Any) -> Any:
    """`key` if hashing it is cheap: nested tuples can be built that take for ever or overflow the C stack."""
    plain = (str, int, float, bool, bytes, type(None), Name, Stub)
    if isinstance(key, plain) or (isinstance(key, tuple) and all(isinstance(item, plain) for item in key)):
        return key
    raise UnpicklingError(f"it uses a {type(key).__name__} as a key")


def _set_items(target: Any, items: list[Any]) -> Any:
    """Enter alternating keys and values into a dict; a stub takes no notice of them."""
    if len(items) % 2 or not isinstance(target, (dict, Stub)):
        raise UnpicklingError("its instructions do not fit together")
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_hashable(key)] = value
    return target


def _add_items(target: Any, items: list[Any]) -> None:
    """Append to a list or add to a set; a stub takes no notice of them."""
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, set):
        target.update(map(_hashable, items))
    elif not isinstance(target, Stub):
        raise UnpicklingError("its instructions do not fit together")


# ---------------------------------------------------------------------------------------------------------------------
# What may be rebuilt


def _rebuild_module(meta: Any) -> Stub:
    """A persistent module: its class name and state are kept, the source text that travels with it is dropped unread."""
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
        raise UnpicklingError("a module in it has no class name")
    return Stub(Name("", meta["class_name"]), (), meta.get("state"))


def _load_storage(payload: Any) -> Any:
    """Flat tensor data from a nested torch file; checked first, so that a small file cannot ask for much memory."""
    if not isinstance(payload, bytes):
        raise UnpicklingError("a tensor in it has no data")
    _check_storage_payload(payload)
    with warnings.catch_warnings(action="ignore"):
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)


def _check_storage_payload(payload: bytes) -> None:
    """Refuse a nested torch file that holds anything but one storage whose declared size is the size of its data."""
    stream = io.BytesIO(payload)
    magic, _version, _system, reference, keys = (_read_part(stream) for _ in range(5))
    try:
        ((kind, storage, key, location, length, view),) = reference
        item_size = STORAGE_ITEM_SIZES[storage.name]
    except (TypeError, ValueError, AttributeError, KeyError):
        raise UnpicklingError("a tensor in it is no plain tensor") from None
    is_plain = magic == MAGIC_NUMBER and kind == "storage" and storage.module == "torch" and view is None
    if not is_plain or type(key) is not str or type(location) is not str or keys != [key] or type(length) is not int:
        raise UnpicklingError("a tensor in it is no plain tensor")
    if length < 0 or len(payload) - stream.tell() != 8 + length * item_size:
        raise UnpicklingError("a tensor in it is cut off")


def _read_part(stream: IO[bytes]) -> Any:
    """One of the pickles of a nested torch file."""
    return _Machine({}, persistent=lambda value: (value,), max_instructions=MAX_STORAGE_INSTRUCTIONS).run(stream)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """Tensor over a storage, after a check that it lies inside and repeats no element."""
    if not isinstance(storage, torch.storage.TypedStorage):
        raise UnpicklingError("a tensor in it has no data")
    if len(size) != len(stride) or any(type(value) is not int or value < 0 for value in (offset, *size, *stride)):
        raise UnpicklingError("a tensor in it has an impossible shape")
    count, available = math.prod(size), storage._size()
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if count else 0
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
    if not isinstance(kind, _NumpyType) or not isinstance(data, bytes) or len(data) != kind.dtype.itemsize:
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
    return set(map(_hashable, items))


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise UnpicklingError("it has bytes in an unknown form")
    return text.encode("latin1")


def _plain_dict(items: Any = ()) -> dict[Any, Any]:
    return _set_items({}, [part for key, value in items for part in (key, value)])


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
