"""Which format a source has, and its reader."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from data_tools.sources import colmap, labels, srn, table, transforms
from data_tools.sources.base import PICTURE_SUFFIXES, Frame, ReadOptions, Source, skipping
from dnnlib.console import UserError
from dnnlib.files import local_file
from dnnlib.numbers import counted
from training.data.files import LABEL_FILE, DataFiles, faces_command, shown
from training.data.labels import rename_advice

Format = Literal["auto", "labels", "transforms", "colmap", "srn", "csv"]
FORMATS: tuple[str, ...] = get_args(Format)
UNREADABLE = (".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".mp4", ".mov")
LOOKED_FOR = (
    "dataset.json, transforms.json, a COLMAP model (cameras and images, .bin or .txt), rgb/ with"
    " pose/, or a CSV"
)


def read_source(path: str | Path, kind: str = "auto", options: ReadOptions | None = None) -> Source:
    """Pictures with cameras of a folder, a ZIP (also at a URL), or of one transforms.json or CSV.

    Raises:
        UserError: what is missing or wrong, where, and what to do.
    """
    options = options or ReadOptions()
    path = local_file(path)
    if path.is_file() and path.suffix.lower() in (".json", ".csv"):
        return _read_list(path, kind, options)
    files = DataFiles(path)
    found = [name for name, finder in _FINDERS.items() if finder(files)]
    if "labels" in found and not files.find(LABEL_FILE):
        # Somewhere below: perhaps a data set that was made from this very source.
        found.sort(key=lambda name: name == "labels")
    if kind == "auto" and not found:
        raise UserError(f"{path} holds no cameras: looked for {LOOKED_FOR}{_hint(files)}")
    if kind != "auto" and kind not in found:
        raise UserError(
            f"{path} does not look like --format {kind}"
            + (f", but like {found[0]}" if found else "")
        )
    kind = found[0] if kind == "auto" else kind
    _check_options(kind, options)
    return _usable(_READERS[kind](files, options), options)


def _read_list(path: Path, kind: str, options: ReadOptions) -> Source:
    """A source named by its list, read from the list's folder."""
    own = (
        "csv"
        if path.suffix.lower() == ".csv"
        else "labels"
        if path.name == LABEL_FILE
        else "transforms"
    )
    if kind not in ("auto", own):
        raise UserError(f"{path} is no --format {kind}")
    _check_options(own, options)
    files = DataFiles(path.absolute().parent)
    if own == "labels":
        return _usable(labels.read(files, options), options)
    return _usable(
        table.read(files, options, path.name)
        if own == "csv"
        else transforms.read(files, options, [path.name]),
        options,
    )


def _usable(source: Source, options: ReadOptions) -> Source:
    """The source with each picture once, and a note on those that it has no camera for.

    Raises:
        UserError: if a picture has two cameras, or there are no pictures.
    """
    files = source.files
    first: dict[str, Frame] = {}
    for frame in source.frames:
        known = first.setdefault(frame.name, frame)
        with skipping(source, options):
            if known.lens != frame.lens or not np.allclose(known.cam2world, frame.cam2world):
                raise UserError(
                    f"{files.where(frame.name)} is listed twice, with different cameras; keep one"
                    " of the two"
                )
    source.frames = list(first.values())
    if not source.frames:
        reason = f"; the first left out: {source.left_out[0]}" if source.left_out else ""
        raise UserError(f"{files.path} holds no pictures that can be used{reason}")
    if source.kind != "labels":  # whose faults say it
        pictures = [name for name in files.names if name.lower().endswith(PICTURE_SUFFIXES)]
        others = len(pictures) - len(first) - len(source.left_out)
        if others > 0:
            said = " ".join(source.left_out)
            example = (name for name in pictures if name not in first and name not in said)
            source.notes += [
                f"pictures without a camera were not used ({others}), such as {shown(name)}"
                for name in itertools.islice(example, 1)
            ]
    return source


def _check_options(kind: str, options: ReadOptions) -> None:
    """Refuse options that would have no effect; radius and pivot also serve to recentre."""
    for name in ("camera_axes", "poses", "intrinsics", "angles", "focal"):
        if getattr(options, name) is not None and name not in _OPTIONS[kind]:
            raise UserError(
                f"--{name.replace('_', '-')} has no effect on a source of --format {kind}; leave"
                " it out"
            )


def _hint(files: DataFiles) -> str:
    if misnamed := rename_advice(files):
        return misnamed
    suffixes = [Path(name).suffix.lower() for name in files.names]
    if unreadable := [suffix for suffix in suffixes if suffix in UNREADABLE]:
        return (
            f"; {counted(len(unreadable), unreadable[0] + ' file')} cannot be read: export as JPEG"
            " or PNG"
        )
    if count := sum(suffix in PICTURE_SUFFIXES for suffix in suffixes):
        return (
            f"; {counted(count, 'picture')} without cameras: docs/own-data.md shows how to get"
            f" them, of photos of people this makes them: {faces_command(files.path)}"
        )
    return ""


_MATRICES = ("camera_axes", "poses")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "labels": (*_MATRICES, "intrinsics"),
    "transforms": _MATRICES,
    "colmap": (),
    "srn": _MATRICES,
    "csv": ("angles", "focal"),
}
_FINDERS = {
    "labels": labels.find,
    "transforms": transforms.find,
    "colmap": colmap.find,
    "srn": srn.find,
    "csv": table.find,
}
_READERS = {
    "labels": labels.read,
    "transforms": transforms.read,
    "colmap": colmap.read,
    "srn": srn.read,
    "csv": table.read,
}
