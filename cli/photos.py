"""Photos that a command line names, as pictures with cameras: one at a time, as each may be large.

A data set with labels gives its pictures as they are. Any other photo goes one of three ways: its
label was given; its pose is optimised from nothing; or its faces are found, cut out and posed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_tools.faces.photos import open_photo, photo_faces, square, with_mask
from data_tools.sources.base import PICTURE_SUFFIXES
from dnnlib.console import UserError
from dnnlib.files import local_file, read_file
from training.cameras import CameraSummary
from training.checkpoints.identities import unique_names
from training.data.dataset import ImageDataset
from training.data.files import LABEL_FILE, DataFiles, decode_text, shown
from training.data.labels import Fault, check_labels, each_label, numbers_fault
from training.inversion.inversion import InversionSettings

Origin = Literal["given", "estimated", "guessed", "unknown"]
GUESSED_PRIOR = 1.0  # of a portrait's place and distance, where its crop is a guess
PHOTO_SUFFIXES = (*PICTURE_SUFFIXES, ".heic", ".heif")


@dataclass(frozen=True, eq=False)
class Subject:
    """One picture of a person.

    Attributes:
        name: Of its files and latents. source: Where it comes from. picture: Square. label: Camera
            (25,), None if it is not known. origin: Where the label comes from; a guessed one is
            but a place to start from. content: Of the file, which is the same elsewhere.
    """

    name: str
    source: str
    content: str
    picture: Image.Image
    label: Tensor | None
    origin: Origin


@dataclass(frozen=True)
class PhotoOptions:
    """How photos become subjects.

    Attributes:
        labels: By file name, of photos that are cut out already; "" stands for all. None where a
            bare name is that of several files.
        is_cut_out: Whether photos without a label are cut out already, and their pose unknown.
        estimator: Of faces. face: Number of the face to take, from 1; None = all.
    """

    labels: Mapping[str, Tensor | None]
    is_cut_out: bool
    estimator: str
    face: int | None

    def label_of(self, file: str) -> Tensor | None:
        """The label (25,) given for a file: by its whole name, else by the bare one.

        Raises:
            UserError: if several files have the bare name.
        """
        key = next((key for key in (file, Path(file).name, "") if key in self.labels), None)
        if key is None:
            return None
        label = self.labels[key]
        if label is None:
            raise UserError(
                f"--poses has labels of several files named {key}; name the photos there as they"
                " are named here, or move them apart"
            )
        return label


def settings_for(settings: InversionSettings, origins: Iterable[Origin]) -> InversionSettings:
    """Those that photos are really inverted by: a guessed camera may move far."""
    if "guessed" not in origins:
        return settings
    latents = dataclasses.replace(settings.latents, pose_prior=GUESSED_PRIOR)
    return dataclasses.replace(settings, latents=latents)


def named_photos(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """Different names, made of those of the files."""
    return list(zip(unique_names(path.stem for path in paths), paths, strict=True))


def content_of(data: bytes) -> str:
    """What tells a file's bytes from others, wherever they lie."""
    return hashlib.sha256(data).hexdigest()


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
    """The subjects in a photo's bytes, which are those of `file`, all by one name.

    Raises:
        UserError: if it cannot be read, shows no face that can be used, or a mask leaves nothing.
    """
    photo = open_photo(data, where)
    if mask is not None:
        photo = with_mask(photo, open_photo(read_file(mask), str(mask)), where)
    label, content = options.label_of(file), content_of(data)
    if label is not None or options.is_cut_out:
        picture = square(photo, where).picture
        origin: Origin = "unknown" if label is None else "given"
        subjects = [Subject(name, where, content, picture, label, origin)]
    elif options.labels:
        raise UserError(f"{where} has no label in --poses; add its 25 numbers")
    else:
        faces = photo_faces(photo, options.estimator, cameras, resolution, where, options.face)
        subjects = [
            Subject(
                name,
                where,
                content,
                one.picture,
                one.label,
                "estimated" if one.is_exact else "guessed",
            )
            for one in faces
        ]
    for one in subjects:
        if "A" in one.picture.getbands() and not one.picture.getchannel("A").getbbox():
            raise UserError(f"{where}: the mask leaves nothing of the picture")
    return subjects


@dataclass(frozen=True, eq=False)
class Data:
    """A data set with labels, or a folder or archive of photos.

    Attributes:
        files: All of it. pictures: (name, file) of each. dataset: None where it has no labels.
    """

    files: DataFiles
    pictures: list[tuple[str, str]]
    dataset: ImageDataset | None

    def given_labels(self, options: PhotoOptions) -> list[Tensor | None]:
        """Label (25,) of each picture, as far as they are given."""
        if self.dataset:
            return list(self.dataset.labels)
        return [options.label_of(file) for _, file in self.pictures]


def data_set_subjects(dataset: ImageDataset, index: int, name: str) -> list[Subject]:
    """The picture of a data set with labels."""
    image, label = dataset[index]
    picture = Image.fromarray(image.movedim(0, -1).numpy())
    file = dataset.file_names[index]
    content = content_of(dataset.files.read(file))
    return [Subject(name, dataset.files.where(file), content, picture, label, "given")]


def open_data(path: str) -> Data:
    """A data set or a folder of photos.

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
    return Data(files, list(zip(names, found, strict=True)), dataset)


# --------------------------------------------------------------------------------------------------
# Labels


def parse_label(text: str) -> Tensor:
    """A camera label (25,): numbers with commas or spaces between them, or a JSON file of 25.

    Raises:
        UserError: if these are not 25 numbers that describe a camera.
    """
    is_file = os.path.isfile(text)
    content = decode_text(read_file(Path(text)), f"--label {shown(text)}") if is_file else text
    try:
        parsed = json.loads(content) if content.lstrip().startswith("[") else None
        numbers = parsed or [float(part) for part in content.replace(",", " ").split()]
        values = [float(value) for value in numbers]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"--label {shown(text)[:60]} is neither 25 numbers nor a JSON file of them"
        ) from error
    return _checked([values], ["--label"], "--label")[""]


def read_poses(path: Path) -> dict[str, Tensor | None]:
    """Labels (25,) of a list in the form of dataset.json, by whole and by bare file name; None for
    a bare name of several files.

    Raises:
        UserError: if it cannot be read, holds no such labels, or the same file twice.
    """
    entries = []
    for label in each_label(decode_text(read_file(path), str(path)), str(path), str(path)):
        if isinstance(label, Fault):
            raise UserError(str(label))
        entries.append(label[1:])
    names = [str(PurePosixPath(name.replace("\\", "/"))) for name, _ in entries]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path} lists {shown(twice[0])} twice; leave one out")
    labels = _checked([numbers for _, numbers in entries], names, str(path))
    count = Counter(PurePosixPath(name).name for name in names)
    bare = {PurePosixPath(name).name: label for name, label in labels.items()}
    return {name: one if count[name] == 1 else None for name, one in bare.items()} | labels


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
