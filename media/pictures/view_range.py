"""Whether views lie within what training has seen."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.cameras import CameraSummary, orbit_angles, unpack_label
from training.networks.generator import Generator

TOLERANCE = math.radians(3.0)  # beyond the range of the data, whose outermost cameras it leaves out


def beyond_training(generator: Generator, labels: Tensor) -> str | None:
    """A note on views (K, 25) from where training has seen nothing; none if there are no such
    views, or the file does not tell what training has seen.
    """
    if not generator.cameras:
        return None
    cameras = CameraSummary.from_dict(generator.cameras)
    cam2world = unpack_label(labels.double().cpu())[0].clone()
    cam2world[:, :3, 3] -= torch.tensor(cameras.center)
    yaws, pitches, _ = orbit_angles(cam2world)
    yaws = yaws - cameras.yaw
    yaws = cameras.yaw + torch.atan2(yaws.sin(), yaws.cos())
    angles = (("yaws", yaws, cameras.yaw_range), ("pitches", pitches, cameras.pitch_range))
    parts = [
        f"{name} {_span(float(seen.min()), float(seen.max()))} (training: {_span(low, high)})"
        for name, seen, (low, high) in angles
        if seen.min() < low - TOLERANCE or seen.max() > high + TOLERANCE
    ]
    if not parts:
        return None
    return (
        f"note: views leave the range of the training data: {', '.join(parts)}; what training has"
        " not seen is the model's guess"
    )


def _span(low: float, high: float) -> str:
    return f"{math.degrees(low):.0f} to {math.degrees(high):.0f} degrees"
