"""Photos as they come: opened, turned upright, and each face in them cut out with its camera, as a
model with certain cameras expects it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps
from torch import Tensor

from data_tools.faces.convert import MOST_OUTSIDE, cut_out, share_outside
from data_tools.faces.estimators import EstimatorBroken, estimate
from data_tools.faces.mediapipe_process import EstimatorDied
from data_tools.faces.pose import (
    FACE_FOCAL,
    FACE_RADIUS,
    Crop,
    FacePose,
    camera_of,
    face_crop,
    face_label,
)
from data_tools.pictures import ALPHA_MODES, to_rgb
from dnnlib.console import UserError
from training.cameras import CameraSummary, orbit_angles
from training.data.files import errors_named
from training.data.pictures import open_picture

SAME_CAMERAS = 0.02  # relative differences up to which a model's cameras are those of `faces`
SMALLEST_SIDE = 32  # pixels of a portrait, below which nothing of a face is left
HOW_TO_GO_ON = "give --label, --poses or --optimise-pose for a picture that is cut out already"


@dataclass(frozen=True, eq=False)
class PhotoFace:
    """A face cut out of a photo.

    Attributes:
        picture: Square. label: Camera (25,), None if it is not known. is_exact: Whether the label
            is that of the model's own data; else the camera's distance and place are a guess.
    """

    picture: Image.Image
    label: Tensor | None
    is_exact: bool


def open_photo(data: bytes, where: str) -> Image.Image:
    """Upright sRGB picture of a file's bytes, RGBA if it has transparent parts.

    Raises:
        UserError: naming `where`, if it cannot be read.
    """
    with errors_named(where):
        image = ImageOps.exif_transpose(open_picture(data, where))
        has_alpha = image.mode in ALPHA_MODES or "transparency" in image.info
        alpha = image.convert("RGBA").getchannel("A") if has_alpha else None
        picture = to_rgb(image, (0, 0, 0), where)
    if alpha is not None and alpha.getextrema() != (255, 255):
        picture.putalpha(alpha)
    return picture


def square(photo: Image.Image, where: str) -> PhotoFace:
    """The middle square of a photo that is cut out already; its camera is not known.

    Raises:
        UserError: if it is far too small.
    """
    side = min(photo.size)
    _check_side(side, where)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    return PhotoFace(photo.crop((left, top, left + side, top + side)), None, False)


def photo_faces(
    photo: Image.Image,
    estimator: str,
    cameras: CameraSummary,
    resolution: int,
    where: str,
    face: int | None = None,
) -> list[PhotoFace]:
    """All faces of a photo, the largest first, or number `face` (from 1) of them.

    Raises:
        UserError: if there is no such face, it is too small or cut off, or the estimator failed.
    """
    try:
        poses = estimate(photo.convert("RGB"), estimator, where)
    except EstimatorBroken as error:
        raise UserError(f"{error}; or {HOW_TO_GO_ON}") from error
    except EstimatorDied as death:
        raise UserError(f"{where}: the estimator died on it ({death}); {HOW_TO_GO_ON}") from death
    if not poses:
        raise UserError(f"{where}: no face found; {HOW_TO_GO_ON}")
    poses = sorted(poses, key=lambda pose: -pose.scale)
    if face is not None:
        if face > len(poses):
            raise UserError(f"{where}: --face {face}, but {len(poses)} are found")
        poses = poses[face - 1 : face]
    return [_cut_face(photo, pose, cameras, resolution, where) for pose in poses]


def _cut_face(
    photo: Image.Image, pose: FacePose, cameras: CameraSummary, resolution: int, where: str
) -> PhotoFace:
    label, crop, is_exact = face_view(pose, cameras)
    _check_side(crop.side, where)
    if is_exact and (outside := share_outside(crop, photo.size)) > MOST_OUTSIDE:
        raise UserError(f"{where}: the picture's edge cuts off {outside:.0%} of the portrait")
    return PhotoFace(cut_out(photo, crop, resolution), label, is_exact)


def face_view(pose: FacePose, cameras: CameraSummary) -> tuple[Tensor, Crop, bool]:
    """Label (25,) and crop of a face for a model with certain cameras, and whether these are the
    cameras of `dataset_tool.py faces`.

    For others the crop is as much wider as their view is, and the label is that of their orbit at
    the face's yaw and pitch: a place to start from.
    """
    crop, focal = face_crop(pose), cameras.intrinsics[4]
    is_exact = (
        abs(focal / FACE_FOCAL - 1) < SAME_CAMERAS
        and abs(cameras.radius / FACE_RADIUS - 1) < SAME_CAMERAS
    )
    if is_exact:
        return torch.from_numpy(face_label(pose)).float(), crop, True
    wider = (cameras.radius / focal) / (FACE_RADIUS / FACE_FOCAL)
    yaw, pitch, _ = (float(angle) for angle in orbit_angles(torch.from_numpy(camera_of(pose))))
    return cameras.label(yaw, pitch), Crop(crop.centre, crop.side * wider, crop.angle), False


def with_mask(photo: Image.Image, mask: Image.Image, where: str) -> Image.Image:
    """The photo with a mask as its alpha channel: white counts.

    Raises:
        UserError: if they differ in size.
    """
    if mask.size != photo.size:
        sizes = " and ".join(f"{one.width} x {one.height}" for one in (mask, photo))
        raise UserError(f"{where}: mask and picture differ in size, {sizes}")
    masked = photo.convert("RGB")
    masked.putalpha(mask.convert("L"))
    return masked


def _check_side(side: float, where: str) -> None:
    if not (math.isfinite(side) and side >= SMALLEST_SIDE):
        raise UserError(
            f"{where}: the portrait is {side:.0f} pixels wide, too small; take a picture in which"
            f" it has at least {SMALLEST_SIDE}"
        )
