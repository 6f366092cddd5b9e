"""Estimators of face poses: mediapipe, or any function that is named.

An estimator is any function that takes a picture (H, W, 3), uint8, upright sRGB, and returns a
`FacePose` for every face in it.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_tools.faces.mediapipe_process import EstimatorDied, MediapipeEstimator
from data_tools.faces.pose import FacePose
from dnnlib.console import UserError

Estimator = Callable[[NDArray[np.uint8]], Sequence[FacePose]]

MEDIAPIPE = "mediapipe"
LARGEST_SIDE = 2048  # of what the estimator sees; landmarks do not become better beyond


class EstimatorBroken(UserError):
    """The estimator itself does not work: no picture will."""


_running: dict[str, Estimator] = {}


def load_estimator(name: str) -> Estimator:
    """The estimator called `name`: "mediapipe", or "module:function" of anything that Python can
    import from here.

    Raises:
        UserError: if there is no such function.
    """
    if name == MEDIAPIPE:
        return MediapipeEstimator()
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UserError(f"{name!r} is neither mediapipe nor of the form module:function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:
        raise UserError(f"{name!r} cannot be imported: {error}") from error
    if not callable(function):
        raise UserError(f"{name!r} is no function")
    return cast(Estimator, function)


def estimate(picture: Image.Image, name: str, where: str) -> list[FacePose]:
    """Poses in pixels of the picture, by the estimator of that name in this process.

    Raises:
        EstimatorDied: if its process ended or hung at the picture.
        UserError: if it failed, or did not return poses; `EstimatorBroken` if it does not work at
            all.
    """
    if name not in _running:
        _running[name] = load_estimator(name)
    factor = min(1.0, LARGEST_SIDE / max(picture.size))
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    seen = picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)
    try:
        poses = list(_running[name](np.array(seen)))
    except EstimatorDied:
        raise
    except UserError as error:
        raise EstimatorBroken(str(error)) from error
    except Exception as error:
        raise UserError(
            f"{where}: the estimator {name} failed: {type(error).__name__}: {error}"
        ) from error
    enlarge = picture.width / size[0], picture.height / size[1]
    return [_rescaled(_checked(pose, name, where), enlarge) for pose in poses]


def _checked(pose: FacePose, name: str, where: str) -> FacePose:
    """A pose from outside, if it is one."""
    try:
        rotation = np.asarray(pose.rotation, dtype=np.float64).reshape(3, 3)
        numbers = np.array([*pose.centre, pose.scale], dtype=np.float64)
        proper = (
            np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-3 and np.linalg.det(rotation) > 0
        )
        score = None if pose.score is None else float(pose.score)
        if not (proper and numbers.shape == (3,) and np.isfinite(numbers).all() and numbers[2] > 0):
            raise ValueError(
                "its rotation is not orthonormal, or centre and scale are no usable numbers"
            )
        if score is not None and not 0 <= score <= 1:
            raise ValueError(f"its score {score:g} is not between 0 and 1")
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: the estimator {name} did not return face poses: {error}"
        ) from error
    return FacePose(rotation, (float(numbers[0]), float(numbers[1])), float(numbers[2]), score)


def _rescaled(pose: FacePose, factor: tuple[float, float]) -> FacePose:
    return FacePose(
        pose.rotation,
        (pose.centre[0] * factor[0], pose.centre[1] * factor[1]),
        pose.scale * factor[0],
        pose.score,
    )


def close_estimators() -> None:
    """End what the estimators of this process have started."""
    while _running:
        _, estimator = _running.popitem()
        if isinstance(estimator, MediapipeEstimator):
            estimator.close()


atexit.register(close_estimators)


@contextlib.contextmanager
def estimators_closed() -> Iterator[None]:
    """Estimators of this process end with the block; those of workers with their process."""
    try:
        yield
    finally:
        close_estimators()
