"""COLMAP models, text or binary, read by COLMAP's own library pycolmap.

Schönberger and Frahm, Structure-from-Motion Revisited (CVPR 2016).
"""

from __future__ import annotations

import math
import posixpath
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from data_tools.sources.base import (
    LARGEST_NUMBER,
    Frame,
    Lens,
    ReadOptions,
    Source,
    number,
    pose,
    skipping,
)
from dnnlib.console import UserError
from training.data.files import DataFiles, decode_text, shown

PICTURE_FOLDERS = ("images", "", "input", "rgb")
PINHOLES = {"SIMPLE_PINHOLE", "PINHOLE"}
# Close to a pinhole: the distortion is left out and said.
DISTORTED = {"SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV"}
VISIBLE_DISTORTION = 1e-3
COUNT = struct.Struct("<Q")
IMAGE = struct.Struct("<I7dI")  # in images.bin: id, quaternion, translation, camera
POINT_BYTES = 24  # each of its 2D points
CAMERA_HEAD = 24  # in cameras.bin: id, model, size; then at least three numbers
CAMERA_BYTES = CAMERA_HEAD + 24
SUFFIXES = (".txt", ".bin")


def find(files: DataFiles) -> list[str]:
    """Models as the path of their images.bin or images.txt; where both are there, the binary
    one.
    """
    found = {}
    for suffix in SUFFIXES:
        for name in files.names:
            folder, last = posixpath.split(name)
            if last == f"images{suffix}" and posixpath.join(folder, f"cameras{suffix}") in files:
                found[folder] = name
    return sorted(found.values())


def read(files: DataFiles, options: ReadOptions) -> Source:
    """Registered pictures of the largest model, sorted by name. Their world has no scale and no
    upward axis of its own.

    Raises:
        UserError: if pycolmap is missing, a file is damaged, a lens is no pinhole, or the pictures
            cannot be found.
    """
    source = Source("colmap", files, [], up="cameras", arbitrary=True)
    models = {name: list(_images(source, name, options)) for name in find(files)}
    model, images = max(models.items(), key=lambda item: len(item[1]))
    if not images:
        raise UserError(f"{files.where(model)} holds no registered pictures")
    cameras = _cameras(files, model)
    images.sort(key=lambda image: image.name)
    prefix = _picture_folder(files, [image.name for image in images], model)
    for image in images:
        with skipping(source, options):
            source.frames.append(_frame(files, image, cameras, prefix, model))
    source.notes = [
        f"{shown(other)} is a smaller model of its own and was left out"
        for other in models
        if other != model
    ]
    if any(_is_distorted(camera) for camera in cameras.values()):
        source.notes.append(
            "lens distortion was ignored; run `colmap image_undistorter` first where lines look"
            " bent"
        )
    return source


@dataclass(frozen=True)
class _Image:
    """A picture of a model: quaternion (w, x, y, z) and translation of world-to-camera."""

    name: str
    numbers: tuple[float, ...]
    camera: int


def _images(source: Source, model: str, options: ReadOptions) -> Iterator[_Image]:
    """The images of a model. They are read here, since the library ends names at the first blank,
    believes counts, and gives up a model for one bad image.
    """
    files = source.files
    data, where = files.read(model), files.where(model)
    if model.endswith(".txt"):
        yield from _text_images(decode_text(data, where), where, source, options)
        return
    for name, numbers, camera in _binary_images(data, where):
        with skipping(source, options):
            try:
                yield _Image(name.decode(), numbers, camera)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{where} names a picture that is not UTF-8; rename the picture and run COLMAP"
                    " again"
                ) from error


def _text_images(text: str, where: str, source: Source, options: ReadOptions) -> Iterator[_Image]:
    follows_image = False  # then a line of its 2D points may come
    for line in text.removeprefix("\ufeff").splitlines():
        words = line.split(None, 9)
        if not words or words[0].startswith("#") or (follows_image and _are_points(line)):
            follows_image = False
            continue
        follows_image = True
        with skipping(source, options):
            if len(words) < 10:
                raise UserError(
                    f"{where}: {shown(line)[:60]!r} is no image; it needs 9 numbers and a name"
                )
            *values, name = words
            named = f"{where}: {shown(name.strip())}: a number"
            _, *numbers, camera = [number(value, named) for value in values]
            yield _Image(name.strip(), tuple(numbers), int(camera))


def _are_points(line: str) -> bool:
    """Whether a line holds 2D points, three numbers each."""
    try:
        return len([float(word) for word in line.split()]) % 3 == 0
    except ValueError:
        return False


def _binary_images(data: bytes, where: str) -> Iterator[tuple[bytes, tuple[float, ...], int]]:
    """Name, quaternion and translation, and camera of each image in images.bin."""
    place = COUNT.size
    for _ in range(_count(data)):
        end = data.find(b"\0", place + IMAGE.size)
        points = end + 1 + COUNT.size  # where they begin
        after = points + POINT_BYTES * _count(data[end + 1 : points])
        if end < 0 or after > len(data):
            raise _damaged(where, "a file ends too early")
        _, *numbers, camera = IMAGE.unpack_from(data, place)
        yield data[place + IMAGE.size : end], tuple(numbers), camera
        place = after


def _count(data: bytes) -> int:
    """The count that a file begins with; one too many for an empty file."""
    return COUNT.unpack_from(data)[0] if len(data) >= COUNT.size else 1


def _damaged(where: str, reason: str) -> UserError:
    return UserError(f"{where}: the COLMAP model is damaged ({reason}); export it again")


def _cameras(files: DataFiles, model: str) -> dict[int, Any]:
    """Lenses by number, read by the library from cameras alone: rigs and frames of newer models
    repeat them, points may be gigabytes.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise UserError(
            "COLMAP models are read by the package pycolmap; run: pip install 'open-eg3d[colmap]'"
        ) from error
    suffix = posixpath.splitext(model)[1]
    name = posixpath.join(posixpath.dirname(model), f"cameras{suffix}")
    data, where, binary = files.read(name), files.where(name), suffix == ".bin"
    if binary and len(data) < COUNT.size + CAMERA_BYTES * _count(data):
        raise _damaged(where, "a file ends too early")
    empty = bytes(COUNT.size) if binary else b""
    text = data if binary else decode_text(data, where).removeprefix("\ufeff").encode()
    with tempfile.TemporaryDirectory() as scratch:
        for part, content in {"cameras": text, "images": empty, "points3D": empty}.items():
            (Path(scratch) / (part + suffix)).write_bytes(content)
        pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value
        try:
            cameras = dict(pycolmap.Reconstruction(scratch).cameras.items())
        except (ValueError, LookupError, RuntimeError, MemoryError) as error:
            reason = str(error).replace(scratch, "").split("Check failed: ")[-1][:120]
            raise _damaged(where, reason) from error
    # The library takes what happens to be in memory for numbers that are cut off.
    sizes = (CAMERA_HEAD + 8 * len(camera.params) for camera in cameras.values())
    if binary and len(data) != COUNT.size + sum(sizes):
        raise _damaged(where, "it has the wrong length")
    return cameras


def _picture_folder(files: DataFiles, pictures: list[str], model: str) -> str:
    """Folder that the model's picture names start from: of those beside the model or above it, the
    one that holds the most of them.
    """
    above = [posixpath.dirname(model)]
    while above[-1]:
        above.append(posixpath.dirname(above[-1]))
    counts = {
        folder: sum(files.find(posixpath.join(folder, picture)) is not None for picture in pictures)
        for folder in (posixpath.join(top, child) for top in above for child in PICTURE_FOLDERS)
    }
    best = max(counts, key=lambda folder: counts[folder])
    if not counts[best]:
        raise UserError(
            f"{files.where(model)} names {shown(pictures[0])}, which is not there, and neither are"
            " the others; put the pictures into images/ beside the model's folder"
        )
    return best


def _frame(
    files: DataFiles, image: _Image, cameras: dict[int, Any], prefix: str, model: str
) -> Frame:
    where = f"{files.where(model)}: {shown(image.name)}"
    name = files.resolve(prefix, image.name, by=model)
    if name not in files:
        raise UserError(f"{where} is not there; add the picture or remove it from the model")
    camera = cameras.get(image.camera)
    if camera is None:
        raise UserError(f"{where} is of camera {image.camera}, which the model does not have")
    if camera.model_name not in PINHOLES | DISTORTED:
        raise UserError(
            f"{where}: camera model {camera.model_name} is no pinhole; run `colmap"
            " image_undistorter` first"
        )
    if min(camera.width, camera.height) <= 0:
        raise UserError(f"{where}: its camera has a width or height of 0; export the model again")
    w, x, y, z = image.numbers[:4]
    world2cam = np.full((3, 4), np.nan)  # of a quaternion that is none
    if 0 < math.hypot(w, x, y, z) < LARGEST_NUMBER:
        world2cam[:, :3] = Rotation.from_quat((x, y, z, w)).as_matrix()
    world2cam[:, 3] = image.numbers[4:]
    matrix = camera.calibration_matrix()
    lens = Lens(
        matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2], size=(camera.width, camera.height)
    )
    return Frame(name, pose(world2cam, ReadOptions(poses="world2cam"), where, axes="opencv"), lens)


def _is_distorted(camera: Any) -> bool:
    places = {*camera.focal_length_idxs(), *camera.principal_point_idxs()}
    return any(
        abs(value) > VISIBLE_DISTORTION
        for index, value in enumerate(camera.params)
        if index not in places
    )
