"""The safe unpickler: it rebuilds what a snapshot holds, runs nothing, and answers every bad file
with one line.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnlib.console import UserError
from tests.released_layout import Builder, Call, Layout, Ref, write_pickle, write_snapshot
from training.checkpoints.released.pickle_machine import MAX_INSTRUCTIONS, Stub
from training.checkpoints.released.unpickler import read_pickle


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def refuse(path: Path, content: bytes, match: str | None = None) -> str:
    """Expect one line about the bytes `content`; returns it."""
    path.write_bytes(content)
    with pytest.raises(UserError, match=match) as caught:
        read_pickle(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def read_or_refuse(path: Path) -> str | None:
    """The refusal's message, or None where the file is read. Anything else fails the test."""
    try:
        read_pickle(path)
    except UserError as error:
        return str(error)
    return None


class Executes:
    """Pickles as a call of anything that is really there; loading it the usual way runs it."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


# --------------------------------------------------------------------------------------------------
# What it reads


def test_plain_values_in_every_protocol(tmp_path: Path) -> None:
    shared = [1, 2]
    value: dict[Any, Any] = {
        "numbers": [0, -1, 255, 70000, 2**40, -(2**80), 1.5, float("inf")],
        "texts": ["", "é" * 300, "line\nbreak"],
        "bytes": [b"", b"x" * 300, bytearray(b"y")],
        "others": [
            None,
            True,
            False,
            (),
            (1,),
            (1, 2),
            (1, 2, 3),
            (1, 2, 3, 4),
            {1, 2},
            frozenset({3}),
            {},
        ],
        "ordered": OrderedDict(a=1, b=[2]),
        "shared": [shared, shared],
        ("a", 1): "tuple key",
    }
    for protocol in range(3, pickle.HIGHEST_PROTOCOL + 1):
        # bytearrays have an opcode from 5 on
        source = {**value, "bytes": value["bytes"][:2]} if protocol < 5 else value
        source = {
            **source,
            "others": [
                item for item in value["others"] if protocol > 3 or not isinstance(item, frozenset)
            ],
        }
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps(source, protocol))
        result = read_pickle(path)
        assert result == source
        assert type(result["ordered"]) is dict
        assert result["shared"][0] is result["shared"][1]


@pytest.mark.parametrize("location", ["cpu", "cuda:0"])
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int64,
        torch.uint8,
        torch.bool,
    ],
)
def test_tensors(tmp_path: Path, dtype: torch.dtype, location: str) -> None:
    values = torch.arange(24).reshape(2, 3, 4).to(dtype)
    tensors = {
        "whole": values,
        "view": values[1, :, ::2],
        "transposed": values.permute(2, 0, 1),
        "scalar": values[1, 2, 3],
        "empty": values[:0],
    }
    result = read_pickle(write_pickle(tmp_path / "t.pkl", tensors, location=location))
    for name, tensor in tensors.items():
        assert result[name].dtype == dtype
        assert result[name].device.type == "cpu"
        assert torch.equal(result[name], tensor)


def test_parameters_become_plain_tensors(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.randn(3, 2))
    result = read_pickle(write_pickle(tmp_path / "p.pkl", [parameter, parameter]))
    assert type(result[0]) is torch.Tensor
    assert not result[0].requires_grad
    assert torch.equal(result[0], parameter)
    assert result[0] is result[1]


@pytest.mark.parametrize("module", ["numpy._core.multiarray", "numpy.core.multiarray"])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_numpy_scalars_become_numbers(tmp_path: Path, module: str, protocol: int) -> None:
    scalars = [
        np.float64(0.1),
        np.float32(0.5),
        np.int64(-7),
        np.uint8(200),
        np.bool_(True),
        np.float16(2),
    ]
    result = read_pickle(
        write_pickle(tmp_path / "n.pkl", scalars, protocol=protocol, numpy_module=module)
    )
    assert result == [0.1, 0.5, -7, 200, True, 2]
    assert [type(value) for value in result] == [float, float, int, int, bool, float]


def test_numpy_scalars_of_other_byte_order(tmp_path: Path) -> None:
    kind = Call(Ref("numpy", "dtype"), ("f8", False, True), (3, ">", None, None, None, -1, -1, 0))
    scalar = Call(Ref("numpy.core.multiarray", "scalar"), (kind, struct.pack(">d", 2.5)))
    assert read_pickle(write_pickle(tmp_path / "n.pkl", scalar)) == 2.5


@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_arrays(tmp_path: Path, order: Any) -> None:
    array = np.asarray(np.arange(12, dtype=np.int32).reshape(3, 4), order=order)
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(array, 4))
    assert np.array_equal(read_pickle(path), array)


def test_unknown_classes_become_stubs(tmp_path: Path) -> None:
    content = [
        Call(Ref("some.where", "Thing"), (1, "a"), {"x": 2}, new=True),
        Call(Ref("torch.hub", "load"), ("url",)),
        Ref("os", "system"),
    ]
    thing, call, mention = read_pickle(write_pickle(tmp_path / "s.pkl", content))
    assert isinstance(thing, Stub)
    assert (thing.name.module, thing.name.name, thing.args, thing.state) == (
        "some.where",
        "Thing",
        (1, "a"),
        {"x": 2},
    )
    assert isinstance(call, Stub)
    assert str(call.name) == "torch.hub.load"
    assert (mention.module, mention.name) == ("os", "system")


def test_easy_dicts_are_dicts(tmp_path: Path) -> None:
    entries = pickle.dumps({"a": 1, "b": 2}, 4)[2:]
    body = entries[entries.index(b"(") : entries.rindex(b".")]
    path = tmp_path / "e.pkl"
    path.write_bytes(b"\x80\x04cdnnlib.util\nEasyDict\n)\x81\x94" + body + b".")
    assert read_pickle(path) == {"a": 1, "b": 2}


# --------------------------------------------------------------------------------------------------
# What it never does


def test_embedded_source_is_not_run(tmp_path: Path, marker: Path) -> None:
    source = f"open({str(marker)!r}, 'w').close()\nraise SystemExit(3)\n"
    read_pickle(write_snapshot(tmp_path / "snapshot.pkl", Layout(module_src=source)))
    assert not marker.exists()


@pytest.mark.parametrize(
    "target",
    [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("subprocess", "call"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("builtins", "open"),
        ("__builtin__", "eval"),
        ("importlib", "import_module"),
        ("runpy", "run_path"),
        ("pickle", "loads"),
        ("shutil", "rmtree"),
        ("operator", "attrgetter"),
        ("_io", "open"),
        ("copyreg", "_reconstructor"),
        ("types", "FunctionType"),
        ("marshal", "loads"),
        ("ctypes", "CDLL"),
    ],
)
@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_into_the_standard_library_are_refused(
    tmp_path: Path, target: tuple[str, str], new: bool, protocol: int
) -> None:
    path = write_pickle(
        tmp_path / "h.pkl",
        {"G_ema": Call(Ref(*target), ("touch executed",), new=new)},
        protocol=protocol,
    )
    refuse(
        path,
        path.read_bytes(),
        match=f"{target[0]}.{target[1]}, which no snapshot needs; nothing in it was run",
    )


def test_real_exploits_leave_no_mark(tmp_path: Path, marker: Path) -> None:
    import os
    import subprocess

    create = f"open({str(marker)!r}, 'w').close()"
    exploits = [
        Executes(os.system, f"touch {marker}"),
        Executes(eval, create),
        Executes(exec, create),
        Executes(subprocess.check_call, ["touch", str(marker)]),
        Executes(open, str(marker), "w"),
        Executes(pickle.loads, pickle.dumps(Executes(os.system, f"touch {marker}"))),
        Executes(torch.load, io.BytesIO(pickle.dumps(Executes(os.system, f"touch {marker}")))),
    ]
    for index, exploit in enumerate(exploits):
        for protocol in range(2, 6):
            content = pickle.dumps({"G_ema": exploit}, protocol)
            path = tmp_path / f"{index}.pkl"
            path.write_bytes(content)
            message = read_or_refuse(path)
            assert message is None or "nothing in it was run" in message
            assert not marker.exists()
            if protocol == 4 and index in (0, 1, 2, 3, 4):
                pickle.loads(content)  # the exploit is a real one
                assert marker.exists()
                marker.unlink()


def test_chain_of_getattr_is_refused(tmp_path: Path) -> None:
    chain = Call(Call(Ref("builtins", "getattr"), (Ref("os", "path"), "os")), ("x",))
    path = write_pickle(tmp_path / "c.pkl", chain)
    refuse(path, path.read_bytes(), match="builtins.getattr")


@pytest.mark.parametrize("first", ["collections.OrderedDict", "torch.hub.load"])
def test_results_of_calls_cannot_be_called(tmp_path: Path, first: str) -> None:
    module, _, name = first.rpartition(".")
    path = write_pickle(tmp_path / "c.pkl", Call(Call(Ref(module, name)), ("x",)))
    refuse(path, path.read_bytes(), match="calls something that is no name")


def test_dotted_names_reach_no_attributes(tmp_path: Path) -> None:
    """Protocol 4 lets a name hold dots, which would walk from an allowed class to its innards."""
    path = write_pickle(
        tmp_path / "d.pkl", Call(Ref("collections", "OrderedDict.__init__.__globals__"), ())
    )
    assert isinstance(read_pickle(path), Stub)


@pytest.mark.parametrize("instruction", [b"i", b"o", b"\x82\x01", b"P1\n", b"Q"])
def test_unneeded_instructions_are_refused(tmp_path: Path, instruction: bytes) -> None:
    codes = {b"i": b"(S'x'\nios\nsystem\n.", b"o": b"(cos\nsystem\nS'x'\no."}
    refuse(tmp_path / "i.pkl", codes.get(instruction, b"N" + instruction + b"."))


# --------------------------------------------------------------------------------------------------
# Nested tensor data


def storage_call(payload: Any) -> Call:
    return Call(Ref("torch.storage", "_load_from_bytes"), (payload,))


def tensor_call(payload: Any, *geometry: Any) -> Call:
    return Call(
        Ref("torch._utils", "_rebuild_tensor_v2"),
        (storage_call(payload), *geometry, False, OrderedDict()),
    )


def storage_payload(values: torch.Tensor) -> bytes:
    _, (payload,) = torch.storage.TypedStorage(
        wrap_storage=values.untyped_storage(), dtype=values.dtype, _internal=True
    ).__reduce__()
    return payload


def test_nested_payload_that_is_an_exploit(tmp_path: Path, marker: Path) -> None:
    import os

    exploit = pickle.dumps(Executes(os.system, f"touch {marker}"), 2)
    good = storage_payload(torch.zeros(4))
    # the fourth pickle, after magic number, version and system
    start = good.index(b"\x80\x02(X\x07")
    zipped = io.BytesIO()
    torch.save(Executes(os.system, f"touch {marker}"), zipped)
    legacy = io.BytesIO()
    torch.save(Executes(os.system, f"touch {marker}"), legacy, _use_new_zipfile_serialization=False)
    for payload in (
        exploit,
        good[:start] + exploit,
        exploit + good,
        good[:start] + exploit + good[start:],
        zipped.getvalue(),
        legacy.getvalue(),
    ):
        path = write_pickle(tmp_path / "n.pkl", tensor_call(payload, 0, (4,), (1,)))
        refuse(path, path.read_bytes())
        assert not marker.exists()


def test_nested_payload_of_another_kind(tmp_path: Path) -> None:
    whole = io.BytesIO()
    torch.save({"weight": torch.zeros(4)}, whole, _use_new_zipfile_serialization=False)
    for payload in (b"", b"\x80", b"not a pickle", whole.getvalue(), "text", None, 3):
        path = write_pickle(tmp_path / "n.pkl", tensor_call(payload, 0, (4,), (1,)))
        refuse(path, path.read_bytes())


def test_nested_payload_cannot_claim_more_data_than_it_has(tmp_path: Path) -> None:
    good = storage_payload(torch.zeros(4))
    assert good.count(b"K\x04N") == 1
    claims = (b"J\xff\xff\xff\x7fN", b"\x8a\x08" + b"\xff" * 7 + b"\x7fN")
    for bad in (*(good.replace(b"K\x04N", claim) for claim in claims), good[:-1], good + b"\0"):
        path = write_pickle(tmp_path / "n.pkl", tensor_call(bad, 0, (4,), (1,)))
        refuse(path, path.read_bytes(), match="cut off")


IMPOSSIBLE_TENSORS = [
    (0, (5,), (1,)),
    (1, (4,), (1,)),
    (0, (2, 2), (1, 3)),
    (0, (10**12,), (0,)),
    (-1, (2,), (1,)),
    (0, (2,), (-1,)),
    (0, (-2,), (1,)),
    (0, (2, 2), (1,)),
    (0, (2.0,), (1,)),
    ("0", (2,), (1,)),
    (0, (2**70,), (1,)),
    (2**70, (), ()),
    (4, (), ()),
    (0, None, None),
]


@pytest.mark.parametrize("geometry", IMPOSSIBLE_TENSORS)
def test_tensor_outside_its_data(tmp_path: Path, geometry: tuple[Any, ...]) -> None:
    path = write_pickle(tmp_path / "n.pkl", tensor_call(storage_payload(torch.zeros(4)), *geometry))
    refuse(path, path.read_bytes(), match="a tensor in it|NoneType")


# --------------------------------------------------------------------------------------------------
# Damage and excess


def test_cut_off_anywhere(tmp_path: Path) -> None:
    layout = Layout(
        z_dim=2,
        w_dim=2,
        channel_base=16,
        channel_max=2,
        plane_resolution=8,
        plane_channels=2,
        decoder_hidden=2,
    )
    content = write_pickle(
        tmp_path / "whole.pkl", {"G_ema": Builder(layout).synthesis("s")}
    ).read_bytes()
    lengths = {*range(200), *range(200, len(content), 211), *range(len(content) - 50, len(content))}
    for length in lengths - {0}:
        refuse(tmp_path / "cut.pkl", content[:length])
    refuse(tmp_path / "cut.pkl", b"")


@given(st.data())
@settings(max_examples=150)
def test_flipped_bytes_never_crash(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = bytearray(
        pickle.dumps({"a": [1.5, (2, 3)], "t": torch.zeros(3), "n": np.float64(1)}, 4)
    )
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "flipped.pkl"
    path.write_bytes(content)
    message = read_or_refuse(path)
    assert message is None or "\n" not in message


@given(st.binary(max_size=80))
@settings(max_examples=150)
def test_random_bytes_never_crash(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.pkl"
    path.write_bytes(content)
    message = read_or_refuse(path)
    assert message is None or "\n" not in message


def test_deep_nesting_as_a_key(tmp_path: Path) -> None:
    """Hashing such a tuple would overflow the C stack."""
    refuse(tmp_path / "deep.pkl", b"\x80\x04})" + b"\x85" * 300_000 + b"Ns.", match="as a key")
    refuse(
        tmp_path / "deep.pkl", b"\x80\x04\x8f()" + b"\x85" * 300_000 + b"\x90.", match="as a key"
    )
    refuse(tmp_path / "deep.pkl", b"\x80\x04()" + b"\x85" * 300_000 + b"\x91.", match="as a key")


def test_deep_nesting_as_a_value_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "deep.pkl"
    path.write_bytes(b"\x80\x04" + b")" + b"\x85" * 300_000 + b".")
    assert isinstance(read_pickle(path), tuple)


def test_doubling_tuples_as_a_key(tmp_path: Path) -> None:
    """Each tuple holds the one before twice; hashing the last would take 2^200 steps."""
    refuse(tmp_path / "bomb.pkl", b"\x80\x04})" + b"2\x86" * 200 + b"Ns.", match="as a key")


def test_too_many_instructions(tmp_path: Path) -> None:
    refuse(
        tmp_path / "long.pkl",
        b"\x80\x04N" + b"N0" * (MAX_INSTRUCTIONS // 2) + b".",
        match="more instructions",
    )


HUGE_LENGTHS = [
    b"B\xff\xff\xff\xff",
    b"\x8e" + b"\xff" * 8,
    b"\x8e" + b"\xff" * 7 + b"\x3f",
    b"\x8d" + b"\xff" * 7 + b"\x3f",
    b"\x8b\xff\xff\xff\x7f",
    b"I" + b"9" * 5000 + b"\n",
    b"\x96" + b"\xff" * 7 + b"\x3f",
    b"X\xff\xff\xff\xff",
]
UNFIT = [
    b"",
    b"0",
    b"t",
    b"h\x05",
    b"]s",
    b"Nb",
    b"NN\x93",
    b"NNR",
    b"(Nd",
    b"]N0b",
    b"}]Ns",
    b"N\x85(0e",
    b"cos\n\n)R",
    b"ccollections\nOrderedDict\nNR",
    b"V\\ud800\n0",
    b"\xff",
]


@pytest.mark.parametrize("instructions", HUGE_LENGTHS + UNFIT)
def test_instructions_that_do_not_fit(tmp_path: Path, instructions: bytes) -> None:
    refuse(tmp_path / "bad.pkl", b"\x80\x04" + instructions + b".")


def test_recursive_structures(tmp_path: Path) -> None:
    ring: list[Any] = []
    ring.append(ring)
    path = tmp_path / "ring.pkl"
    path.write_bytes(pickle.dumps(ring, 4))
    result = read_pickle(path)
    assert result[0] is result


def test_names_in_messages_are_short_and_printable(tmp_path: Path) -> None:
    hostile = "os.\x1b[31m\n" + "x" * 1000
    path = write_pickle(tmp_path / "n.pkl", Call(Ref(hostile, "y")))
    message = refuse(path, path.read_bytes())
    assert message.isprintable()
    assert len(message) < 400


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pkl"):
        read_pickle(tmp_path / "none.pkl")
    with pytest.raises(UserError, match="cannot read"):
        read_pickle(tmp_path)
