"""Named latents and directions that a file of weights may hold beside its networks, and the weights
of an encoder.

`latents` are {NAME: {"ws": (num_ws, w_dim), "camera": (25,), "source": text}}, `directions` {NAME:
(num_ws, w_dim)}: what is added to ws for one step.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dnnlib.console import UserError, brief
from training.cameras import LABEL_SIZE
from training.networks.generator import Generator

LONGEST_NAME = 64
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}")
FIELDS = {"ws", "camera", "source"}


def unique_names(texts: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Names made of texts such as names of files: they become names of files and options. Numbered
    where they would be the same, or one of those `taken`, also on a disk that knows no capitals.
    """
    used, names = {name.lower() for name in taken}, []
    for text in texts:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip("._-") or "picture"
        ends = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        numbered = (stem[: LONGEST_NAME - len(end)] + end for end in ends)
        names.append(next(name for name in numbered if name.lower() not in used))
        used.add(names[-1].lower())
    return names


def check_name(name: str, where: str) -> None:
    """Raise a UserError that names `where` unless a name is one that files may hold."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"{where} {brief(name)!r}: names are made of up to {LONGEST_NAME} letters, digits, '.',"
            " '_' and '-', and begin with a letter or a digit"
        )


def check_names(latents: Mapping[str, Any], directions: Mapping[str, Any]) -> None:
    """Raise a UserError unless all names are ones that files may hold."""
    for kind, values in (("latents", latents), ("directions", directions)):
        for name in values:
            check_name(name, f"{kind} with the name")


def check_identities(generator: Generator, latents: Any, directions: Any) -> None:
    """Raise a UserError unless latents and directions are of this generator and have plain
    names.
    """
    check_names(latents, directions)
    shape = (generator.num_ws, generator.w_dim)
    for name, entry in latents.items():
        is_right = isinstance(entry, dict) and set(entry) == FIELDS
        if not is_right or not (
            _has_shape(entry["ws"], shape)
            and _has_shape(entry["camera"], (LABEL_SIZE,))
            and isinstance(entry["source"], str)
        ):
            raise UserError(f"the file's latents {name} are damaged or of another network")
    for name, direction in directions.items():
        if not _has_shape(direction, shape):
            raise UserError(f"the file's direction {name} is damaged or of another network")


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    return (
        isinstance(value, Tensor)
        and value.shape == shape
        and value.is_floating_point()
        and bool(torch.isfinite(value).all())
    )


def identity_tensors(
    latents: dict[str, Any], directions: dict[str, Tensor], encoder: dict[str, Tensor]
) -> dict[str, Tensor]:
    """All tensors by one name each, for files that hold tensors alone."""
    tensors = {f"direction/{name}": value for name, value in directions.items()}
    tensors |= {f"encoder/{name}": value for name, value in encoder.items()}
    for name, entry in latents.items():
        tensors |= {f"ws/{name}": entry["ws"], f"camera/{name}": entry["camera"]}
    return tensors


def identities_of(
    tensors: dict[str, Tensor], sources: Any, where: str
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """The inverse of `identity_tensors`: latents, directions and encoder.

    Args:
        sources: Text by name of latents. where: The folder, for messages.

    Raises:
        UserError: if tensors and sources do not fit.
    """
    found: dict[str, dict[str, Any]] = {
        kind: {} for kind in ("ws", "camera", "direction", "encoder")
    }
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        found.get(kind, {})[name] = tensor
    names = set(found["ws"])
    if not isinstance(sources, dict) or {*sources} != names or {*found["camera"]} != names:
        raise UserError(f"{where}: latents without source or camera; fetch the folder again")
    latents = {
        name: {"ws": ws, "camera": found["camera"][name], "source": sources[name]}
        for name, ws in found["ws"].items()
    }
    return latents, found["direction"], found["encoder"]
