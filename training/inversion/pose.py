"""Cameras that are optimised: turned around the orbit's pivot and moved along their own axes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dnnlib.numbers import significant
from training.cameras import (
    CameraSummary,
    look_at_pose,
    offset_labels,
    orbit_angles,
    unpack_label,
)


class CameraOffsets(nn.Module):
    """K cameras as offsets from where they start, in the tangent space of rigid motions there.

    `turn` (K, 3) are radians around the camera's right, down and forward axes, with the pivot as
    centre: pitch, yaw and roll. `shift` (K, 3) moves along these axes, in units of the radius.
    `log_focal` (K, 1) is a factor of the focal length, which is optimised on request alone.
    """

    labels: Tensor

    def __init__(self, labels: Tensor, cameras: CameraSummary, has_focal: bool = False) -> None:
        super().__init__()
        self.register_buffer("labels", labels)
        self.cameras = cameras
        self.turn = nn.Parameter(torch.zeros(len(labels), 3, device=labels.device))
        self.shift = nn.Parameter(torch.zeros(len(labels), 3, device=labels.device))
        self.log_focal = nn.Parameter(
            torch.zeros(len(labels), 1, device=labels.device), requires_grad=has_focal
        )

    def forward(self) -> Tensor:
        """Labels (K, 25)."""
        moved = offset_labels(self.labels, self.cameras, self.turn, self.shift)
        factor = torch.ones_like(moved)
        factor[:, [16, 20]] = self.log_focal.exp()
        return moved * factor

    def departure(self) -> Tensor:
        """Squared shift (K,): rays near and far belong to cameras that keep their distance."""
        return self.shift.square().sum(1) + self.log_focal.square().sum(1)


def describe_pose(label: Tensor, cameras: CameraSummary) -> dict[str, Any]:
    """Plain values of a camera (25,): yaw, pitch and roll in degrees, distance to the pivot and
    focal length, and how far the pivot is from the picture's middle, in picture widths.
    """
    cam2world, intrinsics = unpack_label(label.detach().cpu().double())
    offset = cam2world.clone()
    offset[:3, 3] -= torch.tensor(cameras.center, dtype=torch.float64)
    yaw, pitch, _ = (math.degrees(value) for value in orbit_angles(offset))
    pivot = torch.tensor(cameras.pivot, dtype=torch.float64)
    seen = intrinsics @ (cam2world[:3, :3].T @ (pivot - cam2world[:3, 3]))
    upright = look_at_pose(cam2world[:3, 3], cam2world[:3, 3] + cam2world[:3, 2])
    right = upright[:3, :3].T @ cam2world[:3, 0]
    return {
        "yaw": round(yaw, 3),
        "pitch": round(pitch, 3),
        "roll": round(math.degrees(math.atan2(float(right[1]), float(right[0]))), 3),
        "distance": significant(float((pivot - cam2world[:3, 3]).norm()), 6),
        "shift": [round(float(value), 5) for value in seen[:2] / seen[2] - 0.5],
        "focal": round(float(intrinsics[1, 1]), 5),
    }


def angle_between(first: Tensor, second: Tensor, cameras: CameraSummary) -> float:
    """Degrees between the directions in which two cameras (25,) see the pivot."""
    pivot = torch.tensor(cameras.pivot)
    a, b = (unpack_label(c.detach().cpu().float())[0][:3, 3] - pivot for c in (first, second))
    return math.degrees(math.atan2(float(torch.linalg.cross(a, b).norm()), float(a @ b)))
