"""Weight files of feature networks: read without running anything, and named by their hash."""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from dnnlib.console import UserError
from dnnlib.files import local_file

_READ_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    AttributeError,
    TypeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)


def file_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the path") from error


def read_weights(path: str | os.PathLike[str], option: str) -> dict[str, Tensor]:
    """Tensors by name of a file of weights; nothing in it is executed. `option` is what the user
    named it with.

    Raises:
        UserError: if the file cannot be read or holds anything else.
    """
    file_hash(path)  # a plain message for a missing file
    try:
        with warnings.catch_warnings():
            # about ways of pickling that are refused right afterwards
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except _READ_ERRORS as error:
        raise UserError(
            f"{option} {path} is not a file of PyTorch weights; give the file as it was published"
        ) from error
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(value, Tensor) for value in state.values())
    ):
        raise UserError(
            f"{option} {path} does not hold a plain dict of tensors; give the file as it was"
            " published"
        )
    return {str(name): value for name, value in state.items()}


def published_file(url: str, option: str) -> Path:
    """A published file of weights: where PyTorch's hub keeps it if it is there, else fetched once
    into our own cache.

    Raises:
        UserError: if there is none at hand and it cannot be fetched, or what was fetched is not
            what was published.
    """
    name = url.rsplit("/", 1)[-1]
    kept = Path(torch.hub.get_dir()) / "checkpoints" / name
    if kept.exists():
        path = kept
    else:
        try:
            path = local_file(url)
        except UserError as error:
            raise UserError(
                f"{option}: no weights at hand. Download {url} where there is a network and give"
                f" {option} FILE ({error})"
            ) from error
    stated = name.rsplit("-", 1)[-1].split(".")[0]
    if len(stated) == 8 and not file_hash(path).startswith(stated):
        raise UserError(
            f"{option}: {path} is not the published {name} (its SHA-256 does not begin with"
            f" {stated}); delete it and try again"
        )
    return path
