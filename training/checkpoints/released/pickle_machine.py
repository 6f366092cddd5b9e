"""Carries out a pickle's instructions without running what the pickle names.

A pickle is a program: it names functions and has them called. This machine decodes its instructions
with the standard library's disassembler and carries out only those that build plain data. A name is
never imported: it reaches one of the rebuilders that the machine is given, or becomes an inert
`Stub` that remembers what was asked for.
"""

from __future__ import annotations

import functools
import io
import mmap
import pickletools
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import IO, Any

MAX_INSTRUCTIONS = 2_000_000  # a 512-pixel snapshot has about 0.1 million
# calls to these become stubs; the rest is refused
HARMLESS_STANDARD_MODULES = {"collections", "datetime", "functools", "pathlib"}


@dataclass(frozen=True)
class Name:
    """A class or function that the file mentions. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return repr(f"{self.module}.{self.name}")[1:81].rstrip("'")


@dataclass(eq=False, repr=False)
class Stub:
    """An object that the file wanted to build by calling `name` with `args`, and the state it
    wanted to give it.
    """

    name: Name
    args: tuple[Any, ...] = ()
    state: Any = None


def check_instructions(
    content: bytes, names: Collection[tuple[str, str]], persistent: Callable[[Any], Any]
) -> None:
    """Go through a pickle that another reader is to open, building nothing, and refuse what could
    hurt that reader.

    Args:
        names: Module and name of all that the pickle may mention.
        persistent: Checks each reference to data outside the pickle.

    Raises:
        UnpicklingError: for other names, keys that take for ever to hash, and more instructions
            than any checkpoint has.
        Exception: of any kind, for damaged content.
    """
    inert = {
        (module, name): functools.partial(_inert, Name(module, name)) for module, name in names
    }
    Machine(inert, persistent, names=names).run(io.BytesIO(content))


def _inert(name: Name, *args: Any) -> Any:
    """What stands for a call; an ordered dict must take entries."""
    return {} if name.name == "OrderedDict" else Stub(name, args)


# Instructions that need no method of their own, by what they do.
_LITERALS = {
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "UNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "SHORT_BINBYTES",
    "BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
}
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
    "DICT": lambda items: set_items({}, items),
    "FROZENSET": lambda items: frozenset(map(hashable, items)),
}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = {"PROTO", "FRAME"}
_STORE = {"PUT", "BINPUT", "LONG_BINPUT"}
_FETCH = {"GET", "BINGET", "LONG_BINGET"}


class Machine:
    """Carries out a pickle's instructions on a stack; `rebuilders` are the only functions that a
    pickle can reach.

    Args:
        persistent: What a reference to data outside the pickle stands for; None = there may be
            none.
        names: All that the pickle may mention; None = anything, which stays inert.
    """

    def __init__(
        self,
        rebuilders: Mapping[tuple[str, str], Callable[..., Any]],
        persistent: Callable[[Any], Any] | None = None,
        *,
        names: Collection[tuple[str, str]] | None = None,
        max_instructions: int = MAX_INSTRUCTIONS,
    ) -> None:
        self.rebuilders = rebuilders
        self.persistent = persistent
        self.names = names
        self.max_instructions = max_instructions
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def rebuild(self, rebuilder: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """What stands for a call of a name that has a rebuilder."""
        return rebuilder(*args)

    def set_state(self, target: Any, state: Any) -> None:
        """Give an object the state that the pickle has for it."""
        if isinstance(target, Stub):
            target.state = state
        elif not isinstance(target, dict):  # which is complete without its extra attributes
            raise UnpicklingError("it gives a state to something that has none")

    def run(self, stream: IO[bytes] | mmap.mmap) -> Any:
        """Result of the pickle that starts at the position of `stream`, which is left behind its
        end.
        """
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
        set_items(self.stack[-1], items)

    def _on_setitems(self, _: None) -> None:
        items = self._pop_mark()
        set_items(self.stack[-1], items)

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
        rebuilder = self.rebuilders.get((callee.module, callee.name))
        if rebuilder is not None:
            return self.rebuild(rebuilder, args)
        root = callee.module.split(".")[0]
        if root == "__builtin__" or (
            root in sys.stdlib_module_names and root not in HARMLESS_STANDARD_MODULES
        ):
            raise UnpicklingError(f"it asks to call {callee}, which no snapshot needs")
        return Stub(callee, args)

    def _on_build(self, _: None) -> None:
        (state,) = self._pop(1)
        self.set_state(self.stack[-1], state)

    def _on_binpersid(self, _: None) -> None:
        if self.persistent is None:
            raise UnpicklingError("it refers to data outside itself")
        self.stack.append(self.persistent(*self._pop(1)))


def hashable(key: Any) -> Any:
    """`key` if hashing it is cheap: nested tuples can be built that take for ever or overflow the C
    stack.
    """
    plain = (str, int, float, bool, bytes, type(None), Name, Stub)
    if isinstance(key, plain) or (
        isinstance(key, tuple) and all(isinstance(item, plain) for item in key)
    ):
        return key
    raise UnpicklingError(f"it uses a {type(key).__name__} as a key")


def set_items(target: Any, items: list[Any]) -> Any:
    """Enter alternating keys and values into a dict; a stub takes no notice of them."""
    if len(items) % 2 or not isinstance(target, (dict, Stub)):
        raise UnpicklingError("its instructions do not fit together")
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[hashable(key)] = value
    return target


def _add_items(target: Any, items: list[Any]) -> None:
    """Append to a list or add to a set; a stub takes no notice of them."""
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, set):
        target.update(map(hashable, items))
    elif not isinstance(target, Stub):
        raise UnpicklingError("its instructions do not fit together")
