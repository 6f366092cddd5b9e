"""How a face stands in a picture: pose from landmarks, the square that is cut out, and the camera
label that goes with it.

Conventions are those of FFHQ as EG3D prepared it (EG3D, supplement, "Dataset details"): the camera
stands on a sphere of radius 2.7 around the head, looks at a point a little before its middle, and
sees a width of 700/300 decimetres of face with a focal length of 2985.29/700 picture widths. Head
axes are the world's: x to the picture's right when the face looks into the camera, y up, z out of
the face. The origin of a head's coordinates is the point that the camera looks at, about the root
of the nose, and their unit is the decimetre of an average face. Camera axes are OpenCV's. All
arrays float64.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_tools.sources.base import Array
from training.cameras import look_at_pose, pack_label, pinhole_intrinsics

FACE_RADIUS = 2.7
FACE_PIVOT = (0.0, 0.0, 0.175)
FACE_FOCAL = 2985.29 / 700
VISIBLE_WIDTH = 700 / 300  # decimetres of a face from edge to edge of the picture
CANONICAL_FILE = Path(__file__).with_name("canonical.csv")
# Depths of mediapipe's landmarks are too flat by this factor, and its mean face has a tilt of its
# own: both were measured once, on rendered heads (benchmarks/faces.py --fit).
DEPTH_GAIN = 1.1


@dataclass(frozen=True, eq=False)
class FacePose:
    """Where a face is in a picture and how it is turned: what an estimator hands over.

    Attributes:
        rotation: (3, 3), head axes to camera axes; diag(1, -1, -1) is a face that looks straight
            into the camera.
        centre: (x, y) of the head's middle in pixels, 0,0 being the picture's upper left corner.
        scale: pixels for a decimetre of the face (the eyes are 0.62 apart, they and the mouth
            0.67).
        score: how sure the estimator is that this is a face, 0 to 1; None = it does not say.
    """

    rotation: Array
    centre: tuple[float, float]
    scale: float
    score: float | None = None

    @classmethod
    def from_angles(
        cls, yaw: float, pitch: float, roll: float, centre: tuple[float, float], scale: float
    ) -> FacePose:
        """Pose of a head seen from `yaw` (radians, positive: from its left, the picture's right)
        and `pitch` (positive: from above).

        Positive `roll` turns the head clockwise in the picture.
        """
        a, b = math.cos(pitch), math.sin(pitch)
        toward = np.array([math.sin(yaw) * a, b, math.cos(yaw) * a])
        right = np.array([math.cos(yaw), 0, -math.sin(yaw)])
        # rows: camera axes in the head's
        upright = np.stack([right, np.cross(right, toward), -toward])
        turn = np.array(
            [[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]]
        )
        return cls(turn @ upright, centre, scale)


def pose_from_landmarks(landmarks: Array, model: Array) -> FacePose:
    """Pose of a head whose `model` (K, 3), in its own axes, is seen at `landmarks` (K, 3): pixels
    right, down and away from the camera.

    The least-squares similarity (Umeyama, "Least-squares estimation of transformation parameters
    between two point patterns", 1991).

    Raises:
        ValueError: if the points do not span a plane, so that the rotation is undetermined, or are
            not finite.
    """
    if landmarks.shape != model.shape or not np.isfinite(landmarks).all():
        raise ValueError(f"landmarks must be {model.shape} finite numbers, not {landmarks.shape}")
    seen, known = landmarks - landmarks.mean(0), model - model.mean(0)
    left, sizes, right = np.linalg.svd(seen.T @ known)
    if sizes[1] <= 1e-9 * sizes[0] or sizes[0] <= 0:
        raise ValueError("landmarks must not lie on one line")
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    rotation = left * signs @ right
    scale = float(sizes @ signs / (known**2).sum())
    middle = landmarks.mean(0) - scale * rotation @ model.mean(0)
    return FacePose(rotation, (float(middle[0]), float(middle[1])), scale)


@functools.cache
def canonical_face() -> Array:
    """Mediapipe's 478 landmarks (478, 3) on an average face."""
    face = np.loadtxt(CANONICAL_FILE, delimiter=",", dtype=np.float64)
    face.setflags(write=False)
    return face


def pose_from_mesh(landmarks: Array) -> FacePose:
    """Pose from mediapipe's face mesh (478, 3) in pixels.

    Raises:
        ValueError: if these are no landmarks of a face.
    """
    return pose_from_landmarks(landmarks * (1, 1, DEPTH_GAIN), canonical_face())


# --------------------------------------------------------------------------------------------------
# Camera and crop


@dataclass(frozen=True, eq=False)
class Crop:
    """A square of a picture: middle (x, y), side in pixels, and the clockwise angle, radians, of
    its upper edge.
    """

    centre: tuple[float, float]
    side: float
    angle: float

    def corners(self) -> Array:
        """Corners (4, 2) in pixels: upper left, upper right, lower right, lower left."""
        across = np.array([math.cos(self.angle), math.sin(self.angle)]) * self.side / 2
        down = np.array([-across[1], across[0]])
        return np.array(self.centre) + np.stack(
            [-across - down, across - down, across + down, down - across]
        )


def camera_of(pose: FacePose, keep_roll: bool = False) -> Array:
    """Camera-to-world matrix (4, 4): on the sphere of `FACE_RADIUS` around the world's origin,
    looking at `FACE_PIVOT`.

    Without `keep_roll` it stands upright.
    """
    rotation, pivot = pose.rotation.T, np.array(FACE_PIVOT)
    forward = rotation[:, 2]
    along = pivot @ forward
    position = pivot - (along + math.sqrt(along**2 - pivot @ pivot + FACE_RADIUS**2)) * forward
    if not keep_roll:
        return look_at_pose(torch.from_numpy(position), torch.from_numpy(pivot)).numpy()
    camera = np.eye(4)
    camera[:3, :3], camera[:3, 3] = rotation, position
    return camera


def face_label(pose: FacePose, keep_roll: bool = False) -> Array:
    """Camera label (25,) of the picture that `face_crop` cuts out."""
    camera = torch.from_numpy(camera_of(pose, keep_roll))
    return pack_label(
        camera, pinhole_intrinsics(torch.tensor(FACE_FOCAL, dtype=torch.float64))
    ).numpy()


def face_crop(pose: FacePose, keep_roll: bool = False) -> Crop:
    """The square around a face; without `keep_roll` turned so that the head is upright in it."""
    right = pose.rotation @ camera_of(pose, keep_roll)[:3, 0]
    return Crop(
        pose.centre,
        pose.scale * VISIBLE_WIDTH,
        0.0 if keep_roll else math.atan2(right[1], right[0]),
    )
