"""Check that a data set is what training expects, and looks like what its maker meant. Reports all
findings, not only the first.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags

from data_tools.check.guess import guess_mistakes
from data_tools.check.report import Report, statistics
from data_tools.pictures import to_rgb
from data_tools.sources.base import Array
from dnnlib.console import UserError, progress
from dnnlib.files import local_file
from dnnlib.parallel import ordered_map
from training.cameras import LABEL_SIZE, nearest_point_to_rays, orbit_angles, viewing_rays
from training.data.dataset import PLAIN_BACKGROUND, ImageDataset
from training.data.files import LABEL_FILE, DataFiles, shown
from training.data.labels import (
    LARGEST_FOCAL,
    LARGEST_NUMBER,
    Fault,
    LabelList,
    label_problems,
    pictures_below,
    read_labels,
)
from training.data.pictures import decode_picture, open_picture
from training.data.scene import fit_dataset_scene
from training.data.traits import read_traits

JOBS_PER_WORKER = 500  # each has to load torch first, which takes seconds
PLAIN_INTRINSICS = (1.0, 0.0, 0.5, 0.0, 1.0, 0.5, 0.0, 0.0, 1.0)
PROFILE_TOLERANCE = 8  # of 255 levels, up to which a profile may as well be that of sRGB
UNHEEDED = {
    "exif": (
        "pictures carry an EXIF orientation, which training ignores: it sees them turned",
        "convert turns them where their cameras need it",
    ),
    "profile": (
        "pictures carry a colour profile, which training ignores: it sees other colours",
        "convert makes them sRGB",
    ),
}
# What a picture's alpha can be that training makes little of: how large a part of the pictures may
# be so, what to say, and what mends it.
ODD_ALPHA = {
    "empty-alpha": (0, "pictures are wholly transparent", "leave them out"),
    "opaque-alpha": (0, "pictures with alpha are opaque everywhere", "cut the object out"),
    "hard-alpha": (
        0.5,
        "pictures have no half-transparent pixels: edges are stairs",
        "make masks larger than the pictures shall be: shrinking softens edges",
    ),
    "premultiplied": (
        0.5,
        "pictures are premultiplied, as it seems: half-transparent pixels are never brighter than"
        " their alpha, and edges will look dark",
        "save them with straight alpha, as PNG wants it",
    ),
}
MENDS = {"pixels": ("convert --intrinsics pixels", "--intrinsics pixels")}


@dataclass(frozen=True)
class PictureFacts:
    """What reading a picture showed: what is wrong with it ("" = nothing), its side, its pixels'
    hash, what training ignores of it, what is odd about its alpha (None = it has none).
    """

    problem: str
    side: int = 0
    digest: str = ""
    unheeded: tuple[str, ...] = ()
    alpha: tuple[str, ...] | None = None


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
        workers: processes that decode pictures; 0 = one per core.

    Raises:
        UserError: if there is nothing that could be checked: no folder and no whole ZIP, or no
            pictures.
    """
    files = DataFiles(local_file(source))
    report = Report(shown(str(source)))
    listed = _read_labels(files, report)
    names, labels, pictures = listed.names, listed.numbers, listed.pictures
    if not pictures:
        raise UserError(f"{files.path} holds no pictures; add PNG, JPEG or WebP files")
    report.summary.update(pictures=len(pictures), labels=len(names))
    _report_faults(listed.faults, report)
    _check_labels(
        [
            f"label {place} ({shown(name)})"
            for place, name in zip(listed.places, names, strict=True)
        ],
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
    _confirm(files, preset, report)
    return report, checked


# --------------------------------------------------------------------------------------------------
# Labels


def _read_labels(files: DataFiles, report: Report) -> LabelList:
    """Pictures, and all labels that are of the right form. Traits are for metrics alone."""
    try:
        listed = read_labels(files)
    except UserError as error:
        report.add("error", "no-labels", str(error))
        return LabelList([], [], np.zeros((0, LABEL_SIZE)), pictures_below(files, ""), [])
    try:
        read_traits(files)
    except UserError as error:
        report.add("warning", "traits", str(error))
    return listed


def _report_faults(faults: list[Fault], report: Report) -> None:
    """Report labels and pictures that cannot be used, those of one kind together."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for fault in faults:
        is_picture = fault.place is None
        item = fault.subject if is_picture else f"{fault.subject} {fault.problem}"
        groups[fault.code, fault.advice].append(item)
    for (code, advice), items in groups.items():
        what = (
            f"pictures have no label in {LABEL_FILE}"
            if code == "no-label"
            else "labels cannot be used"
        )
        report.add("error", code, f"{what}; {advice}", tuple(items))


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
    alone = np.concatenate([labels[:, :16], np.tile(PLAIN_INTRINSICS, (len(labels), 1))], axis=1)
    with np.errstate(all="ignore"):
        good: np.ndarray = ~np.any([bad for bad, _ in label_problems(alone)], axis=0)
    return good


def _median_focal(labels: Array) -> float | None:
    """Median focal length of the labels (M, 25) that are in units of the picture's size."""
    focal, centre = labels[:, 16], labels[:, (18, 21)]
    usable = (focal > 0) & (focal <= LARGEST_FOCAL) & (centre >= 0).all(1) & (centre <= 1).all(1)
    return float(np.median(focal[usable])) if usable.any() else None


def _degrees(angles: torch.Tensor) -> Array:
    """Radians in degrees, without the noise of their last digits and without -0."""
    return np.degrees(angles.numpy()).round(6) + 0.0


def _describe_cameras(labels: Array, report: Report) -> None:
    """Angles and distances from the point that the cameras look at; the radius is that from the
    world's origin.
    """
    cam2world = torch.from_numpy(labels[:, :16].reshape(-1, 4, 4))
    point = nearest_point_to_rays(*viewing_rays(cam2world))
    around = cam2world.clone()
    around[:, :3, 3] -= point
    yaw, pitch, distance = orbit_angles(around)
    is_rounding = point.abs() < 1e-6 * distance.median()
    report.summary.update(
        looks_at=point.masked_fill(is_rounding, 0.0).tolist(),
        yaw=statistics(_degrees(yaw)),
        pitch=statistics(_degrees(pitch)),
        radius=statistics(cam2world[:, :3, 3].norm(dim=-1).numpy()),
        distance=statistics(distance.numpy()),
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


def inspect_picture(files: DataFiles, name: str) -> PictureFacts:
    """Decode one picture as training does."""
    try:
        data = files.read(name)
        header = open_picture(data, files.where(name))
        pixels = decode_picture(io.BytesIO(data), files.where(name), with_alpha=True)
    except UserError as error:
        return PictureFacts(str(error).removeprefix(files.where(name)).strip())
    alpha = odd_alpha(pixels) if header.has_transparency_data else None
    if alpha is None:
        pixels = pixels[..., :3]
    unheeded = []
    # Where there is no EXIF, asking a PNG for it would decode it once more.
    if "exif" in header.info and header.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        unheeded.append("exif")
    if "icc_profile" in header.info:
        meant = np.asarray(to_rgb(header, None, name, alpha is not None)).astype(int)
        if np.abs(meant - pixels).max() > PROFILE_TOLERANCE:
            unheeded.append("profile")
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()
    return PictureFacts("", len(pixels), digest, tuple(unheeded), alpha)


def odd_alpha(pixels: np.ndarray) -> tuple[str, ...]:
    """What is odd about the alpha of a picture (H, W, 4), by the names of `ODD_ALPHA`."""
    colours, alpha = pixels[..., :3], pixels[..., 3]
    if alpha.max() == 0:
        return ("empty-alpha",)
    if alpha.min() == 255:
        return ("opaque-alpha",)
    is_partial = (alpha > 0) & (alpha < 255)
    if not is_partial.any():
        return ("hard-alpha",)
    is_bounded = (colours.max(axis=-1) <= alpha)[is_partial].all()
    return ("premultiplied",) if is_bounded else ()


def _check_pictures(files: DataFiles, checked: CheckedData, workers: int, report: Report) -> None:
    names = checked.pictures
    results = ordered_map(inspect_picture, files, names, len(names), workers, JOBS_PER_WORKER)
    with contextlib.closing(results):
        facts = list(progress(results, "Checking pictures", total=len(names), unit="img"))
    unreadable: list[str] = []
    unfit: dict[str, list[str]] = defaultdict(list)  # by what is to be done about it
    for name, fact in zip(names, facts, strict=True):
        if fact.problem:
            is_unreadable = "cannot be read" in fact.problem
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
    for code, (message, mend) in UNHEEDED.items():
        found = [name for name, fact in zip(names, facts, strict=True) if code in fact.unheeded]
        if found:
            report.add("warning", code, message, _shown(found), mend)
    _check_alpha(names, facts, report)
    _check_duplicates(checked, facts, report)


def _check_alpha(names: list[str], facts: list[PictureFacts], report: Report) -> None:
    """Report alpha that is odd, or that some pictures have and others lack."""
    alphas = {name: fact.alpha for name, fact in zip(names, facts, strict=True) if not fact.problem}
    found = {name: codes for name, codes in alphas.items() if codes is not None}
    report.summary["with_alpha"] = len(found)
    if len(found) < len(alphas):
        if found:
            message = "some pictures have alpha, the others have none"
            mend = "convert --background white, or cut the object out of the others too"
            report.add("error", "picture", message, _shown([*found]), mend, "--background white")
        return
    for code, (most, message, mend) in ODD_ALPHA.items():
        odd = [name for name, codes in found.items() if code in codes]
        if len(odd) > most * len(found):
            report.add("warning", code, message, _shown(odd), mend)


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


def _confirm(files: DataFiles, preset: str, report: Report) -> None:
    """What training itself says, should it know of a problem that was not found above, and what it
    notes about the scene.
    """
    if not report.ok():
        return
    code = "training"
    try:
        behind = PLAIN_BACKGROUND if report.summary["with_alpha"] else None
        dataset = ImageDataset(files.path, background=behind)
        report.summary["resolution"] = dataset.resolution
        code = "scene"
        notes = fit_dataset_scene(dataset).notes if preset == "auto" else []
    except UserError as error:
        report.add("error", code, str(error))
        return
    codes = {finding.code for finding in report.findings}
    for note in notes:
        # said already, with the options that mend it
        if not (note.startswith("the cameras look at") and "off-centre" in codes):
            report.add("warning", "scene", note)


def _shown(names: list[str]) -> tuple[str, ...]:
    return tuple(shown(name) for name in names)
