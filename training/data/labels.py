"""Camera labels of a data set: reading dataset.json, and what can be wrong with 25 numbers."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dnnlib.console import UserError, brief
from training.cameras import LABEL_SIZE
from training.data.files import (
    AUXILIARY_FOLDERS,
    LABEL_FILE,
    TRAINING_SUFFIXES,
    DataFiles,
    convert_command,
    faces_command,
    parse_json,
    shown,
)

TOLERANCE = 1e-3  # of rotations and of the matrices' fixed entries
LARGEST_FOCAL = 100.0  # image sizes (half a degree of view); beyond, it must be pixels
LARGEST_NUMBER = 1e30  # labels are kept in float32
CAMERA_SUFFIXES = (".json", ".csv", ".txt", ".bin")  # of lists of cameras in other formats
MOST_FAULTS = 10_000  # beyond, a file is not a list of labels with mistakes


@dataclass(frozen=True)
class Fault:
    """What is wrong with a label or a picture.

    Attributes:
        code: short, for programs. subject: the label or picture. problem: what is wrong with it,
            as the rest of the sentence. advice: what to do. place: of the label in the list; None
            for a picture.
    """

    code: str
    subject: str
    problem: str
    advice: str
    place: int | None = None

    def __str__(self) -> str:
        return f"{self.subject} {self.problem}; {self.advice}"


@dataclass(eq=False)
class LabelList:
    """A dataset.json and the pictures that it belongs to.

    Attributes:
        names, places, numbers: file, place in the list and 25 numbers (M, 25) of all labels of the
            right form. pictures: all pictures in or below the list's folder, sorted. faults: of the
            other labels, and of labels and pictures that do not go together.
    """

    names: list[str]
    places: list[int]
    numbers: np.ndarray
    pictures: list[str]
    faults: list[Fault]

    def usable(self) -> Iterator[tuple[int, str, np.ndarray]]:
        """Place, file and numbers of the labels without a fault."""
        faulty = {fault.place for fault in self.faults}
        for place, name, numbers in zip(self.places, self.names, self.numbers, strict=True):
            if place not in faulty:
                yield place, name, numbers


def read_labels(
    files: DataFiles, listing: str | None = None, *, convert: bool = False
) -> LabelList:
    """Names and labels of dataset.json, at the top or as `listing`, and the pictures beside it.

    With `convert`, labels may be for pictures of formats that training does not read.

    Raises:
        UserError: if there is no such list, or it holds no labels.
    """
    listing = listing or files.find(LABEL_FILE)
    if listing is None:
        raise UserError(f"{files.path}: {_no_list(files)}")
    folder = posixpath.dirname(listing)
    faults: list[Fault] = []
    found = []
    for label in each_label(files.text(listing), files.where(listing), shown(listing)):
        if len(faults) > MOST_FAULTS:
            raise first_fault(faults, str(files.path))
        if isinstance(label, Fault):
            faults.append(label)
            continue
        place, name, numbers = label
        try:
            found.append((place, files.resolve(folder, name, by=listing), numbers))
        except UserError:
            subject = f"{shown(listing)}: label {place} ({shown(name)})"
            problem = f"lies outside of {files.path}"
            advice = "use names relative to the list"
            faults.append(Fault("outside", subject, problem, advice, place))
    names = [name for _, name, _ in found]
    pictures = pictures_below(files, folder, names)
    places = [place for place, _, _ in found]
    faults += _match(files, listing, names, places, pictures, convert)
    rows = np.array([numbers for _, _, numbers in found], dtype=np.float64)
    return LabelList(names, places, rows.reshape(-1, LABEL_SIZE), pictures, faults)


def _no_list(files: DataFiles) -> str:
    missing = f"no {LABEL_FILE} with the camera labels at the top"
    if misnamed := rename_advice(files):
        return missing + misnamed
    deeper = files.lists(LABEL_FILE)
    hint = f" (there is {shown(deeper[0])}: the data must start at its folder)" if deeper else ""
    return f"{missing}{hint}; docs/training.md shows how to write it, {_label_command(files)}"


def rename_advice(files: DataFiles) -> str:
    """What to do about a dataset.json in other capitals, if there is one."""
    found = (name for name in files.names if name.lower() == LABEL_FILE)
    return next((f"; rename {shown(name)} to {LABEL_FILE}" for name in found), "")


def _label_command(files: DataFiles) -> str:
    """What makes a data set of files without labels."""
    cameras = [name for name in files.names if name.lower().endswith(CAMERA_SUFFIXES)]
    if cameras:
        return f"from other formats this does: {convert_command(files.path)}"
    return f"of photos of people this makes cameras, too: {faces_command(files.path)}"


def each_label(text: str, where: str, listing: str) -> Iterator[tuple[int, str, Any] | Fault]:
    """Place, name and 25 numbers of each entry of a list in the form of dataset.json, or what is
    wrong with it; faults call the list `listing`.

    Raises:
        UserError: that names `where`, if the text is no JSON of that form.
    """
    for place, entry in enumerate(_label_entries(text, where)):
        subject = f"{listing}: label {place}"
        if (fault := _entry_fault(entry, subject, place)) or (
            fault := numbers_fault(entry[1], f"{subject} ({shown(entry[0])})", place)
        ):
            yield fault
        else:
            yield place, entry[0], entry[1]


def _label_entries(text: str, where: str) -> list[Any]:
    form = ' of the form {"labels": [[NAME, [25 numbers]], ...]}'
    content = parse_json(text, where, form)
    if not isinstance(content, dict):
        raise UserError(f"{where} is not JSON{form}: it holds {brief(content, 20)}")
    entries = as_entries(content.get("labels"))
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{where} has no camera labels; it must list 25 numbers for every picture")
    return entries


def as_entries(labels: Any) -> Any:
    """Labels as a list of [NAME, NUMBERS]; the released tools also take an object."""
    return [list(entry) for entry in labels.items()] if isinstance(labels, dict) else labels


def _entry_fault(entry: Any, subject: str, place: int) -> Fault | None:
    if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str):
        return None
    problem = f"is {shown(brief(entry))} instead of [NAME, [25 numbers]]"
    return Fault("entry", subject, problem, "write a file's name and its label", place)


def numbers_fault(numbers: Any, subject: str, place: int) -> Fault | None:
    """What keeps JSON from being 25 numbers."""
    if not isinstance(numbers, list) or len(numbers) != LABEL_SIZE:
        found = f"{len(numbers)} numbers" if isinstance(numbers, list) else shown(brief(numbers))
        advice = "it needs 16 of the camera-to-world matrix, then 9 of the intrinsics"
        return Fault("length", subject, f"has {found} instead of 25", advice, place)
    for value in numbers:
        if type(value) is not float:
            problem = f"holds {shown(brief(value))!r}, which is not a number"
            return Fault("not-a-number", subject, problem, "estimate its camera again", place)
    return None


def pictures_below(files: DataFiles, folder: str, labelled: Iterable[str] = ()) -> list[str]:
    """Pictures of a data set whose list lies in `folder`, sorted. Depth maps and masks beside them
    count if they are labelled.
    """
    prefix = f"{folder}/" if folder else ""
    known = {name for name in labelled if name in files}
    return sorted(
        name
        for name in files.names
        if name in known
        or (
            name.startswith(prefix)
            and name.lower().endswith(TRAINING_SUFFIXES)
            and name[len(prefix) :].split("/")[0] not in AUXILIARY_FOLDERS
        )
    )


def _match(
    files: DataFiles,
    listing: str,
    names: list[str],
    places: list[int],
    pictures: list[str],
    convert: bool,
) -> Iterator[Fault]:
    """Pictures without a label; labels without a picture, and second labels of one."""
    labelled = set(names)
    for name in pictures:
        if name not in labelled:
            advice = (
                "add its 25 numbers, remove the picture, or leave it out with `dataset_tool.py"
                " convert --skip-bad`"
            )
            yield Fault("no-label", shown(name), f"has no label in {LABEL_FILE}", advice)
    seen = set()
    for name, place in zip(names, places, strict=True):
        subject = f"{shown(listing)}: label {place} ({shown(name)})"
        if name in seen:
            problem = "labels its picture twice"
            yield Fault("label-twice", subject, problem, "keep one of the two labels", place)
        elif name not in files:
            problem = "is for a picture that is not there"
            yield Fault("no-picture", subject, problem, "add it or remove the label", place)
        elif not convert and not name.lower().endswith(TRAINING_SUFFIXES):
            problem = "is for a file that is no PNG, JPEG or WebP"
            yield Fault(
                "no-picture", subject, problem, "`dataset_tool.py convert` makes it one", place
            )
        seen.add(name)


def first_fault(faults: Sequence[Fault], where: str) -> UserError:
    """The first of some faults as an error, with the number of its like."""
    more = sum(fault.code == faults[0].code for fault in faults) - 1
    return UserError(f"{where}: {faults[0]}" + (f" ({more} more like it)" if more else ""))


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
    yield not_intrinsics(labels), NOT_INTRINSICS


NOT_INTRINSICS = (
    "has intrinsics that are not of the form fx s cx, 0 fy cy, 0 0 1; write them row by row"
)


def not_intrinsics(labels: np.ndarray) -> np.ndarray:
    """Which of the labels (M, 25) have other numbers where those of intrinsics are fixed (M,)."""
    is_other: np.ndarray = np.abs(labels[:, (19, 22, 23, 24)] - (0, 0, 0, 1)).max(1) > TOLERANCE
    return is_other
