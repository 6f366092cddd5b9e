"""The three files of an inversion: NAME.pkl, NAME.png and, as the sign that all is done,
NAME.json.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dnnlib.console import UserError
from dnnlib.files import atomic_write
from dnnlib.numbers import significant
from media.pictures.grids import save_png
from media.pictures.inversion_sheet import VIEWS, inversion_sheet
from open_eg3d.exporting import SUFFIXES, export
from training.cameras import cameras_of
from training.inversion.inversion import Inversion
from training.networks.generator import Generator


def weights_content(generator: Generator) -> str:
    """What tells a network's weights from others, wherever and in whatever form they lie."""
    digest = hashlib.sha256()
    for name, tensor in [*generator.state_dict().items(), *generator.encoder.items()]:
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def checked_dest(dest: Path, network: str | os.PathLike[str]) -> Path:
    """`dest`, where a network is to be written with what belongs to it.

    Raises:
        UserError: if it is the network that is read, or of a form that holds less.
    """
    if SUFFIXES.get(dest.suffix) not in ("checkpoint", "safetensors"):
        raise UserError(
            f"{dest} is neither NAME.pkl nor, without an ending, a folder of safetensors: other"
            " forms hold no latents, directions or encoder"
        )
    if dest.exists() and Path(network).exists() and dest.samefile(network):
        raise UserError(f"{dest} is the network itself; choose another place or name")
    return dest


def write_identity(
    inversion: Inversion, dest: Path, sources: Sequence[str], made_by: Mapping[str, Any]
) -> None:
    """Write the files of an identity that is named as NAME.pkl, the `dest`, is.

    Args:
        sources: Where its pictures come from. made_by: What `is_done` compares, plain values, and
            what else is told, with `origins` of the pictures.
    """
    name, holder = dest.stem, copy.copy(inversion.generator)
    cameras = cameras_of(holder)
    if inversion.method.endswith("pti"):  # tuned weights show others no longer as they were
        holder.latents, holder.encoder = {}, {}
    source = ", ".join(Path(one).name for one in sources)
    holder.latents = {**holder.latents, name: inversion.entry(source)}
    export(holder, dest)
    sheet = inversion_sheet(
        holder,
        inversion.ws,
        inversion.labels[0],
        inversion.objective.images[0],
        cameras,
        cameras.default_yaws(VIEWS),
        cameras.pitch,
    )
    save_png(dest.with_suffix(".png"), sheet)
    report = {
        "name": name,
        **made_by,
        "method": inversion.method,
        "seconds": round(inversion.seconds, 3),
        "losses": {key: round(value, 5) for key, value in inversion.losses.items()},
        "poses": inversion.poses,
        "labels": [[significant(value) for value in c] for c in inversion.labels.tolist()],
    }
    with atomic_write(dest.with_suffix(".json")) as file:
        file.write(json.dumps(report, indent=2).encode())


def is_done(dest: Path, made_by: Callable[[Any], Mapping[str, Any]]) -> bool:
    """Whether an earlier call has written an identity's files in the same way.

    Args:
        made_by: What is compared, for the `origins` in the report.

    Raises:
        UserError: if it had other settings.
    """
    path = dest.with_suffix(".json")
    if not path.exists():
        return False
    try:
        known = json.loads(path.read_bytes())
        wanted = json.loads(json.dumps(made_by(known["origins"])))
        same = all(known[key] == value for key, value in wanted.items())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no report of an inversion; remove it") from error
    if not same:
        raise UserError(
            f"{path} was made with other settings, or of another picture or network; choose"
            " another --outdir"
        )
    return True
