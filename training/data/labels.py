"""Camera labels of a data set: reading dataset.json, and what can be wrong with 25 numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from dnnlib.console import UserError, brief
from training.cameras import LABEL_SIZE
from training.data.files import LABEL_FILE, DataFiles, label_entries, read_file

TOLERANCE = 1e-3  # of rotations and of the matrices' fixed entries
LARGEST_FOCAL = 100.0  # image sizes (half a degree of view); beyond, it must be pixels
LARGEST_NUMBER = 1e30  # labels are kept in float32
LABELS_SPARE, LABELS_PER_FILE = 16 << 20, 4096  # bytes of dataset.json: a label takes about 600


def read_labels(files: DataFiles, names: Collection[str]) -> tuple[list[str], np.ndarray]:
    """Names and label numbers (M, 25) in the order of dataset.json."""
    if LABEL_FILE not in names:
        deeper = next(
            (
                f" (there is {name}: the data must start at its folder)"
                for name in names
                if name.endswith("/" + LABEL_FILE)
            ),
            "",
        )
        raise UserError(
            f"{files.path}: no {LABEL_FILE} with the camera labels at the top{deeper};"
            " docs/training.md shows how to write it"
        )
    where = f"{files.path}: {LABEL_FILE}"
    entries = label_entries(
        read_file(files, LABEL_FILE, largest=LABELS_SPARE + LABELS_PER_FILE * len(names)), where
    )
    for index, entry in enumerate(entries):
        _check_entry(entry, f"{where}: label {index}")
    return [name.replace("\\", "/") for name, _ in entries], np.array(
        [numbers for _, numbers in entries]
    )


def _check_entry(entry: Any, where: str) -> None:
    """Refuse what is not [NAME, [25 numbers]]."""
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
        raise UserError(f"{where} is {brief(entry)} instead of [NAME, [25 numbers]]")
    name, numbers = entry
    if not isinstance(numbers, list) or len(numbers) != LABEL_SIZE:
        found = f"{len(numbers)} numbers" if isinstance(numbers, list) else brief(numbers)
        raise UserError(
            f"{where} ({name}) has {found} instead of 25: 16 of the camera-to-world matrix, then 9"
            " of the intrinsics"
        )
    for value in numbers:
        if type(value) is not float:
            raise UserError(
                f"{where} ({name}) holds {brief(value)!r}, which is not a number; estimate its"
                " camera again"
            )


def check_labels(labels: np.ndarray, names: Sequence[str], where: str) -> None:
    """Check camera labels (M, 25): finite numbers, a proper rotation, intrinsics in units of the
    image size.

    Raises:
        UserError: for the first label with a problem; `where` and the label's index and name are
            said.
    """
    for bad, problem in label_problems(labels):
        if bad.any():
            index = int(bad.argmax())
            fx, _, cx, _, fy, cy = labels[index, 16:22]
            raise UserError(
                f"{where}: label {index} ({names[index]}) "
                + problem.format(fx=fx, fy=fy, cx=cx, cy=cy)
            )


def label_problems(labels: np.ndarray) -> Iterator[tuple[np.ndarray, str]]:
    """Pairs of (which labels are bad (M,), in what way); each test may rely on those before it."""
    yield (
        ~np.all(np.abs(labels) < LARGEST_NUMBER, axis=1),
        "has NaN or infinite numbers; estimate its camera again or leave the picture out",
    )
    cam2world = labels[:, :16].reshape(-1, 4, 4)
    last_row = np.abs(cam2world[:, 3] - (0, 0, 0, 1)).max(1) > TOLERANCE
    last_column = np.abs(cam2world[:, :, 3] - (0, 0, 0, 1)).max(1) > TOLERANCE
    yield (
        last_row & ~last_column,
        "has a transposed camera matrix; write it row by row, the translation in the last column",
    )
    yield (
        last_row,
        (
            "has a camera matrix whose last row is not 0 0 0 1; its first 16 numbers must be a"
            " camera-to-world matrix, row by row"
        ),
    )
    rotation = cam2world[:, :3, :3]
    skewed = np.abs(rotation @ rotation.swapaxes(1, 2) - np.eye(3)).max((1, 2)) > TOLERANCE
    yield (
        skewed,
        (
            "has a rotation that is not orthonormal to 1e-3; take scale and shear out of the camera"
            " matrix"
        ),
    )
    yield (
        np.linalg.det(rotation) < 0,
        "has a rotation of determinant -1; the camera's axes must be x right, y down, z forward",
    )
    focal, centre = labels[:, (16, 20)], labels[:, (18, 21)]
    values = "(focal {fx:g} {fy:g}, centre {cx:g} {cy:g})"
    pixels = np.any(focal > LARGEST_FOCAL, axis=1) | np.any(centre > 1, axis=1)
    yield pixels, f"has intrinsics that look like pixels {values}; divide them by the image size"
    yield (
        np.any(focal <= 0, axis=1),
        f"has a focal length that is not above 0 {values}; write it in units of the image size",
    )
    yield (
        np.any(centre < 0, axis=1),
        f"has a principal point outside the picture {values}; cx and cy lie in 0..1",
    )
    fixed = np.abs(labels[:, (19, 22, 23, 24)] - (0, 0, 0, 1)).max(1) > TOLERANCE
    yield (
        fixed,
        "has intrinsics that are not of the form fx s cx, 0 fy cy, 0 0 1; write them row by row",
    )


def match_labels(files: DataFiles, pictures: list[str], labelled: list[str]) -> list[int]:
    """Label index of every picture."""
    index_of = {name: index for index, name in enumerate(labelled)}
    if len(index_of) < len(labelled):
        twice = next(name for index, name in enumerate(labelled) if index_of[name] != index)
        raise UserError(
            f"{files.path}: {LABEL_FILE} lists {twice} twice; keep one of the two labels"
        )
    if missing := [name for name in pictures if name not in index_of]:
        count = f"{len(missing)} of {len(pictures)} pictures have none"
        raise UserError(
            f"{files.path}: {missing[0]} has no label in {LABEL_FILE} ({count}); add its 25 numbers"
            " or remove the picture"
        )
    if extra := sorted(index_of.keys() - set(pictures), key=index_of.__getitem__):
        raise UserError(
            f"{files.path}: {LABEL_FILE}: label {index_of[extra[0]]} is for {extra[0]}, which is no"
            f" PNG, JPEG or WebP file there ({len(extra)} such labels); add the picture or remove"
            " the label"
        )
    return [index_of[name] for name in pictures]
