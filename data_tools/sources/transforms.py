"""NeRF-style transforms.json: camera-to-world matrices with OpenGL camera axes (x right, y up, z
backward).

Mildenhall et al., NeRF (ECCV 2020), published its synthetic scenes in this form, with one field of
view; later tools add focal lengths and principal points in pixels, for all pictures or for each.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
from typing import Any

import numpy as np

from data_tools.source_files import SourceFiles, shown
from data_tools.sources.base import PICTURE_SUFFIXES, Frame, Lens, ReadOptions, Source, number, pose
from dnnlib.console import UserError, brief

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


def find(files: SourceFiles) -> list[str]:
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


def read(files: SourceFiles, options: ReadOptions, listings: list[str] | None = None) -> Source:
    """Pictures of all lists, which share one world.

    Raises:
        UserError: for a damaged list, a missing picture or intrinsics, or a lens that is no
            pinhole.
    """
    frames: list[Frame] = []
    notes: list[str] = []
    for listing in listings or find(files):
        content = _load(files, listing)
        entries = content.get("frames")
        if not isinstance(entries, list) or not entries:
            raise UserError(f"{files.where(listing)} lists no frames")
        for index, entry in enumerate(entries):
            where = f"{files.where(listing)}: frame {index}"
            if not isinstance(entry, dict):
                raise UserError(f"{where} is {shown(brief(entry))} instead of an object")
            frames.append(_frame(entry, {**content, **entry}, where, files, listing, options))
        if any(_distorted({**content, **entry}) for entry in entries):
            notes.append(
                f"{shown(listing)}: lens distortion was ignored; undistort the pictures first where"
                " lines look bent"
            )
    return Source("transforms", files, frames, up="nearest", arbitrary=True, notes=notes)


def _load(files: SourceFiles, listing: str) -> dict[str, Any]:
    try:
        content = json.loads(files.text(listing))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{files.where(listing)} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{files.where(listing)} is not a JSON object with frames")
    return content


def _frame(
    entry: dict[str, Any],
    values: dict[str, Any],
    where: str,
    files: SourceFiles,
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
    return Frame(name, pose(matrix, options, where, axes="opengl"), _lens(values, where))


def _picture(files: SourceFiles, name: str, where: str) -> str:
    """The picture's file; NeRF's synthetic scenes leave the ending out."""
    endings = ("", *PICTURE_SUFFIXES, *(suffix.upper() for suffix in PICTURE_SUFFIXES))
    found = next((name + ending for ending in endings if name + ending in files), None)
    if found is None:
        raise UserError(f"{where}: there is no such picture; add it or remove the frame")
    return found


def _lens(values: dict[str, Any], where: str) -> Lens:
    model = str(values.get("camera_model", "PINHOLE")).upper()
    if model not in PINHOLE_MODELS or values.get("is_fisheye"):
        raise UserError(
            f"{where}: camera model {shown(model)[:40]} is no pinhole; undistort the pictures first"
        )
    known = {
        name: number(values[key], f"{where}: {key}")
        for name, key in _KEYS.items()
        if values.get(key) is not None
    }
    size = (known["w"], known["h"]) if "w" in known and "h" in known else None
    if size and min(size) <= 0:
        raise UserError(f"{where}: w and h must be above 0")
    if "fx" in known:
        return Lens(known["fx"], known.get("fy"), known.get("cx"), known.get("cy"), size=size)
    if "angle_x" not in known:
        raise UserError(f"{where} has neither fl_x nor camera_angle_x; add the focal length")
    if not 0 < known["angle_x"] < math.pi or not 0 < known.get("angle_y", 1.0) < math.pi:
        raise UserError(
            f"{where}: camera_angle_x is {known['angle_x']:g}; it must be an angle in radians"
            " between 0 and pi"
        )
    fy = 0.5 / math.tan(known["angle_y"] / 2) if "angle_y" in known else None
    width, height = size or (None, None)
    cx, cy = (
        known[key] / side if key in known and side else None
        for key, side in (("cx", width), ("cy", height))
    )
    return Lens(0.5 / math.tan(known["angle_x"] / 2), fy, cx, cy, unit="normalised", size=size)


_KEYS = {
    "fx": "fl_x",
    "fy": "fl_y",
    "cx": "cx",
    "cy": "cy",
    "w": "w",
    "h": "h",
    "angle_x": "camera_angle_x",
    "angle_y": "camera_angle_y",
}


def _distorted(values: dict[str, Any]) -> bool:
    return any(
        isinstance(values.get(key), (int, float)) and abs(values[key]) > VISIBLE_DISTORTION
        for key in DISTORTION
    )
