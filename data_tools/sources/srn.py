"""Folders of Scene Representation Networks (Sitzmann et al., NeurIPS 2019): rgb/, pose/ and
intrinsics.txt for every object.

A pose file holds a camera-to-world matrix with OpenCV axes. intrinsics.txt holds `f cx cy 0` in
pixels, and in its last line the height and width that these refer to. Some sets have a folder
intrinsics/ with a 3x3 or 4x4 matrix for every picture instead.
"""

from __future__ import annotations

import posixpath

import numpy as np

from data_tools.sources.base import (
    PICTURE_SUFFIXES,
    Frame,
    Lens,
    ReadOptions,
    Source,
    number_grid,
    pose,
    skipping,
)
from dnnlib.console import UserError
from training.data.files import DataFiles, shown


def find(files: DataFiles) -> list[str]:
    """Folders of objects, in order."""
    with_pictures = {
        posixpath.dirname(name)[: -len("rgb")]
        for name in files.names
        if posixpath.dirname(name).split("/")[-1] == "rgb"
    }
    with_poses = {
        posixpath.dirname(name)[: -len("pose")]
        for name in files.names
        if posixpath.dirname(name).split("/")[-1] == "pose"
    }
    return sorted(with_pictures & with_poses)


def read(files: DataFiles, options: ReadOptions) -> Source:
    """Pictures of all objects, which share one world.

    Raises:
        UserError: for a picture without a pose, and for files that do not hold the right numbers.
    """
    lenses: dict[str, Lens] = {}
    source = Source("srn", files, [], up="nearest")
    folders = set(find(files))
    for name in files.names:
        folder, _, picture = name.rpartition("rgb/")
        if folder in folders and "/" not in picture and picture.lower().endswith(PICTURE_SUFFIXES):
            with skipping(source, options):
                source.frames.append(
                    _frame(files, folder, name, posixpath.splitext(picture)[0], lenses, options)
                )
    return source


def _frame(
    files: DataFiles,
    folder: str,
    name: str,
    stem: str,
    lenses: dict[str, Lens],
    options: ReadOptions,
) -> Frame:
    pose_file = files.find(f"{folder}pose/{stem}.txt")
    if pose_file is None:
        raise UserError(
            f"{files.where(name)} has no pose: {shown(folder)}pose/{shown(stem)}.txt is missing;"
            " add it or remove the picture"
        )
    numbers = [
        value
        for line in number_grid(files.text(pose_file), files.where(pose_file))
        for value in line
    ]
    if len(numbers) not in (12, 16):
        raise UserError(f"{files.where(pose_file)} holds {len(numbers)} numbers instead of 16")
    cam2world = pose(
        np.array(numbers).reshape(-1, 4), options, files.where(pose_file), axes="opencv"
    )
    return Frame(name, cam2world, _lens(files, folder, stem, lenses))


def _lens(files: DataFiles, folder: str, stem: str, lenses: dict[str, Lens]) -> Lens:
    shared = f"{folder}intrinsics.txt"
    name = files.find(f"{folder}intrinsics/{stem}.txt") or files.find(shared)
    if name is None:
        raise UserError(
            f"{files.where(shared)} is missing; it holds focal length and principal point"
        )
    if name not in lenses:
        lenses[name] = _parse_lens(
            number_grid(files.text(name), files.where(name)), files.where(name)
        )
    return lenses[name]


def _parse_lens(lines: list[list[float]], where: str) -> Lens:
    values = [value for line in lines for value in line]
    if len(values) in (9, 16) and len({len(line) for line in lines}) == 1:
        matrix = np.array(values).reshape(int(len(values) ** 0.5), -1)
        return Lens(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2], matrix[0, 1])
    if len(lines) < 2 or len(lines[0]) < 3 or len(lines[-1]) != 2 or min(lines[-1]) <= 0:
        raise UserError(f"{where} is not of the form `f cx cy 0`, ..., `height width`")
    height, width = lines[-1]
    return Lens(lines[0][0], lines[0][0], lines[0][1], lines[0][2], size=(width, height))
