"""Portraits from anywhere as a data set: faces found, cut out as FFHQ for EG3D was, and labelled
with estimated cameras.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from data_tools.faces.estimators import MEDIAPIPE, EstimatorBroken, estimate, estimators_closed
from data_tools.faces.mediapipe_process import EstimatorDied, environment_python
from data_tools.faces.pose import FACE_PIVOT, Crop, FacePose, face_crop, face_label
from data_tools.pictures import encode_png, to_rgb
from data_tools.sinks import Sink, check_dest, image_name, open_sink, write_labels
from data_tools.sources.base import PICTURE_SUFFIXES, Array
from dnnlib.console import UserError, progress
from dnnlib.files import local_file
from dnnlib.numbers import counted
from dnnlib.parallel import ordered_map
from training.cameras import orbit_angles
from training.data.files import DataFiles, errors_named, shown
from training.data.pictures import open_picture

Pick = Literal["largest", "central"]

# share of the crop that may lie outside of the picture, and is filled with its mirror image
MOST_OUTSIDE = 0.25
TABLE = "faces.csv"
TABLE_COLUMNS = "file,source,faces,crop_x,crop_y,crop_side,crop_angle,yaw,pitch,score"
JOBS_PER_WORKER = 50  # each worker starts torch and an estimator


@dataclass(frozen=True)
class FacesConfig:
    """Settings of `convert_faces`.

    Attributes:
        resolution: side of the pictures. estimator: "mediapipe" or "module:function".
        pick: which of several faces. keep_roll: leave heads tilted as they are, with tilted
            cameras, instead of turning them upright.
        min_size: least side in pixels that the crop has in its picture. background: behind
            transparent parts; None refuses them.
        skip_bad: leave out files that cannot be read, instead of stopping at the first. workers:
            processes; 0 = one per core.
    """

    resolution: int = 512
    estimator: str = MEDIAPIPE
    pick: Pick = "largest"
    keep_roll: bool = False
    min_size: int = 0
    background: tuple[int, int, int] | None = None
    skip_bad: bool = False
    workers: int = 0


@dataclass(frozen=True, eq=False)
class Portrait:
    """A face cut out: PNG, label (25,), its picture's name, the number of faces that were there,
    what was cut out of the picture, and the estimator's score.
    """

    data: bytes
    label: Array
    picture: str
    faces: int
    crop: Crop
    score: float | None


@dataclass(frozen=True)
class NoPortrait:
    """Why a picture gives no portrait."""

    reason: str


@dataclass(eq=False)
class FacesSummary:
    """What was done: number of portraits, pictures without a usable face (with reasons), unreadable
    files, one-line notes.
    """

    count: int
    faceless: list[str]
    skipped: list[str]
    notes: list[str]


def convert_faces(
    source: str | Path,
    dest: str | Path,
    config: FacesConfig | None = None,
    *,
    overwrite: bool = False,
) -> FacesSummary:
    """Write the faces in the pictures of `source` (folder, ZIP or its URL, or one picture) as a
    data set `dest` (ZIP, or folder).

    One face per picture. `dest` appears only when complete; the same pictures give the same data
    set, whatever the number of workers.

    Raises:
        UserError: what is wrong with the source, a picture, the estimator or `dest`; or that no
            picture shows a face.
    """
    config, dest = config or FacesConfig(), Path(dest)
    check_dest(dest, overwrite, Path(source))
    if config.estimator == MEDIAPIPE:
        environment_python()
    path = local_file(source)
    is_photo = path.is_file() and path.suffix.lower() in PICTURE_SUFFIXES
    files = DataFiles(path.absolute().parent if is_photo else path)
    names = [name for name in files.names if name.lower().endswith(PICTURE_SUFFIXES)]
    if is_photo:
        names = [path.name]
    if not names:
        raise UserError(
            f"source {files.path} holds no pictures; faces reads {', '.join(PICTURE_SUFFIXES)}"
        )
    written = _Written(files, names, config)
    with open_sink(dest, overwrite=overwrite) as sink:
        written.run(sink)
        write_labels(sink, written.names, np.array(written.labels))
        sink.write(TABLE, ("\n".join(written.rows) + "\n").encode("utf-8", "backslashreplace"))
    return written.summary()


class _Written:
    """The data set so far."""

    def __init__(self, files: DataFiles, pictures: list[str], config: FacesConfig) -> None:
        self.files, self.pictures, self.config = files, pictures, config
        self.names: list[str] = []
        self.labels: list[Array] = []
        self.faceless: list[str] = []
        self.skipped: list[str] = []
        self.small: list[str] = []
        self.rows = [TABLE_COLUMNS]
        self.enlarged = self.crowded = 0

    def run(self, sink: Sink) -> None:
        """Convert all pictures into `sink`.

        Raises:
            UserError: for the first unreadable file, or if no face is found at all.
        """
        results = ordered_map(
            convert_portrait,
            (self.files, self.config),
            self.pictures,
            len(self.pictures),
            self.config.workers,
            JOBS_PER_WORKER,
        )
        with contextlib.closing(results), estimators_closed():
            for result in progress(results, "Finding faces", total=len(self.pictures), unit="img"):
                self._take(result, sink)
        if not self.names:
            reason = (self.faceless or self.skipped)[0]
            raise UserError(
                f"{self.files.path}: no portrait in {counted(len(self.pictures), 'picture')}; the"
                f" first: {reason}"
            )

    def _take(self, result: Portrait | NoPortrait | UserError, sink: Sink) -> None:
        if isinstance(result, NoPortrait):
            self.faceless.append(result.reason)
            return
        if isinstance(result, UserError):
            if not self.config.skip_bad or isinstance(result, EstimatorBroken):
                raise result
            self.skipped.append(str(result))
            return
        name = image_name(len(self.names))
        sink.write(name, result.data)
        self.names.append(name)
        self.labels.append(result.label)
        self.crowded += result.faces > 1
        self.rows.append(_table_row(name, result))
        side = result.crop.side
        self.enlarged += side < self.config.resolution
        if side < self.config.resolution / 2:
            where = self.files.where(result.picture)
            self.small.append(
                f"{where}: the face is small, {side:.0f} pixels were enlarged to"
                f" {self.config.resolution}; --min-size leaves such faces out"
            )

    def summary(self) -> FacesSummary:
        """What was done."""
        notes = list(self.small)
        others = len(self.files.names) - len(self.pictures)
        if others and len(self.pictures) > 1:
            example = next(
                name for name in self.files.names if not name.lower().endswith(PICTURE_SUFFIXES)
            )
            notes.append(
                f"{counted(others, 'file is no picture', 'files are no pictures')} that can be read"
                f" here, such as {shown(example)}: passed over"
            )
        if self.crowded:
            which = "largest" if self.config.pick == "largest" else "most central"
            shows = counted(self.crowded, "picture shows", "pictures show")
            notes.append(f"{shows} several faces; the {which} one was taken")
        if self.enlarged:
            notes.append(
                f"enlarged: {counted(self.enlarged, 'face')} of less than"
                f" {self.config.resolution} pixels"
            )
        return FacesSummary(len(self.names), self.faceless, self.skipped, notes)


def _table_row(name: str, portrait: Portrait) -> str:
    """A line of the table: where a portrait comes from, what was cut out, from where it is seen."""
    cam2world = torch.from_numpy(portrait.label[:16].reshape(4, 4).copy())
    cam2world[:3, 3] -= torch.tensor(FACE_PIVOT, dtype=cam2world.dtype)
    yaw, pitch = (math.degrees(angle) for angle in orbit_angles(cam2world)[:2])
    crop = portrait.crop
    numbers = (*crop.centre, crop.side, math.degrees(crop.angle), yaw, pitch)
    picture = shown(portrait.picture).replace('"', '""')
    score = "" if portrait.score is None else f"{portrait.score:.3f}"
    values = [str(portrait.faces), *(f"{round(n, 2) + 0.0:.2f}" for n in numbers), score]
    return ",".join([name, f'"{picture}"', *values])


# --------------------------------------------------------------------------------------------------
# One picture


def convert_portrait(
    context: tuple[DataFiles, FacesConfig], name: str
) -> Portrait | NoPortrait | UserError:
    """The portrait in a picture. Errors come back as values, so that the caller may go on with the
    others.
    """
    files, config = context
    where = files.where(name)
    try:
        picture = _load(files.read(name), config.background, where)
        poses = estimate(picture, config.estimator, where)
    except EstimatorDied as death:
        return NoPortrait(f"{where}: the estimator died on it ({death})")
    except UserError as error:
        return error
    if not poses:
        return NoPortrait(f"{where}: no face found")
    pose = pick_face(poses, picture.size, config.pick)
    crop = face_crop(pose, config.keep_roll)
    if crop.side < config.min_size:
        return NoPortrait(
            f"{where}: the face is small, {crop.side:.0f} pixels; --min-size asks for"
            f" {config.min_size}"
        )
    if (outside := share_outside(crop, picture.size)) > MOST_OUTSIDE:
        return NoPortrait(f"{where}: the picture's edge cuts off {outside:.0%} of the portrait")
    data = encode_png(cut_out(picture, crop, config.resolution))
    return Portrait(data, face_label(pose, config.keep_roll), name, len(poses), crop, pose.score)


def _load(data: bytes, background: tuple[int, int, int] | None, where: str) -> Image.Image:
    """Upright sRGB picture."""
    with errors_named(where):
        return to_rgb(ImageOps.exif_transpose(open_picture(data, where)), background, where)


def pick_face(poses: Sequence[FacePose], size: tuple[int, int], pick: Pick) -> FacePose:
    """The face that has the most pixels, or whose middle is nearest to that of a picture of `size`
    = (width, height).
    """
    if pick == "largest":
        return max(poses, key=lambda pose: pose.scale)
    return min(
        poses,
        key=lambda pose: float(
            np.hypot(pose.centre[0] - size[0] / 2, pose.centre[1] - size[1] / 2)
        ),
    )


def share_outside(crop: Crop, size: tuple[int, int]) -> float:
    """Share of a crop that lies outside of a picture of `size` = (width, height), rounded to a
    hundredth.
    """
    upper_left, upper_right, _, lower_left = crop.corners()
    u, v = np.meshgrid(*[(np.arange(64) + 0.5) / 64] * 2)
    points = (
        upper_left
        + u[..., None] * (upper_right - upper_left)
        + v[..., None] * (lower_left - upper_left)
    )
    return float(1 - ((points >= 0) & (points < size)).all(-1).mean())


def cut_out(picture: Image.Image, crop: Crop, resolution: int) -> Image.Image:
    """The crop as a picture of `resolution` pixels, smoothed against aliasing; beyond its edges the
    picture goes on mirrored.
    """
    corners = crop.corners()
    border = 2 + crop.side / resolution * 4  # what the filters reach beyond the crop
    left, top = np.floor(corners.min(0) - border).astype(int)
    right, bottom = np.ceil(corners.max(0) + border).astype(int)
    region = _mirrored_region(picture, left, top, right, bottom)
    corners = corners - (left, top)
    if abs(crop.angle) < 1e-9:
        return region.resize(
            (resolution, resolution), Image.Resampling.LANCZOS, box=(*corners[0], *corners[2])
        )
    # Turned at no less than the picture's own density, at most four times the result's, then made
    # smaller.
    times = max(1, min(4, round(crop.side / resolution + 0.5)))
    if crop.side > 4 * resolution:
        factor = 4 * resolution / crop.side
        size = (round(region.width * factor), round(region.height * factor))
        corners = corners * (size[0] / region.width, size[1] / region.height)
        region = region.resize(size, Image.Resampling.LANCZOS)
    dense = times * resolution
    across, down = (corners[1] - corners[0]) / dense, (corners[3] - corners[0]) / dense
    affine = (across[0], down[0], corners[0][0], across[1], down[1], corners[0][1])
    bands = [_turned(band, dense, resolution, affine) for band in region.split()]
    return Image.fromarray(np.stack(bands, axis=-1))


def _turned(
    band: Image.Image, dense: int, resolution: int, affine: tuple[float, ...]
) -> NDArray[np.uint8]:
    # In floating point: on 8 bits Pillow cuts off where it should round, which makes pictures
    # darker.
    turned = band.convert("F").transform(
        (dense, dense), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC
    )
    smaller = turned.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return np.asarray(smaller).round().clip(0, 255).astype(np.uint8)


def _mirrored_region(
    picture: Image.Image, left: int, top: int, right: int, bottom: int
) -> Image.Image:
    inside = picture.crop(
        (max(left, 0), max(top, 0), min(right, picture.width), min(bottom, picture.height))
    )
    margins = [
        (max(-top, 0), max(bottom - picture.height, 0)),
        (max(-left, 0), max(right - picture.width, 0)),
        (0, 0),
    ]
    return (
        Image.fromarray(np.pad(np.asarray(inside), margins, mode="symmetric"))
        if any(map(any, margins))
        else inside
    )
