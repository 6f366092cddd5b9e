"""COLMAP models, text or binary, read by COLMAP's own library pycolmap.

Schönberger and Frahm, Structure-from-Motion Revisited (CVPR 2016).
"""

from __future__ import annotations

import posixpath
import struct
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from data_tools.sources.base import Frame, Lens, ReadOptions, Source, number, pose, skipping
from dnnlib.console import UserError
from training.data.files import DataFiles, decode_text, shown

PICTURE_FOLDERS = ("images", "", "input", "rgb")
PINHOLES = {"SIMPLE_PINHOLE", "PINHOLE"}
# Close to a pinhole: the distortion is left out and said.
DISTORTED = {"SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV"}
VISIBLE_DISTORTION = 1e-3
COUNT = struct.Struct("<Q")
# of an image in images.bin: id, quaternion, translation, camera; each of its 2D points
POSE_BYTES, POINT_BYTES = 64, 24
CAMERA_BYTES = 48  # at least, of a camera in cameras.bin: id, model, size, three numbers
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
    models = {name: _load(source, name, options) for name in find(files)}
    name, model = max(models.items(), key=lambda item: item[1].num_reg_images())
    images = {}
    for image in model.images.values():
        with skipping(source, options):
            if image.has_pose:
                images[_name(image, name, files)] = image
    if not images:
        raise UserError(f"{files.where(name)} holds no registered pictures")
    prefix = _picture_folder(files, sorted(images), name)
    for picture, image in sorted(images.items()):
        with skipping(source, options):
            camera = model.cameras[image.camera_id]
            source.frames.append(_frame(files, picture, image, camera, prefix, name))
    source.notes = [
        f"{shown(other)} is a smaller model of its own and was left out"
        for other in models
        if other != name
    ]
    if any(_is_distorted(camera) for camera in model.cameras.values()):
        source.notes.append(
            "lens distortion was ignored; run `colmap image_undistorter` first where lines look"
            " bent"
        )
    return source


def _name(image: Any, model: str, files: DataFiles) -> str:
    """The picture's name in the model."""
    try:
        return unquote(image.name) if model.endswith(".txt") else str(image.name)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{files.where(model)} names a picture that is not UTF-8; rename the picture and run"
            " COLMAP again"
        ) from error


def _images_text(text: str, where: str, source: Source, options: ReadOptions) -> str:
    """images.txt with %-codes in the names, as the library's reader ends names at the first blank;
    pictures whose numbers it cannot read are refused or left out here.
    """
    kept = []
    lines = iter(text.splitlines())
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        *numbers, name = line.split(None, 9)
        with skipping(source, options):
            for value in numbers:
                number(value, f"{where}: {shown(name)}: a number")
            kept.append(" ".join([*numbers, quote(name.strip(), safe="/")]))
            kept.append(next(lines, ""))
            continue
        next(lines, "")
    return "\n".join([*kept, ""])


def _load(source: Source, name: str, options: ReadOptions) -> Any:
    """The reconstruction from cameras and images alone: rigs and frames of newer models repeat
    them, points may be gigabytes.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise UserError(
            "COLMAP models are read by the package pycolmap; run: pip install 'open-eg3d[colmap]'"
        ) from error
    files = source.files
    folder, suffix = posixpath.dirname(name), posixpath.splitext(name)[1]
    images, cameras = files.read(name), files.read(posixpath.join(folder, f"cameras{suffix}"))
    binary, where = suffix == ".bin", files.where(name)
    if binary and not (
        _is_whole(images) and len(cameras) >= COUNT.size + CAMERA_BYTES * _count(cameras)
    ):
        raise UserError(
            f"{where}: the COLMAP model is damaged (a file ends too early); export it again"
        )
    with tempfile.TemporaryDirectory() as scratch:
        parts = {
            "images": images
            if binary
            else _images_text(decode_text(images, where), where, source, options).encode(),
            "cameras": cameras,
            "points3D": bytes(COUNT.size) if binary else b"",
        }
        for part, data in parts.items():
            (Path(scratch) / (part + suffix)).write_bytes(data)
        pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value
        try:
            model = pycolmap.Reconstruction(scratch)
        except (ValueError, LookupError, RuntimeError, MemoryError) as error:
            reason = str(error).replace(scratch, "").split("Check failed: ")[-1][:120]
            raise UserError(
                f"{where}: the COLMAP model is damaged ({reason}); export it again"
            ) from error
    # The library takes what happens to be in memory for numbers that are cut off.
    if binary and len(cameras) != COUNT.size + sum(
        24 + 8 * len(camera.params) for camera in model.cameras.values()
    ):
        raise UserError(
            f"{where}: the COLMAP model is damaged (cameras.bin has the wrong length);"
            " export it again"
        )
    return model


def _count(data: bytes) -> int:
    """The count that a file begins with; one too many for an empty file."""
    return COUNT.unpack_from(data)[0] if len(data) >= COUNT.size else 1


def _is_whole(data: bytes) -> bool:
    """Whether the counts in images.bin fit its length; the library believes counts and works on
    them for minutes.
    """
    place = COUNT.size
    for _ in range(_count(data)):
        end_of_name = data.find(b"\0", place + POSE_BYTES)
        if end_of_name < 0 or end_of_name + 1 + COUNT.size > len(data):
            return False
        place = (
            end_of_name + 1 + COUNT.size + POINT_BYTES * COUNT.unpack_from(data, end_of_name + 1)[0]
        )
        if place > len(data):
            return False
    return True


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
    files: DataFiles, picture: str, image: Any, camera: Any, prefix: str, model: str
) -> Frame:
    where = f"{files.where(model)}: {shown(picture)}"
    name = files.resolve(prefix, picture, by=model)
    if name not in files:
        raise UserError(f"{where} is not there; add the picture or remove it from the model")
    if camera.model_name not in PINHOLES | DISTORTED:
        raise UserError(
            f"{where}: camera model {camera.model_name} is no pinhole; run `colmap"
            " image_undistorter` first"
        )
    matrix = camera.calibration_matrix()
    lens = Lens(
        matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2], size=(camera.width, camera.height)
    )
    return Frame(
        name,
        pose(image.cam_from_world().matrix(), ReadOptions(poses="world2cam"), where, axes="opencv"),
        lens,
    )


def _is_distorted(camera: Any) -> bool:
    places = {*camera.focal_length_idxs(), *camera.principal_point_idxs()}
    return any(
        abs(value) > VISIBLE_DISTORTION
        for index, value in enumerate(camera.params)
        if index not in places
    )
