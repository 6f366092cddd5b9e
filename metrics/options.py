"""How metrics are computed, and what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from metrics.names import DetectorName
from metrics.pose import PoseEstimator, open_onnx
from metrics.processes import CPU, WorkerGroup, never

Measured = tuple[dict[str, float], dict[str, Any]]
"""Values by name, and what only this metric adds to the protocol."""


@dataclass(frozen=True)
class MetricOptions:
    """How to compute.

    Attributes:
        device: of the feature networks. batch: pictures at once; changes results only
            by the rounding of convolutions.
        detector: feature network of metrics whose name tells none. detector_weights: file of its
            weights; none = as published.
        lpips_weights: files for ppl. identity_model, pose_model: ONNX files. open_pose: opens
            `pose_model`, which may name something else.
        is_shared: all processes of the running group call `evaluate`, and share the work; otherwise
            this process works alone.
        is_cancelled: asked before each batch; if true, the work is given up with `Cancelled`.
    """

    device: torch.device = CPU
    batch: int = 16
    detector: DetectorName = "inception"
    detector_weights: str | None = None
    lpips_weights: tuple[str, ...] = ()
    identity_model: str | None = None
    pose_model: str | None = None
    open_pose: Callable[[str], PoseEstimator] = open_onnx
    is_shared: bool = True
    is_cancelled: Callable[[], bool] = never

    def weights_of(self, detector: DetectorName) -> str | None:
        """File of a feature network's weights; none = as published."""
        return self.detector_weights if detector == self.detector else None

    @property
    def team(self) -> WorkerGroup:
        """The processes that share the work."""
        shared = WorkerGroup.of_group(self.device, self.is_cancelled)
        return shared if self.is_shared else dataclasses.replace(shared, rank=0, size=1)


@dataclass(frozen=True)
class MetricResult:
    """A metric's values by name, the first the metric itself, and how they came about."""

    name: str
    values: dict[str, float]
    protocol: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
