"""Hostile snapshots: pickles that call, copy, nest and lie. Functions take the path of a file that
must never appear.
"""

from __future__ import annotations

import io
import marshal
import os
import pickle
import struct
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.released_layout import Call, Layout, Ref, write_pickle, write_snapshot

PROTO = b"\x80\x04"


class Executes:
    """Pickles as a call; loading it the usual way makes that call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def binary(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def called(function: bytes, *arguments: bytes) -> bytes:
    """The instructions of a call with one to three arguments."""
    return function + b"".join(arguments) + bytes([0x84 + len(arguments)]) + b"R"


def snapshot_of(value: bytes) -> bytes:
    """A pickle whose averaged generator is what the instructions `value` leave."""
    return PROTO + b"}" + text("G_ema") + value + b"s."


def command(canary: Path) -> str:
    return f"touch {canary}"


def source(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').close()"


def nested_torch_file(exploit: bytes) -> bytes:
    """Numbers of a tensor, the fourth of whose five pickles is the exploit."""
    values = torch.zeros(4)
    _, (payload,) = torch.storage.TypedStorage(
        wrap_storage=values.untyped_storage(), dtype=values.dtype, _internal=True
    ).__reduce__()
    start = payload.index(b"\x80\x02(X\x07")
    return payload[:start] + exploit + payload[start:]


LOAD_STORAGE = named("torch.storage", "_load_from_bytes")


def storage(payload: bytes) -> bytes:
    return called(LOAD_STORAGE, binary(payload))


def exploits(canary: Path) -> dict[str, bytes]:
    """Pickles that really run something when they are loaded the usual way."""
    run, code = command(canary), source(canary)
    inner = pickle.dumps(Executes(os.system, run), 2)
    function = marshal.dumps(compile(code, "x", "exec"))
    return {
        "reduce os.system": snapshot_of(called(named("os", "system"), text(run))),
        "reduce posix.system": snapshot_of(called(named("posix", "system"), text(run))),
        "reduce subprocess": pickle.dumps(
            {"G_ema": Executes(subprocess.check_call, ["touch", str(canary)])}, 4),
        "reduce eval": snapshot_of(called(named("builtins", "eval"), text(code))),
        "reduce exec": snapshot_of(called(named("builtins", "exec"), text(code))),
        "reduce old name of eval":
            PROTO[:1] + b"\x02" + called(named("__builtin__", "eval"), text(code)) + b".",
        "reduce open": snapshot_of(called(named("builtins", "open"), text(str(canary)), text("w"))),
        "reduce runpy": snapshot_of(called(
            named("runpy", "_run_code"),
            called(named("builtins", "compile"), text(code), text("x"), text("exec")), b"}")),
        "getattr chain": snapshot_of(called(
            called(named("builtins", "getattr"),
                   called(named("builtins", "__import__"), text("os")), text("system")),
            text(run))),
        "attrgetter chain": snapshot_of(called(
            called(called(named("operator", "attrgetter"), text("system")),
                   called(named("importlib", "import_module"), text("os"))),
            text(run))),
        "methodcaller chain": snapshot_of(called(
            called(named("operator", "methodcaller"), text("system"), text(run)),
            called(named("importlib", "import_module"), text("os")))),
        "partial": snapshot_of(
            called(named("functools", "partial"), named("os", "system"), text(run)) + b")R"),
        "dotted name":
            PROTO + called(text("os") + text("path.os.system") + b"\x93", text(run)) + b".",
        "names from memory":
            PROTO + text("os") + b"\x94" + text("system") + b"\x94" + b"0" * 2
            + called(b"h\x00h\x01\x93", text(run)) + b".",
        "function of code": snapshot_of(called(
            named("types", "FunctionType"),
            called(named("marshal", "loads"), binary(function)), b"}",
        ) + b")R"),
        "pickle in a pickle": snapshot_of(called(named("pickle", "loads"), binary(inner))),
        "inst": b"\x80\x02(" + text(run) + b"ios\nsystem\n.",
        "obj": b"\x80\x02(" + named("os", "system") + text(run) + b"o.",
        "newobj": snapshot_of(
            named("subprocess", "Popen") + b"]" + text(run) + b"a" + b"\x85\x81"),
        "numpy object": snapshot_of(called(
            named("numpy._core.multiarray", "scalar"),
            called(named("numpy", "dtype"), text("O8"), b"\x89", b"\x88"), binary(inner))),
        "factory": snapshot_of(
            called(named("collections", "defaultdict"), named("os", "system"))
            + called(named("builtins", "eval"), text(code)) + b"0"),
        "in a list far inside": pickle.dumps(
            {"training_set_kwargs": [[[{"a": (Executes(os.system, run),)}]]]}, 4),
        "hidden from the stack": PROTO + called(named("os", "system"), text(run)) + b"0}.",
        "protocol 0": f"cos\nsystem\n(S'{run}'\ntR.".encode(),
    }  # fmt: skip


def tricks(canary: Path) -> dict[str, bytes]:
    """Pickles that run something only in a careless reader of snapshots."""
    run = command(canary)
    exploit = pickle.dumps(Executes(os.system, run), 2)
    zipped = io.BytesIO()
    torch.save(Executes(os.system, run), zipped)
    return {
        "nested torch file": snapshot_of(storage(nested_torch_file(exploit))),
        "nested zip": snapshot_of(storage(zipped.getvalue())),
        "nested pickle": snapshot_of(storage(exploit)),
        "torch.load": snapshot_of(called(named("torch", "load"), text("x")) + b")R"),
        "torch.hub": snapshot_of(called(named("torch.hub", "load"), text("a/b"), text("c"))),
        "build a class": snapshot_of(
            named("collections", "OrderedDict") + b"}" + text("__init__") + named("os", "system")
            + b"sb"),
        "state of a function": snapshot_of(
            named("torch._utils", "_rebuild_tensor") + b"}" + text("__code__") + text("x") + b"sb"),
        "extension": PROTO + b"\x82\x01.",
        "persistent": PROTO + text("file:///etc/passwd") + b"Q.",
        "reconstructor": snapshot_of(called(
            named("copyreg", "_reconstructor"),
            named("os", "system"), named("builtins", "object"), b"N")),
    }  # fmt: skip


def excesses() -> dict[str, bytes]:
    """Pickles of a few bytes that ask for much time or memory."""
    again = called(b"h\x01", b"h\x00") * 100_000 + b"."
    million = b"(" + b"N" * 1_000_000 + b"l0"
    many = PROTO + b"](" + b"K\x01" * 100_000 + b"e\x940"
    payload = binary(nested_torch_file(b""))
    return {
        "huge bytes": PROTO + b"\x8e" + b"\xff" * 7 + b"\x3f.",
        "huge text": PROTO + b"\x8d" + b"\xff" * 7 + b"\x3f.",
        "huge bytearray": PROTO + b"\x96" + b"\xff" * 7 + b"\x3f.",
        "huge frame": PROTO + b"\x95" + b"\xff" * 7 + b"\x7f" + b"}.",
        "huge integer": snapshot_of(b"\x8b\xff\xff\xff\x7f"),
        "long integer": snapshot_of(b"\x8b" + struct.pack("<I", 1 << 20) + b"\x7f" * (1 << 20)),
        "many digits": snapshot_of(b"I" + b"9" * 100_000 + b"\n"),
        "far memory": PROTO + b"}r\xff\xff\xff\xffj\xff\xff\xff\xff.",
        "deep tuples": snapshot_of(b")" + b"\x85" * 1_000_000),
        "deep lists": snapshot_of(
            b"]\x94" + b"]h\x00a\x940" * 10 + b"]" * 300_000 + b"a" * 299_999),
        "deep dicts": snapshot_of((b"}" + text("a")) * 200_000 + b"N" + b"s" * 200_000),
        "deep stubs": snapshot_of(b")" + (named("a", "B")[:-1] + b"\n") + b"0" + (b"\x85") * 10),
        "deep key": PROTO + b"})" + b"\x85" * 300_000 + b"Ns.",
        "doubling key": PROTO + b"})" + b"2\x86" * 200 + b"Ns.",
        "a million nothings": PROTO + million[:-1] + b".",
        "too many instructions": PROTO + b"N" + b"N0" * 1_100_000 + b".",
        "sets again and again": many + named("builtins", "set") + b"\x940" + again,
        "sizes again and again": many + named("torch", "Size") + b"\x940" + again,
        "bytes again and again":
            PROTO + text("x" * 1_000_000) + b"\x940" + text("latin1") + b"\x940"
            + named("_codecs", "encode") + b"\x940" + b"h\x02h\x00h\x01\x86R" * 100_000 + b".",
        "tensors again and again": PROTO + payload + b"\x940" + LOAD_STORAGE + b"\x940" + again,
        "long nested pickle": snapshot_of(storage(b"\x80\x02N" + b"N0" * 900_000 + b".")),
    }  # fmt: skip


def modules(layout: Layout, path: Path) -> dict[str, Callable[[], Any]]:
    """Snapshots in the right layout whose modules are not right; each call writes one to `path`."""

    def with_state(**state: Any) -> Callable[[], Any]:
        meta = {
            "type": "class",
            "version": 6,
            "module_src": "",
            "class_name": "TriPlaneGenerator",
            "state": state,
        }
        module = Call(Ref("torch_utils.persistence", "_reconstruct_persistent_obj"), (meta,))
        return lambda: write_pickle(path, {"G_ema": module})

    ring: dict[str, Any] = {}
    endless = Call(Ref("a", "B"), (), {"_modules": ring}, new=True)
    ring["again"] = endless
    wide = {f"m{index}": None for index in range(200_000)}
    axes = {"rendering_kwargs": {"box_warp": 10**4000}}
    return {
        "a module inside itself": with_state(_modules={"a": endless}, _parameters={}, _buffers={}),
        "modules without end": with_state(_modules=wide, _parameters={}, _buffers={}),
        "tensors without end": with_state(_modules={}, _parameters=wide, _buffers={}),
        "settings of 4000 digits": with_state(_modules={}, _parameters={}, _buffers={}, **axes),
        "no modules": with_state(),
        "evil names": with_state(_modules={"\x1b[2Ja\nb": endless}),
        "embedded source": lambda: write_snapshot(path, layout),
        "ordered": lambda: write_pickle(path, OrderedDict(G_ema=[1, 2])),
        "a huge picture": lambda: write_snapshot(
            path, Layout(rendering={"depth_resolution": 10**9})
        ),
        "endless rays": lambda: write_snapshot(path, Layout(rendering={"ray_end": float("inf")})),
        "a negative box": lambda: write_snapshot(path, Layout(rendering={"box_warp": -1.0})),
        "no number": lambda: write_snapshot(path, Layout(rendering={"box_warp": float("nan")})),
    }
