"""The released tools' layout, which is also ours: dataset.json with 25 numbers a picture (SPEC
section 3, docs/training.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data_tools.source_files import SourceFiles, folders_with, shown
from data_tools.sources.base import LARGEST_NUMBER, Frame, Lens, ReadOptions, Source, pose
from dnnlib.archives import safe_name
from dnnlib.console import UserError, brief
from training.data.files import AUXILIARY_FOLDERS, LABEL_FILE, TRAINING_SUFFIXES, label_entries


def find(files: SourceFiles) -> str | None:
    """The list of labels that lies nearest to the top, if there is one."""
    names = [f"{folder}/{LABEL_FILE}".lstrip("/") for folder in folders_with(files, LABEL_FILE)]
    return min(names, key=lambda name: (name.count("/"), name), default=None)


def read(files: SourceFiles, options: ReadOptions) -> Source:
    """Pictures in the order of dataset.json.

    Raises:
        UserError: for a list that is damaged, labels that are no 25 numbers, and pictures that are
            missing.
    """
    listing = find(files)
    if listing is None:
        raise UserError(f"{files.path}: no {LABEL_FILE}")
    folder = listing.rpartition("/")[0]
    entries = label_entries(files.text(listing), files.where(listing))
    frames = [
        _frame(entry, index, folder, files, listing, options) for index, entry in enumerate(entries)
    ]
    return Source("labels", files, frames, upright=False, notes=_notes(files, folder, frames))


def _frame(
    entry: Any, index: int, folder: str, files: SourceFiles, listing: str, options: ReadOptions
) -> Frame:
    where = f"{files.where(listing)}: label {index}"
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
        raise UserError(f"{where} is {shown(brief(entry))} instead of [NAME, [25 numbers]]")
    where += f" ({shown(entry[0])})"
    values = entry[1]
    if not isinstance(values, list) or len(values) != 25:
        found = f"{len(values)} numbers" if isinstance(values, list) else shown(brief(values))
        raise UserError(
            f"{where} has {found} instead of 25: 16 of the camera-to-world matrix, then 9 of the"
            " intrinsics"
        )
    if not all(type(value) is float for value in values):
        raise UserError(f"{where} holds something that is not a number; estimate its camera again")
    numbers = np.array(values)
    if not (np.abs(numbers) < LARGEST_NUMBER).all():
        raise UserError(
            f"{where} has NaN or infinite numbers; estimate its camera again or leave the"
            " picture out"
        )
    name = files.resolve(folder, entry[0], by=listing)
    if name not in files:
        raise UserError(f"{where}: there is no such picture; add it or remove the label")
    cam2world = pose(numbers[:16].reshape(4, 4), options, where, axes="opencv")
    fx, skew, cx, _, fy, cy = numbers[16:22].tolist()
    return Frame(name, cam2world, Lens(fx, fy, cx, cy, skew, options.intrinsics or "normalised"))


def _notes(files: SourceFiles, folder: str, frames: list[Frame]) -> list[str]:
    prefix = f"{folder}/" if folder else ""
    below = {
        name for name in files.names if name.startswith(prefix) and is_picture(name[len(prefix) :])
    }
    without = sorted(below - {frame.name for frame in frames})
    return (
        [f"{len(without)} pictures without a label were left out, the first: {shown(without[0])}"]
        if without
        else []
    )


def is_picture(name: str) -> bool:
    """Whether a file of a data set is one of its pictures; depth maps and masks beside them are
    not.
    """
    is_listed = (
        name.lower().endswith(TRAINING_SUFFIXES) and name.split("/")[0] not in AUXILIARY_FOLDERS
    )
    return is_listed and safe_name(name) is not None
