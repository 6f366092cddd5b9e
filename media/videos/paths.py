"""What moves in a video: cameras along a path, latents along a closed curve through seeds.

Every path is closed: the last frame is the first one again, number for number, so that a video ends
where it began and runs in a loop without a jump. Angles are radians; a path of F frames is F camera
labels (F, 25).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from dnnlib.console import UserError
from dnnlib.files import read_file
from training.cameras import LABEL_SIZE, CameraSummary
from training.data.files import decode_text, parse_json
from training.data.labels import as_entries, check_labels, numbers_fault

CAMERA_PATHS = ("circle", "wobble", "turn", "still")
SWING = 0.8  # of the data's range on either side: at its very ends a model has seen little
# radians to either side, where the data's cameras go all around and the range says nothing
ROUND_SWING = 0.5
POSE_HINT = (
    '25 numbers of a label, 16 of a camera-to-world matrix, or {"yaw": DEGREES, "pitch": DEGREES}'
)


# --------------------------------------------------------------------------------------------------
# Cameras


def is_all_around(cameras: CameraSummary) -> bool:
    """Whether the data's cameras go around the object, so that no side is the front."""
    low, high = cameras.yaw_range
    return high - low > 2 * math.pi - 1e-6


def default_path(cameras: CameraSummary) -> str:
    """`turn` where the training data show all sides, else `circle`: what lies behind a face was
    never seen.
    """
    return "turn" if is_all_around(cameras) else "circle"


def camera_path(
    kind: str,
    cameras: CameraSummary,
    frames: int,
    yaw: float | None = None,
    pitch: float | None = None,
    center: float | None = None,
) -> Tensor:
    """Labels (frames, 25) of one of `CAMERA_PATHS`, which starts and ends on the same camera of the
    data's orbit.

    Args:
        kind: `circle` swings to the sides and up and down by turns, `wobble` to the sides, `turn`
            goes around once, `still` stays.
        yaw: How far it swings to either side; none = `SWING` of the data's range.
        pitch: How far it swings up and down; none = likewise.
        center: Pitch in the middle; none = the data's mean.

    Raises:
        ValueError: for another kind.
    """
    if kind not in CAMERA_PATHS:
        raise ValueError(f"unknown camera path {kind!r}; known are {', '.join(CAMERA_PATHS)}")
    wide = ROUND_SWING if is_all_around(cameras) else SWING * _half(cameras.yaw_range)
    wide = wide if yaw is None else yaw
    high = SWING * _half(cameras.pitch_range) if pitch is None else pitch
    middle = cameras.pitch if center is None else center
    phase = torch.linspace(0, 2 * math.pi, frames, dtype=torch.float64)
    if kind == "circle":
        labels = cameras.label(cameras.yaw + wide * phase.sin(), middle + high * phase.cos())
    elif kind == "wobble":
        labels = cameras.label(cameras.yaw + wide * phase.sin(), middle)
    elif kind == "turn":
        labels = cameras.label(cameras.yaw + phase, middle)
    else:
        labels = cameras.label(cameras.yaw, middle).repeat(frames, 1)
    labels[-1] = labels[0]  # a full turn in floating point ends a little beside its start
    return labels


def _half(span: tuple[float, float]) -> float:
    return (span[1] - span[0]) / 2


def read_poses(path: Path, cameras: CameraSummary) -> Tensor:
    """Labels (F, 25) of a JSON file with one pose per frame.

    The file holds a list, or a dict with the list under `poses` or, as in a data set's
    dataset.json, under `labels`. A pose is a label (25 numbers), a camera-to-world matrix (16
    numbers or 4 x 4; the intrinsics then are the checkpoint's), or a dict with `yaw` and `pitch` in
    degrees and, if wanted, `radius` on the checkpoint's orbit. Entries [name, label] are taken as
    well.

    Raises:
        UserError: if the file cannot be read or a pose is none.
    """
    content = parse_json(decode_text(read_file(path), str(path)), str(path))
    if isinstance(content, dict):
        content = as_entries(content.get("poses", content.get("labels")))
    if not isinstance(content, list) or not content:
        raise UserError(
            f"{path} holds no list of poses; write one whose entries are each {POSE_HINT}"
        )
    labels = torch.stack(
        [_read_pose(entry, cameras, f"{path}: pose {index}") for index, entry in enumerate(content)]
    )
    check_labels(
        labels.double().numpy(), [f"pose {index}" for index in range(len(labels))], str(path)
    )
    return labels


def _read_pose(entry: Any, cameras: CameraSummary, where: str) -> Tensor:
    if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str):
        entry = entry[1]
    try:
        if isinstance(entry, dict):
            return _orbit_pose(entry, cameras)
        is_label = isinstance(entry, list) and len(entry) == LABEL_SIZE
        if is_label and (fault := numbers_fault(entry, where, 0)):
            raise UserError(str(fault))
        numbers = np.array(entry, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{where} is no pose ({' '.join(str(error).split())[:80]}); write {POSE_HINT}"
        ) from error
    if numbers.shape in ((16,), (4, 4)):
        numbers = np.concatenate([numbers.flatten(), cameras.intrinsics])
    if numbers.shape != (LABEL_SIZE,):
        raise UserError(f"{where} has {numbers.size} numbers; write {POSE_HINT}")
    return torch.from_numpy(numbers).float()


def _orbit_pose(entry: dict[str, Any], cameras: CameraSummary) -> Tensor:
    unknown = sorted(set(entry) - {"yaw", "pitch", "radius"})
    if unknown:
        raise ValueError(f"unknown name {unknown[0]!r}")
    yaw, pitch = (math.radians(float(entry.get(name, 0.0))) for name in ("yaw", "pitch"))
    radius = float(entry.get("radius", cameras.radius))
    if not radius > 0:
        raise ValueError(f"radius {radius:g} is not above 0")
    return replace(cameras, radius=radius).label(yaw, pitch)


# --------------------------------------------------------------------------------------------------
# Latents


def latent_loop(keys: Tensor) -> Callable[[float], Tensor]:
    """Closed smooth curve through latents `keys` (K, num_ws, w_dim) in w (StyleGAN, section 4.1: w
    is the space to move in).

    A periodic cubic spline: position, speed and acceleration agree where the end meets the start.

    Returns:
        Function of the time, of which the loop takes 1 from key 0 through all keys back to key 0,
        to ws (1, num_ws, w_dim).
    """
    if len(keys) == 1:
        return lambda _: keys
    closed = torch.cat([keys, keys[:1]]).double().cpu().numpy()
    spline = CubicSpline(np.linspace(0, 1, len(closed)), closed, bc_type="periodic")
    return lambda time: torch.from_numpy(spline(time % 1.0)).to(keys)[None]


def loop_times(frames: int) -> Sequence[float]:
    """Times of the frames of a loop; the last one is a full round, which is the start again."""
    return [index / max(frames - 1, 1) for index in range(frames)]
