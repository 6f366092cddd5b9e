"""A generator as a folder that other programs read too: settings in config.json, tensors in
model.safetensors.

The files hold no code: JSON, and the safetensors format, a list of names, shapes and places
followed by plain numbers. Cameras are part of config.json, except for tensors such as poses, which
are in cameras.safetensors. Named latents, directions and an encoder, where there are any, are in
identities.safetensors, and the latents' sources in config.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from dnnlib.console import UserError
from dnnlib.files import atomic_write, make_dir
from training.checkpoints.file_checks import check_model, is_plain_tensor
from training.checkpoints.identities import check_names, identities_of, identity_tensors
from training.checkpoints.released.interop import Weights
from training.config.settings import ModelConfig, from_dict, to_dict

CONFIG_FILE, WEIGHTS_FILE, CAMERAS_FILE = "config.json", "model.safetensors", "cameras.safetensors"
IDENTITIES_FILE = "identities.safetensors"
FILES = (CONFIG_FILE, WEIGHTS_FILE, CAMERAS_FILE, IDENTITIES_FILE)
FORMAT_NAME = "open-eg3d weights"
FORMAT_VERSION = 1
LARGEST_CONFIG = 4 << 20  # bytes


def is_weights_folder(path: Path) -> bool:
    """Whether `path` is a folder with a config.json."""
    return (path / CONFIG_FILE).is_file()


def write_weights_folder(folder: str | os.PathLike[str], weights: Weights) -> None:
    """Write the averaged generator (or the plain one if there is no average) with its settings and
    cameras.

    config.json is removed first and written last: a folder that has one is whole.

    Raises:
        UserError: if there is no generator, the folder cannot be written, or for names of latents
            and directions that no command could open.
    """
    check_names(weights.latents, weights.directions)
    folder = make_dir(folder)
    state = weights.G if weights.G_ema is None else weights.G_ema
    if state is None:
        raise UserError("the file holds no generator")
    cameras = weights.cameras or {}
    poses = {name: value for name, value in cameras.items() if isinstance(value, Tensor)}
    content = {
        "format": {"name": FORMAT_NAME, "version": FORMAT_VERSION},
        "model": to_dict(weights.config),
        "cameras": (
            {name: value for name, value in cameras.items() if name not in poses}
            if weights.cameras
            else None
        ),
    }
    identities = identity_tensors(weights.latents, weights.directions, weights.encoder)
    if identities:
        content["latents"] = {name: one["source"] for name, one in weights.latents.items()}
    for name in (CONFIG_FILE, CAMERAS_FILE, IDENTITIES_FILE):
        _remove(folder / name)
    _write_tensors(folder / WEIGHTS_FILE, state)
    if poses:
        _write_tensors(folder / CAMERAS_FILE, poses)
    if identities:
        _write_tensors(folder / IDENTITIES_FILE, identities)
    with atomic_write(folder / CONFIG_FILE) as file:
        file.write(json.dumps(content, indent=2).encode())


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # The format keeps no strides, and refuses tensors that share memory.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_write(path) as file:
        file.write(safetensors.torch.save(plain, metadata={"format": "pt"}))


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot replace {path}: {error.strerror or error}") from error


def read_weights_folder(folder: str | os.PathLike[str]) -> Weights:
    """What `write_weights_folder` wrote, bit for bit; tensors on the CPU.

    Raises:
        UserError: if a file is missing, damaged, or not of this format.
    """
    folder = Path(folder)
    content = _read_config(folder / CONFIG_FILE)
    config: ModelConfig = from_dict(
        ModelConfig, content.get("model"), f"{folder / CONFIG_FILE}: model"
    )
    check_model(config, str(folder / CONFIG_FILE))
    cameras = content.get("cameras")
    if cameras is not None and not isinstance(cameras, dict):
        raise UserError(
            f"{folder / CONFIG_FILE}: cameras have the wrong form; fetch the folder again"
        )
    if cameras is not None and (folder / CAMERAS_FILE).exists():
        cameras = {**cameras, **_read_tensors(folder / CAMERAS_FILE)}
    identities: tuple[dict[str, Any], ...] = ({}, {}, {})
    if (folder / IDENTITIES_FILE).exists():
        tensors = _read_tensors(folder / IDENTITIES_FILE)
        identities = identities_of(tensors, content.get("latents"), str(folder))
    state = _read_tensors(folder / WEIGHTS_FILE)
    return Weights(config, None, None, state, cameras, "ours", *identities)


def _read_config(path: Path) -> dict[str, Any]:
    """config.json as a dict that says it is of our format."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_CONFIG:
            raise UserError(f"{path} is no file of settings; fetch the folder again")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not JSON ({str(error)[:100]}); fetch the folder again"
        ) from error
    mark = content.get("format") if isinstance(content, dict) else None
    if (
        not isinstance(mark, dict)
        or mark.get("name") != FORMAT_NAME
        or type(mark.get("version")) is not int
    ):
        raise UserError(
            f"{path} was written by another program; a folder of this one says {FORMAT_NAME!r}"
        )
    if mark["version"] > FORMAT_VERSION:
        raise UserError(
            f"{path} has format {mark['version']}, this program reads up to {FORMAT_VERSION};"
            " update the program"
        )
    return content


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name. The library compares its list of places with the length of the file before
    anything is read.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path} is missing; fetch the folder again")
        tensors = safetensors.torch.load_file(path)
    except (
        SafetensorError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        MemoryError,
    ) as error:
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise UserError(
            f"{path} is damaged or cut off ({reason}); fetch the folder again"
        ) from error
    for name, tensor in tensors.items():
        if not is_plain_tensor(tensor):
            raise UserError(
                f"{path}: {name[:100]} holds numbers of a kind that no network here has"
            )
    return tensors
