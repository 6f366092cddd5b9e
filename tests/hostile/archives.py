"""Hostile checkpoints and folders of weights: torch archives and safetensors that lie about what is
in them.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.hostile.pickles import Executes, command, named, source, text
from tests.tiny import orbit_labels, tiny_config
from training.cameras import CameraSummary
from training.checkpoints.checkpoint import FORMAT_NAME, FORMAT_VERSION, Checkpoint, save_checkpoint
from training.checkpoints.released.interop import Weights
from training.checkpoints.weights_folder import CONFIG_FILE, WEIGHTS_FILE, write_weights_folder
from training.config.settings import to_dict
from training.networks.generator import Generator

PREFIX = "archive/"


def good_checkpoint(path: Path) -> Path:
    """A whole checkpoint of a tiny generator."""
    torch.manual_seed(0)
    config = tiny_config()
    cameras = CameraSummary.from_labels(orbit_labels(4)).to_dict()
    save_checkpoint(
        path, Checkpoint(config, G_ema=Generator(config.model).state_dict(), cameras=cameras)
    )
    return path


def good_folder(path: Path) -> Path:
    """A whole folder of weights of a tiny generator."""
    torch.manual_seed(0)
    config = tiny_config().model
    write_weights_folder(
        path,
        Weights(
            config,
            None,
            None,
            Generator(config).state_dict(),
            {"radius": 2.0, "pivot": [0, 0, 0]},
            "ours",
        ),
    )
    return path


# --------------------------------------------------------------------------------------------------
# Torch archives


def archive_of(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(PREFIX + name, content)
    return file.getvalue()


def torch_archive(instructions: bytes, **members: bytes) -> bytes:
    """A torch file whose pickle is `instructions`."""
    return archive_of(
        {"data.pkl": instructions, "version": b"3\n", "byteorder": b"little", **members}
    )


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def content_with(**sections: Any) -> bytes:
    """A checkpoint whose form is right apart from the sections that are given."""
    content: dict[str, Any] = {
        "format": {"name": FORMAT_NAME, "version": FORMAT_VERSION},
        "config": to_dict(tiny_config()),
    }
    content |= {name: {} for name in ("progress", "optimizers", "augment", "statistics", "rng")}
    content |= {"G": None, "D": None, "G_ema": None, "cameras": None, **sections}
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def settings(**changes: Any) -> bytes:
    """A checkpoint with other settings of the model, by section."""
    config = to_dict(tiny_config())
    state = Generator(tiny_config().model).state_dict()
    for section, values in changes.items():
        config["model"][section].update(values)
    return content_with(config=config, G_ema=state)


def web(width: int, depth: int) -> list[Any]:
    """Lists that each hold the one before many times: few bytes, width^depth ways through."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value] * width
    return value


def code_archives(canary: Path) -> dict[str, bytes]:
    """Torch files with code in them."""
    system = Executes(os.system, command(canary))
    saved, legacy = io.BytesIO(), io.BytesIO()
    torch.save(system, saved)
    torch.save({"G_ema": system}, legacy, _use_new_zipfile_serialization=False)
    script = {
        "code/__torch__.py": b"import os\nos.system('x')\n",
        "constants.pkl": pickle.dumps((), 2),
        "data/0": bytes(16),
    }
    return {
        "torch.save of a call": saved.getvalue(),
        "an older torch file with a call": legacy.getvalue(),
        "eval in a torch file": torch_archive(
            b"\x80\x02" + named("builtins", "eval") + text(source(canary)) + b"\x85R."
        ),
        "compile in a torch file": torch_archive(
            b"\x80\x02" + named("torch.utils.cpp_extension", "load_inline") + text("x") + b"\x85R."
        ),
        "a scripted module": torch_archive(b"\x80\x02}.", **script),
        "an allowed function with a state": torch_archive(
            b"\x80\x02" + named("torch._utils", "_rebuild_tensor_v2") + b"}b."
        ),
    }


def lying_archives(folder: Path) -> dict[str, bytes]:
    """Archives whose records are not what they say."""
    good = members_of(good_checkpoint(folder / "good.pkl"))
    whole = archive_of(good)
    instructions = good["data.pkl"]
    first = archive_of({"data.pkl": instructions})
    central = whole.index(b"PK\x01\x02")
    directory, end = (
        whole[central : whole.index(b"PK\x05\x06")],
        whole[whole.index(b"PK\x05\x06") :],
    )
    entry = directory[: directory.index(b"PK\x01\x02", 4)]
    huge = struct.pack("<II", len(instructions), 0xFFFFFFF0)
    many = 200_000
    many_end = (
        end[:8]
        + struct.pack("<HHII", many & 0xFFFF, many & 0xFFFF, many * len(entry), central)
        + b"\0\0"
    )
    return {
        "two pickles": archive_of({**good, "more/data.pkl": b"\x80\x02}."}),
        "two pickles but for case": archive_of({**good, "DATA.PKL": b"\x80\x02}."}),
        "records outside the folder": whole.replace(b"archive/version", b"../hive/version"),
        "packed records": archive_of({**good, "data/0": bytes(200 << 20)}, zipfile.ZIP_DEFLATED),
        "a record of four gigabytes": whole.replace(
            struct.pack("<II", len(instructions), len(instructions)), huge
        ),
        "two hundred thousand records": whole[:central] + entry * many + many_end,
        "records on top of each other": whole[:central]
        + directory
        + entry.replace(b"data.pkl", b"data.pk1") * 50
        + end,
        "a comment with another end": whole[:-2] + struct.pack("<H", len(end)) + end,
        "no records": first[:4] + first[first.index(b"PK\x05\x06") :],
        "only a pickle": first,
        "another archive inside": archive_of({"data.pkl": whole}),
    }


def excessive_archives() -> dict[str, bytes]:
    """Archives whose pickle asks for much."""
    return {
        "doubling keys": torch_archive(b"\x80\x02})" + b"2\x86" * 200 + b"Ns."),
        "deep keys": torch_archive(b"\x80\x02})" + b"\x85" * 300_000 + b"Ns."),
        "deep lists in a torch file": torch_archive(
            b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b"."
        ),
        "two million instructions": torch_archive(b"\x80\x02" + b"N0" * 1_100_000 + b"}."),
        "four gigabytes of text": torch_archive(b"\x80\x02X\xff\xff\xff\xff."),
        "a web of lists": content_with(progress={"web": web(1000, 15)}),
        "a web as settings": content_with(config=web(1000, 15)),
        "a web as one setting": content_with(config={"preset": web(100, 50)}),
        "a ring as settings": torch_archive(b"\x80\x02]q\x00h\x00a."),
        "numbers of 5000 digits": content_with(config={"model": {"resolution": 10**5000}}),
        "a billion layers": settings(generator={"mapping_layers": 10**9}),
        "a trillion channels": settings(generator={"channel_base": 10**12, "channel_max": 10**12}),
        "latents beyond counting": settings(generator={"z_dim": 2**70}),
        "doubling for ever": settings(superresolution={"input_resolution": -1}),
        "a picture of 2^60 pixels": settings(generator={"plane_resolution": 2**60}),
        "a trillion samples": settings(rendering={"depth_resolution": 10**12}),
        "no number at all": settings(rendering={"box_warp": float("nan")}),
        "ten megabytes of setting": content_with(
            config={"preset": "x" * 10_000_000, "nothing\x1b[2J" * 1000: 1}
        ),
        "a text for the terminal": content_with(config={"\x1b]0;title\x07\x1b[2J\nline": 1}),
        "a trillion poses of one number": content_with(
            cameras={"poses": torch.zeros(1, 1).expand(10**12, 25)}
        ),
        "sparse numbers": content_with(G_ema={"w": torch.eye(3).to_sparse()}),
        "numbers nowhere": content_with(G_ema={"w": torch.empty(10**9, device="meta")}),
        "complex numbers": content_with(
            G_ema={"backbone.mapping.w_avg": torch.zeros(8, dtype=torch.complex64)}
        ),
        "cameras that are none": content_with(
            G_ema=Generator(tiny_config().model).state_dict(),
            cameras={"radius": "far", "pivot": {}},
        ),
        "cameras of many words": content_with(
            G_ema=Generator(tiny_config().model).state_dict(),
            cameras={f"word{index}": 0 for index in range(9999)},
        ),
        "weights of another network": content_with(
            G_ema={f"layer{index}": torch.zeros(1) for index in range(2000)}
        ),
    }


# --------------------------------------------------------------------------------------------------
# Folders of weights


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    listed = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(listed) if length is None else length) + listed + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def lying_safetensors() -> dict[str, bytes]:
    """Files whose list of tensors is not what follows it."""
    return {
        "header beyond counting": safetensors({}, length=2**64 - 1),
        "header longer than the file": safetensors({}, length=10_000),
        "header of half a gigabyte": safetensors({}, length=1 << 29),
        "empty file": b"",
        "no list": safetensors([1, 2]),
        "no JSON": safetensors(b"{" * 50),
        "deep JSON": safetensors(b'{"a":' * 100_000),
        "not UTF-8": safetensors(b'{"\xff\xfe": 1}'),
        "data missing": safetensors({"w": entry([1000], 0, 4000)}, bytes(8)),
        "data left over": safetensors({"w": entry([1], 0, 4)}, bytes(4000)),
        "tensors that overlap": safetensors(
            {"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)
        ),
        "a hole": safetensors({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
        "end before begin": safetensors({"w": entry([1], 4, 0)}, bytes(4)),
        "negative places": safetensors({"w": entry([1], -4, 0)}, bytes(4)),
        "shape of 2^80 numbers": safetensors({"w": entry([2**40, 2**40], 0, 4)}, bytes(4)),
        "shape that overflows to fit": safetensors({"w": entry([2**62, 4, 1], 0, 0)}),
        "negative shape": safetensors({"w": entry([-1], 0, 4)}, bytes(4)),
        "unknown numbers": safetensors({"w": entry([1], 0, 4, "X99")}, bytes(4)),
        "tiny numbers": safetensors({"w": entry([4], 0, 4, "F8_E4M3")}, bytes(4)),
        "the same name twice": safetensors(
            b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2 + b'"x":1}', bytes(4)
        ),
        "a million names": safetensors({f"w{index}": entry([0], 0, 0) for index in range(100_000)}),
        "a name for the terminal": safetensors({"\x1b[2J\n" * 100: entry([1], 0, 4)}, bytes(4)),
        "a pickle": pickle.dumps({"a": 1}),
    }


def config_files() -> dict[str, bytes]:
    """config.json that is none."""
    form = {"format": {"name": "open-eg3d weights", "version": 1}}
    return {
        "settings of deep JSON": b'{"format":' * 100_000,
        "settings of deep lists": json.dumps({**form, "model": {}}).encode()[:-2]
        + b'"preset":'
        + b"[" * 900
        + b"]" * 900
        + b"}}",
        "settings of five megabytes": json.dumps(
            {**form, "model": {"x": "y" * 5_000_000}}
        ).encode(),
        "settings of 10000 digits": b'{"format":{"name":"open-eg3d weights","version":'
        + b"9" * 10_000
        + b"}}",
        "settings not UTF-8": b'{"format": "\xff"}',
        "settings beyond numbers": json.dumps(
            {**form, "model": {"rendering": {"box_warp": 1e308, "ray_start": float("inf")}}}
        ).encode(),
        "settings of another program": json.dumps(
            {"architectures": ["x"], "auto_map": {"AutoModel": "evil.py"}}
        ).encode(),
    }


def folder_writers(root: Path) -> dict[str, Callable[[], Path]]:
    """Makes folders whose files are not files."""

    def replaced(name: str, member: str, make: Callable[[Path], object]) -> Callable[[], Path]:
        def write() -> Path:
            folder = good_folder(root / name.replace(" ", "-"))
            (folder / member).unlink()
            make(folder / member)
            return folder

        return write

    return {
        "settings that never end": replaced(
            "settings that never end", CONFIG_FILE, lambda path: path.symlink_to("/dev/zero")
        ),
        "weights that never end": replaced(
            "weights that never end", WEIGHTS_FILE, lambda path: path.symlink_to("/dev/zero")
        ),
        "weights that never begin": replaced("weights that never begin", WEIGHTS_FILE, os.mkfifo),
        "settings that never begin": replaced("settings that never begin", CONFIG_FILE, os.mkfifo),
        "weights in a ring": replaced(
            "weights in a ring", WEIGHTS_FILE, lambda path: path.symlink_to(path)
        ),
        "weights that are a folder": replaced(
            "weights that are a folder", WEIGHTS_FILE, lambda path: path.mkdir()
        ),
    }
