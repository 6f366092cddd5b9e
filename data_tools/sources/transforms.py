"""NeRF-style transforms.json: camera-to-world matrices with OpenGL camera axes (x right, y up, z
backward).

Mildenhall et al., NeRF (ECCV 2020), published its synthetic scenes in this form, with one field of
view; later tools add focal lengths and principal points in pixels, for all pictures or for each.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_tools.sources.base import (
    PICTURE_SUFFIXES,
    Frame,
    Lens,
    ReadOptions,
    Source,
    number,
    pose,
    skipping,
)
from dnnlib.console import UserError, brief
from training.data.files import DataFiles, parse_json, shown

PINHOLE_MODELS = (
    "PINHOLE",
    "SIMPLE_PINHOLE",
    "OPENCV",
    "SIMPLE_RADIAL",
    "RADIAL",
    "FULL_OPENCV",
    "PERSPECTIVE",
)
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
VISIBLE_DISTORTION = 1e-3
LISTING = re.compile(r"transforms(_\w+)?\.json")


def find(files: DataFiles) -> list[str]:
    """All lists, in order; where a folder has transforms.json, the other parts
    (transforms_train.json, ...) are not looked at.
    """
    names = [name for name in files.names if LISTING.fullmatch(posixpath.basename(name))]
    whole = {
        posixpath.dirname(name) for name in names if posixpath.basename(name) == "transforms.json"
    }
    return [
        name
        for name in names
        if posixpath.basename(name) == "transforms.json" or posixpath.dirname(name) not in whole
    ]


def read(files: DataFiles, options: ReadOptions, listings: list[str] | None = None) -> Source:
    """Pictures of all lists, which share one world.

    Raises:
        UserError: for a damaged list, a missing picture or intrinsics, or a lens that is no
            pinhole.
    """
    source = Source("transforms", files, [], up="nearest", arbitrary=True)
    for listing in listings or find(files):
        content = _load(files, listing)
        entries = content.get("frames")
        if not isinstance(entries, list) or not entries:
            raise UserError(f"{files.where(listing)} lists no frames")
        for index, entry in enumerate(entries):
            where = f"{files.where(listing)}: frame {index}"
            with skipping(source, options):
                if not isinstance(entry, dict):
                    raise UserError(f"{where} is {shown(brief(entry))} instead of an object")
                source.frames.append(_frame(entry, content, where, files, listing, options))
        if any(_distorted({**content, **entry}) for entry in entries if isinstance(entry, dict)):
            source.notes.append(
                f"{shown(listing)}: lens distortion was ignored; undistort the pictures first where"
                " lines look bent"
            )
    return source


def _load(files: DataFiles, listing: str) -> dict[str, Any]:
    content = parse_json(files.text(listing), files.where(listing))
    if not isinstance(content, dict):
        raise UserError(f"{files.where(listing)} is not a JSON object with frames")
    return content


def _frame(
    entry: dict[str, Any],
    shared: dict[str, Any],
    where: str,
    files: DataFiles,
    listing: str,
    options: ReadOptions,
) -> Frame:
    path = entry.get("file_path")
    if not isinstance(path, str) or not path:
        raise UserError(f"{where} has no file_path")
    where += f" ({shown(path)})"
    try:
        matrix = np.array(entry.get("transform_matrix"), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.zeros(0)
    if matrix.shape not in ((3, 4), (4, 4)):
        raise UserError(f"{where}: transform_matrix is no 4x4 matrix of numbers")
    name = _picture(files, files.resolve(posixpath.dirname(listing), path, by=listing), where)
    return Frame(name, pose(matrix, options, where, axes="opengl"), _lens(entry, shared, where))


def _picture(files: DataFiles, name: str, where: str) -> str:
    """The picture's file; NeRF's synthetic scenes leave the ending out."""
    found = next(
        (own for ending in ("", *PICTURE_SUFFIXES) if (own := files.find(name + ending))), None
    )
    if found is None:
        raise UserError(f"{where}: there is no such picture; add it or remove the frame")
    return found


def _lens(entry: dict[str, Any], shared: dict[str, Any], where: str) -> Lens:
    """A frame's lens: of its own values and those for all frames, its own win. The focal lengths of
    both axes come from the nearest place that has any.
    """
    values = {**shared, **entry}
    model = str(values.get("camera_model", "PINHOLE")).upper()
    if model not in PINHOLE_MODELS or values.get("is_fisheye"):
        raise UserError(
            f"{where}: camera model {shown(model)[:40]} is no pinhole; undistort the pictures first"
        )
    focal = next(
        (found for place in (entry, shared) if (found := _numbers(place, FOCAL_KEYS, where))), {}
    )
    if not focal:
        raise UserError(f"{where} has neither {', '.join(FOCAL_KEYS)}; add a focal length")
    known = _numbers(values, ("cx", "cy", "w", "h"), where)
    size = (known["w"], known["h"]) if "w" in known and "h" in known else None
    if size and min(size) <= 0:
        raise UserError(f"{where}: w and h must be above 0")
    angles = focal.get("camera_angle_x"), focal.get("camera_angle_y")
    for axis, angle in zip("xy", angles, strict=True):
        if angle is not None and not 0 < angle < math.pi:
            raise UserError(
                f"{where}: camera_angle_{axis} is {angle:g}; it must be an angle in radians between"
                " 0 and pi"
            )
    fx, fy, cx, cy = (
        source.get(key)
        for source, key in ((focal, "fl_x"), (focal, "fl_y"), (known, "cx"), (known, "cy"))
    )
    if fx is not None or fy is not None:
        return Lens(fx, fy, cx, cy, size=size, angles=angles)
    fx, fy = (None if angle is None else 0.5 / math.tan(angle / 2) for angle in angles)
    width, height = size or (None, None)
    cx, cy = (
        value / side if value is not None and side else None
        for value, side in ((cx, width), (cy, height))
    )
    return Lens(fx, fy, cx, cy, unit="normalised", size=size)


FOCAL_KEYS = ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y")


def _numbers(values: dict[str, Any], keys: Sequence[str], where: str) -> dict[str, float]:
    """The values of those `keys` that are there."""
    return {
        key: number(values[key], f"{where}: {key}") for key in keys if values.get(key) is not None
    }


def _distorted(values: dict[str, Any]) -> bool:
    return any(
        isinstance(values.get(key), (int, float)) and abs(values[key]) > VISIBLE_DISTORTION
        for key in DISTORTION
    )
