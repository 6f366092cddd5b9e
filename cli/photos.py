"""Photos that a command line names, as pictures with cameras: one at a time, as each may be large.

A data set with labels gives its pictures as they are. Any other photo goes one of three ways: its
label was given; its pose is optimised from nothing; or its faces are found, cut out and posed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_tools.faces.photos import open_photo, photo_faces, square, with_mask
from data_tools.sources.base import PICTURE_SUFFIXES
from dnnlib.console import UserError
from dnnlib.files import local_file
from training.cameras import CameraSummary
from training.checkpoints.identities import safe_identity_name
from training.data.dataset import ImageDataset
from training.data.files import LABEL_FILE, DataFiles, shown
from training.data.labels import check_labels, label_entries, numbers_fault

PHOTO_SUFFIXES = (*PICTURE_SUFFIXES, ".avif", ".heic", ".heif")


@dataclass(frozen=True, eq=False)
class Subject:
    """One picture of a person.

    Attributes:
        name: Of its files and latents. source: Where it comes from. picture: Square. label: Camera
            (25,), None if it is not known. is_exact: Whether the label can stay as it is.
    """

    name: str
    source: str
    picture: Image.Image
    label: Tensor | None
    is_exact: bool


@dataclass(frozen=True)
class PhotoOptions:
    """How photos become subjects.

    Attributes:
        labels: By file name, of photos that are cut out already; "" stands for all.
        is_cut_out: Whether photos without a label are cut out already, and their pose unknown.
        estimator: Of faces. face: Number of the face to take, from 1; None = all.
    """

    labels: Mapping[str, Tensor]
    is_cut_out: bool
    estimator: str
    face: int | None


def named_photos(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """Different names, made of those of the files."""
    names: dict[str, Path] = {}
    for path in paths:
        stem = safe_identity_name(path.stem)
        copies = (f"{stem}-{number}" for number in range(2, len(paths) + 2))
        name = stem if stem not in names else next(one for one in copies if one not in names)
        names[name] = path
    return list(names.items())


def read_file(path: Path) -> bytes:
    """Content of a file.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the name") from error


def subjects_of(
    name: str,
    file: str,
    data: bytes,
    where: str,
    options: PhotoOptions,
    cameras: CameraSummary,
    resolution: int,
    mask: Path | None = None,
) -> list[Subject]:
    """The subjects in a photo's bytes, which are those of `file`.

    Raises:
        UserError: if it cannot be read, or shows no face that can be used.
    """
    photo = open_photo(data, where)
    if mask is not None:
        photo = with_mask(photo, open_photo(read_file(mask), str(mask)), where)
    label = options.labels.get(Path(file).name, options.labels.get(""))
    if label is not None or options.is_cut_out:
        face = square(photo, where)
        return [Subject(name, where, face.picture, label, label is not None)]
    if options.labels:
        raise UserError(f"{where} has no label in --poses; add its 25 numbers")
    faces = photo_faces(photo, options.estimator, cameras, resolution, where, options.face)
    names = [name] if len(faces) == 1 else [f"{name}-{number + 1}" for number in range(len(faces))]
    return [
        Subject(one, where, face.picture, face.label, face.is_exact)
        for one, face in zip(names, faces, strict=True)
    ]


def data_set_subjects(dataset: ImageDataset, index: int, name: str) -> list[Subject]:
    """The picture of a data set with labels."""
    image, label = dataset[index]
    picture = Image.fromarray(image.movedim(0, -1).numpy())
    source = dataset.files.where(dataset.file_names[index])
    return [Subject(name, source, picture, label, True)]


def open_data(path: str) -> tuple[DataFiles, list[tuple[str, str]], ImageDataset | None]:
    """Files of a data set or of a folder of photos, (name, file) of its pictures, and the data set
    if it has labels.

    Raises:
        UserError: if it cannot be read or holds no pictures.
    """
    files = DataFiles(local_file(path))
    dataset = ImageDataset(path) if files.lists(LABEL_FILE) else None
    found = (
        dataset.file_names
        if dataset
        else [name for name in files.names if name.lower().endswith(PHOTO_SUFFIXES)]
    )
    if not found:
        raise UserError(f"{files.path} holds no pictures; add PNG or JPEG files")
    names = [name for name, _ in named_photos([Path(one.replace("/", "_")) for one in found])]
    return files, list(zip(names, found, strict=True)), dataset


# --------------------------------------------------------------------------------------------------
# Labels


def parse_label(text: str) -> Tensor:
    """A camera label (25,): numbers with commas or spaces between them, or a JSON file of 25.

    Raises:
        UserError: if these are not 25 numbers that describe a camera.
    """
    is_file = os.path.isfile(text)
    content = read_file(Path(text)).decode("utf-8", "replace") if is_file else text
    try:
        parsed = json.loads(content) if content.lstrip().startswith("[") else None
        numbers = parsed or [float(part) for part in content.replace(",", " ").split()]
        values = [float(value) for value in numbers]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"--label {shown(text)[:60]} is neither 25 numbers nor a JSON file of them"
        ) from error
    return _checked([values], ["--label"], "--label")[""]


def read_poses(path: Path) -> dict[str, Tensor]:
    """Labels (25,) by file name of a list in the form of dataset.json.

    Raises:
        UserError: if it cannot be read, or holds no such labels.
    """
    entries = label_entries(read_file(path).decode("utf-8", "replace"), str(path))
    if not all(isinstance(one, list) and len(one) == 2 for one in entries):
        raise UserError(f"{path}: labels are pairs of a file's name and 25 numbers")
    names = [Path(str(name)).name for name, _ in entries]
    return _checked([numbers for _, numbers in entries], names, str(path))


def _checked(labels: list[object], names: list[str], where: str) -> dict[str, Tensor]:
    for place, (numbers, name) in enumerate(zip(labels, names, strict=True)):
        if fault := numbers_fault(numbers, f"{where} ({name})", place):
            raise UserError(str(fault))
    values = np.array(labels, dtype=np.float64)
    check_labels(values, names, where)
    keys = [""] if where == "--label" else names
    return dict(zip(keys, torch.from_numpy(values).float(), strict=True))


def each_photo(
    paths: Sequence[tuple[str, Path]], masks: Sequence[Path]
) -> Iterator[tuple[str, Path, Path | None]]:
    """(name, file, mask) of photos.

    Raises:
        UserError: unless there are no masks, or as many as photos.
    """
    if masks and len(masks) != len(paths):
        raise UserError(f"{len(paths)} pictures and {len(masks)} masks; give --mask once for each")
    for index, (name, path) in enumerate(paths):
        yield name, path, masks[index] if masks else None
