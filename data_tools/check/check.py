"""Is a data set what training expects, and does it look like what its maker meant? All findings,
not only the first.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags

from data_tools.check.guess import guess_mistakes
from data_tools.check.report import Report, statistics
from data_tools.parallel import ordered_map
from data_tools.pictures import open_picture
from data_tools.source_files import SourceFiles, shown
from data_tools.sources.base import Array
from data_tools.sources.labels import is_picture
from dnnlib.archives import safe_name
from dnnlib.console import UserError, progress
from dnnlib.files import local_file
from training.cameras import LABEL_SIZE, nearest_point_to_rays, orbit_angles, viewing_rays
from training.data.dataset import ImageDataset
from training.data.files import LABEL_FILE, decode_picture, label_entries
from training.data.labels import LARGEST_FOCAL, LARGEST_NUMBER, TOLERANCE, label_problems

JOBS_PER_WORKER = 500  # each has to load torch first, which takes seconds
MENDS = {"pixels": ("convert --intrinsics pixels", "--intrinsics pixels")}


@dataclass(frozen=True)
class PictureFacts:
    """What reading a picture showed: what is wrong with it ("" = nothing), its side, its pixels'
    hash, whether EXIF turns it.
    """

    problem: str
    side: int = 0
    digest: str = ""
    turned: bool = False


@dataclass(eq=False)
class CheckedData:
    """A data set as far as it could be read: pictures in order, and labels by picture."""

    path: Path
    pictures: list[str]
    labels: dict[str, Array]


def check_data(
    source: str | Path, *, preset: str = "auto", workers: int = 0
) -> tuple[Report, CheckedData]:
    """Check the data set `source` (a folder, a ZIP or its URL) and all its pictures.

    Args:
        preset: of training/config/presets.py; its scene must suit the cameras. "auto" fits the
            scene to the cameras.
        workers: processes that decode pictures; 0 = one a core.

    Raises:
        UserError: if there is nothing that could be checked: no folder and no whole ZIP, or no
            pictures.
    """
    files = SourceFiles(local_file(source))
    report = Report(shown(str(source)))
    places, names, labels = _read_labels(files, report)
    pictures = [
        name
        for name in files.names
        if is_picture(name) or (name in names and name.startswith(("depth/", "mask/")))
    ]
    if not pictures:
        raise UserError(f"{files.path} holds no pictures; add PNG, JPEG or WebP files")
    report.summary.update(pictures=len(pictures), labels=len(names))
    _match(pictures, names, report)
    _check_labels(
        [f"label {place} ({shown(name)})" for place, name in zip(places, names, strict=True)],
        labels,
        report,
    )
    good = _good_poses(labels)
    if good.any():
        _describe_cameras(labels[good], report)
        _check_centres(labels[good], report)
        guess_mistakes(
            labels[good, :16].reshape(-1, 4, 4), _median_focal(labels[good]), preset, report
        )
    checked = CheckedData(
        files.path,
        pictures,
        {name: label for name, label, use in zip(names, labels, good, strict=True) if use},
    )
    _check_pictures(files, checked, workers, report)
    _confirm(files, report)
    return report, checked


# --------------------------------------------------------------------------------------------------
# Labels


def _read_labels(files: SourceFiles, report: Report) -> tuple[list[int], list[str], Array]:
    """Places in the list, names and labels (M, 25) of all entries of dataset.json that are of the
    right form.
    """
    if LABEL_FILE not in files:
        deeper = [name for name in files.names if name.endswith("/" + LABEL_FILE)]
        hint = (
            f"there is {shown(deeper[0])}: convert, or begin at its folder"
            if deeper
            else "convert writes it from other formats"
        )
        report.add(
            "error",
            "no-labels",
            f"there is no {LABEL_FILE} with the camera labels at the top",
            mend=hint,
        )
        return [], [], np.zeros((0, LABEL_SIZE))
    try:
        entries = label_entries(files.text(LABEL_FILE), files.where(LABEL_FILE))
    except UserError as error:
        report.add("error", "no-labels", str(error))
        return [], [], np.zeros((0, LABEL_SIZE))
    problems: dict[tuple[str, str], list[str]] = defaultdict(list)
    found = []
    for index, entry in enumerate(entries):
        if problem := _entry_problem(entry):
            problems[problem].append(
                f"label {index}" + (f" ({shown(entry[0])})" if problem[0] != "entry" else "")
            )
        else:
            found.append((index, entry[0].replace("\\", "/"), entry[1]))
    for (code, message), items in problems.items():
        report.add("error", code, message, tuple(items))
    labels = np.array([numbers for _, _, numbers in found], dtype=np.float64).reshape(
        -1, LABEL_SIZE
    )
    return [index for index, _, _ in found], [name for _, name, _ in found], labels


def _entry_problem(entry: Any) -> tuple[str, str] | None:
    """Code and message of what is wrong with the form of an entry."""
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
        return "entry", "entries of dataset.json are not [NAME, [25 numbers]]"
    name, numbers = entry
    if safe_name(name) is None:
        return (
            "outside",
            "labels name files outside of the data set; names are relative and lead downward",
        )
    if not isinstance(numbers, list):
        return (
            "length",
            (
                "labels are no lists of numbers; each needs 25: 16 of the camera-to-world matrix, 9"
                " of the intrinsics"
            ),
        )
    if len(numbers) != LABEL_SIZE:
        return (
            "length",
            (
                f"labels have {len(numbers)} numbers instead of 25: 16 of the camera-to-world"
                " matrix, then 9 of the intrinsics"
            ),
        )
    if not all(type(value) is float for value in numbers):
        return (
            "not-a-number",
            "labels hold values that are not numbers; estimate these cameras again",
        )
    return None


def _match(pictures: list[str], names: list[str], report: Report) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        report.add(
            "error",
            "label-twice",
            f"{LABEL_FILE} lists pictures twice; keep one of the labels",
            _shown(twice),
        )
    without = sorted(set(pictures) - set(names))
    if without and names:
        report.add(
            "error",
            "no-label",
            "pictures have no label; add its 25 numbers or remove the picture",
            _shown(without),
        )
    known = set(pictures)
    if extra := [name for name in dict.fromkeys(names) if name not in known]:
        report.add(
            "error",
            "no-picture",
            "labels are for files that are no PNG, JPEG or WebP file there",
            _shown(extra),
        )


def _check_labels(shown_as: list[str], labels: Array, report: Report) -> None:
    """Report each label with its first problem, as training would."""
    reported = np.zeros(len(labels), dtype=bool)
    with np.errstate(all="ignore"):
        for bad, problem in label_problems(labels):
            new = bad & ~reported
            if not new.any():
                continue
            reported |= new
            items = []
            for index in np.flatnonzero(new):
                fx, _, cx, _, fy, cy = labels[index, 16:22]
                items.append(
                    f"{shown_as[index]} "
                    + problem.partition(";")[0].format(fx=fx, fy=fy, cx=cx, cy=cy)
                )
            kind = next((key for key in MENDS if key in problem), None)
            mend, options = MENDS[kind] if kind else ("", "")
            advice = problem.partition("; ")[2]
            message = "labels cannot be used" + (f"; {advice}" if advice else "")
            report.add(
                "error",
                "intrinsics-in-pixels" if kind else "label",
                message,
                tuple(items),
                mend,
                options,
            )


def _good_poses(labels: Array) -> np.ndarray:
    """Which of the labels (M, 25) hold a camera-to-world matrix (M,)."""
    cam2world = labels[:, :16].reshape(-1, 4, 4)
    rotation = cam2world[:, :3, :3]
    with np.errstate(all="ignore"):
        good = (np.abs(labels[:, :16]) < LARGEST_NUMBER).all(1)
        good &= (
            np.abs(rotation @ rotation.swapaxes(1, 2) - np.eye(3)).max((1, 2), initial=0)
            < TOLERANCE
        )
        good &= np.abs(cam2world[:, 3] - (0, 0, 0, 1)).max(1, initial=0) < TOLERANCE
        return good & (np.linalg.det(np.where(good[:, None, None], rotation, np.eye(3))) > 0)


def _median_focal(labels: Array) -> float | None:
    """Median focal length of the labels (M, 25) that are in units of the picture's size."""
    focal, centre = labels[:, 16], labels[:, (18, 21)]
    usable = (focal > 0) & (focal <= LARGEST_FOCAL) & (centre >= 0).all(1) & (centre <= 1).all(1)
    return float(np.median(focal[usable])) if usable.any() else None


def _describe_cameras(labels: Array, report: Report) -> None:
    """Angles and distances from the point that the cameras look at."""
    cam2world = torch.from_numpy(labels[:, :16].reshape(-1, 4, 4))
    point = nearest_point_to_rays(*viewing_rays(cam2world))
    around = cam2world.clone()
    around[:, :3, 3] -= point
    yaw, pitch, radius = orbit_angles(around)
    report.summary.update(
        looks_at=point.tolist(),
        yaw=statistics(np.degrees(yaw.numpy())),
        pitch=statistics(np.degrees(pitch.numpy())),
        radius=statistics(radius.numpy()),
    )
    if (np.abs(labels[:, 16]) < LARGEST_NUMBER).all():
        report.summary["focal"] = statistics(labels[:, 16])


def _check_centres(labels: Array, report: Report) -> None:
    """Warn of principal points that are usable but in a corner, as where 0 stands for the
    middle.
    """
    cx, cy = np.median(labels[:, (18, 21)], axis=0)
    if not all(0.25 < value < 0.75 for value in (cx, cy)) and all(
        0 <= value <= 1 for value in (cx, cy)
    ):
        message = (
            f"the principal point is at ({cx:.3g}, {cy:.3g}) (median), far from the picture's"
            " middle"
        )
        report.add(
            "warning",
            "principal-point",
            message,
            mend="0.5, 0.5 is the middle; 0, 0 is the upper left corner",
        )


# --------------------------------------------------------------------------------------------------
# Pictures


def inspect_picture(files: SourceFiles, name: str) -> PictureFacts:
    """Decode one picture as training does."""
    try:
        data = files.read(name)
        header = open_picture(data, files.where(name))
        pixels = decode_picture(io.BytesIO(data), files.where(name))
    except UserError as error:
        return PictureFacts(str(error).removeprefix(files.where(name)).strip())
    # Where there is no EXIF, asking a PNG for it would decode it once more.
    turned = "exif" in header.info and header.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return PictureFacts(
        "", len(pixels), hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest(), turned
    )


def _check_pictures(files: SourceFiles, checked: CheckedData, workers: int, report: Report) -> None:
    names = checked.pictures
    results = ordered_map(inspect_picture, files, names, len(names), workers, JOBS_PER_WORKER)
    with contextlib.closing(results):
        facts = list(progress(results, "Checking pictures", total=len(names), unit="img"))
    unreadable: list[str] = []
    unfit: dict[str, list[str]] = defaultdict(list)  # by what is to be done about it
    for name, fact in zip(names, facts, strict=True):
        if fact.problem:
            is_unreadable = "cannot be read" in fact.problem or "empty file" in fact.problem
            found = unreadable if is_unreadable else unfit[_advice(fact.problem)]
            found.append(f"{shown(name)} {fact.problem.partition('; ')[0]}")
    if unreadable:
        report.add(
            "error",
            "unreadable",
            "pictures cannot be read; copy or make them again",
            tuple(unreadable),
        )
    for advice, items in unfit.items():
        report.add("error", "picture", f"pictures cannot be used; {advice}", tuple(items))
    report.summary["unreadable"] = unreadable
    _check_sizes(names, facts, report)
    if turned := [name for name, fact in zip(names, facts, strict=True) if fact.turned]:
        message = (
            "pictures carry an EXIF orientation, which training does not heed: it sees them turned"
        )
        report.add(
            "warning",
            "exif",
            message,
            _shown(turned),
            "convert turns them where their cameras need it",
        )
    _check_duplicates(checked, facts, report)


def _advice(problem: str) -> str:
    return problem.partition("; ")[2] or problem


def _check_sizes(names: list[str], facts: list[PictureFacts], report: Report) -> None:
    sides = Counter(fact.side for fact in facts if not fact.problem)
    report.summary["sizes"] = {f"{side}x{side}": count for side, count in sides.most_common()}
    if len(sides) > 1:
        usual = sides.most_common(1)[0][0]
        odd = [
            f"{shown(name)} is {fact.side}x{fact.side}"
            for name, fact in zip(names, facts, strict=True)
            if fact.side not in (0, usual)
        ]
        report.add(
            "error",
            "sizes",
            f"pictures are not all {usual}x{usual}",
            tuple(odd),
            f"convert --resolution {usual}",
            f"--resolution {usual}",
        )


def _check_duplicates(checked: CheckedData, facts: list[PictureFacts], report: Report) -> None:
    """The same pixels twice: with the same camera a repetition, which rebalancing makes on purpose;
    with another one a mistake.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name, fact in zip(checked.pictures, facts, strict=True):
        if fact.digest:
            groups[fact.digest].append(name)
    same = [group for group in groups.values() if len(group) > 1]
    report.summary["repeated"] = sum(len(group) - 1 for group in same)
    contradictory = [
        group for group in same if len({_key(checked.labels.get(name)) for name in group}) > 1
    ]
    report.summary["duplicates"] = [[shown(name) for name in group] for group in contradictory]
    if contradictory:
        items = tuple(" = ".join(shown(name) for name in group[:4]) for group in contradictory)
        report.add(
            "warning",
            "duplicates",
            "the same picture is there with different cameras",
            items,
            "keep the right one of each",
        )


def _key(label: Array | None) -> bytes:
    return b"" if label is None else np.round(label, 5).tobytes()


def _confirm(files: SourceFiles, report: Report) -> None:
    """What training itself says, should it know of a problem that was not found above."""
    if report.ok():
        try:
            report.summary["resolution"] = ImageDataset(files.path).resolution
        except UserError as error:
            report.add("error", "training", str(error))


def _shown(names: list[str]) -> tuple[str, ...]:
    return tuple(shown(name) for name in names)
