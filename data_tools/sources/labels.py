"""The released tools' layout, which is also ours: dataset.json with 25 numbers per picture
(docs/training.md).
"""

from __future__ import annotations

from data_tools.sources.base import Frame, Lens, ReadOptions, Source, pose, skipping
from dnnlib.console import UserError
from training.data.files import LABEL_FILE, DataFiles
from training.data.labels import (
    NOT_INTRINSICS,
    first_fault,
    not_intrinsics,
    read_labels,
)
from training.data.traits import read_traits


def find(files: DataFiles) -> str | None:
    """The list of labels that lies nearest to the top, if there is one."""
    return next(iter(files.lists(LABEL_FILE)), None)


def read(files: DataFiles, options: ReadOptions) -> Source:
    """Pictures in the order of dataset.json.

    Raises:
        UserError: for a list that is damaged, labels that are no 25 numbers, and pictures or labels
            that are missing.
    """
    listing = find(files)
    listed = read_labels(files, listing, convert=True)
    if listed.faults and not options.skip_bad:
        raise first_fault(listed.faults, str(files.path))
    source = Source("labels", files, [], upright=False, traits=read_traits(files, listing))
    source.left_out += [f"{files.path}: {fault}" for fault in listed.faults]
    for place, name, numbers in listed.usable():
        where = f"{files.where(listing or LABEL_FILE)}: label {place} ({name})"
        with skipping(source, options):
            if not_intrinsics(numbers[None]).any():
                raise UserError(f"{where} {NOT_INTRINSICS}")
            cam2world = pose(numbers[:16].reshape(4, 4), options, where, axes="opencv")
            fx, skew, cx, _, fy, cy = numbers[16:22].tolist()
            unit = options.intrinsics or "normalised"
            source.frames.append(Frame(name, cam2world, Lens(fx, fy, cx, cy, skew, unit)))
    return source
