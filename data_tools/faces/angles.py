"""Angles from which faces are seen, by the estimators of `dataset_tool.py faces`, for the metric
`pose`.
"""

from __future__ import annotations

import atexit
import inspect
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_tools.faces.estimators import MEDIAPIPE, load_estimator
from data_tools.faces.mediapipe_process import MEDIAPIPE as MEDIAPIPE_PACKAGE
from data_tools.faces.mediapipe_process import EstimatorDied, MediapipeEstimator, environment_python
from data_tools.faces.pose import FacePose
from dnnlib.console import UserError
from metrics.onnx_models import OnnxModel
from metrics.pose import OPTION, PoseEstimator
from metrics.weights import file_hash

SMALLEST = 256  # pixels; smaller pictures are enlarged, since face detectors would overlook them


def open_pose_estimator(name: str) -> PoseEstimator:
    """An estimator by name: "mediapipe", "module:function", or an ONNX file.

    Raises:
        UserError: if there is none of that name, or mediapipe is not set up.
    """
    if name == MEDIAPIPE or (":" in name and "://" not in name and not name.endswith(".onnx")):
        return FaceAngles(name)
    return OnnxModel(name, OPTION)


class FaceAngles:
    """Yaw and pitch by an estimator of face poses."""

    def __init__(self, name: str) -> None:
        if name == MEDIAPIPE:
            environment_python()  # whether it is set up shows now
        self.path, self.estimate = name, load_estimator(name)
        source = None if name == MEDIAPIPE else inspect.getsourcefile(inspect.unwrap(self.estimate))
        self.hash = file_hash(source) if source else MEDIAPIPE_PACKAGE
        if isinstance(self.estimate, MediapipeEstimator):
            atexit.register(self.estimate.close)

    def __call__(self, images: Tensor) -> Tensor:
        """Yaw and pitch (N, 2), radians, float64, of pictures (N, 3, H, W) in [-1, 1]; NaN where no
        face is found.

        Raises:
            UserError: if the estimator fails.
        """
        pixels = images.detach().float().cpu()
        if min(pixels.shape[-2:]) < SMALLEST:
            pixels = F.interpolate(
                pixels, (SMALLEST, SMALLEST), mode="bilinear", align_corners=False
            )
        pictures = (
            ((pixels + 1) * 127.5)
            .round()
            .clamp(0, 255)
            .to(torch.uint8)
            .movedim(1, -1)
            .contiguous()
            .numpy()
        )
        return torch.tensor([self._angles(picture) for picture in pictures], dtype=torch.float64)

    def _angles(self, picture: np.ndarray) -> tuple[float, float]:
        try:
            poses = list(self.estimate(picture))
        except EstimatorDied:
            return math.nan, math.nan
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{OPTION} {self.path} failed: {type(error).__name__}: {error}"
            ) from error
        return (
            viewing_angles(max(poses, key=lambda pose: pose.scale))
            if poses
            else (math.nan, math.nan)
        )


def viewing_angles(pose: FacePose) -> tuple[float, float]:
    """Yaw and pitch, radians, of the direction from which a head is seen: 0, 0 from the front, yaw
    to its left, pitch from above.
    """
    x, y, z = (-float(value) for value in np.asarray(pose.rotation)[2])
    return math.atan2(x, z), math.asin(max(-1.0, min(1.0, y)))
