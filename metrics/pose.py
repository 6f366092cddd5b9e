"""Pose: does the model's face look where its camera says? (EG3D, section 5.2)."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from dnnlib.console import UserError
from metrics.onnx_models import OnnxModel
from metrics.processes import WorkerGroup
from metrics.sampling import GeneratorSampler

OPTION = "--pose-model"


class PoseEstimator(Protocol):
    """Tells from which side a face is seen. `path` names it, `hash` tells its versions apart."""

    @property
    def path(self) -> Any: ...
    @property
    def hash(self) -> str: ...
    def __call__(self, images: Tensor) -> Tensor:
        """Yaw, pitch (N, 2 or more), radians, float64, of pictures (N, 3, H, W) in [-1, 1]; NaN
        where it sees no face.
        """
        ...


def open_onnx(name: str) -> PoseEstimator:
    """The estimator of an ONNX file."""
    return OnnxModel(name, OPTION)


def camera_angles(c: Tensor) -> Tensor:
    """Yaw and pitch (N, 2) in radians of the direction from which labels (N, 25) look: 0, 0 from
    +z; yaw to +x, pitch to +y.
    """
    x, y, z = (-c[:, [2, 6, 10]].cpu().double()).unbind(1)
    return torch.stack(
        [torch.atan2(x, z), torch.asin((y / (x * x + y * y + z * z).sqrt()).clamp(-1, 1))], 1
    )


def pose_error(
    sampler: GeneratorSampler, estimator: PoseEstimator, count: int, batch: int, team: WorkerGroup
) -> dict[str, float]:
    """Error of estimated yaw and pitch of `count` fakes against their cameras, degrees.

    Returns:
        yaw_error, pitch_error: mean absolute error after the mean difference is taken out, since
            estimators disagree on what is frontal.
        yaw_offset, pitch_offset: that mean difference. mse: mean squared error of both angles as
            they are, radians squared.
        found: share of the pictures in which the estimator sees a face; the others do not count.

    Raises:
        UserError: if the estimator gives fewer than two numbers.
    """
    errors = torch.zeros(count, 2, dtype=torch.float64)
    for start, size in sampler.batches(count, batch, team, "Pose"):
        c = sampler.cameras(start, size)
        found = estimator(
            sampler.render(sampler.ws(sampler.latents(start, size), c), c, start).image
        )
        if found.shape[1] < 2:
            raise UserError(
                f"{OPTION} {estimator.path} gives {found.shape[1]} numbers per picture instead of"
                " yaw and pitch"
            )
        errors[start : start + size] = _wrapped(found[:, :2] - camera_angles(c))
    errors = team.sum(errors)
    errors = errors[errors.isfinite().all(1)]
    offset = torch.atan2(errors.sin().mean(0), errors.cos().mean(0))
    remaining = _wrapped(errors - offset).abs().mean(0)
    values = {
        f"{name}_error": math.degrees(remaining[i]) for i, name in enumerate(("yaw", "pitch"))
    }
    values |= {f"{name}_offset": math.degrees(offset[i]) for i, name in enumerate(("yaw", "pitch"))}
    return {**values, "mse": float(errors.square().mean()), "found": len(errors) / count}


def _wrapped(angles: Tensor) -> Tensor:
    """Angles in [-pi, pi)."""
    return torch.remainder(angles + math.pi, 2 * math.pi) - math.pi
