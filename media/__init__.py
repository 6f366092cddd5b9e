"""Pictures, videos, meshes, density volumes, report pages and the viewer.

The functions here need little of a generator: any object with the following methods will do.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from metrics.sampling import RenderOutput as MeasuredOutput
from training.config.settings import RenderingConfig


class RenderOutput(MeasuredOutput, Protocol):
    """The pictures that metrics look at, and `alpha` (N, 1, r, r) in [0, 1]."""

    @property
    def alpha(self) -> Tensor: ...


class DensityModel(Protocol):
    """A scene that can be asked for its density at points: all that a mesh needs."""

    @property
    def rendering(self) -> RenderingConfig: ...

    def query_density(self, points: Tensor, planes: Tensor) -> Tensor:
        """Raw densities (N, M, 1) at world points (N, M, 3) of planes (N, 3, C, H, W)."""
        ...

    def query(self, points: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        """The same densities, and colours (N, M, C >= 3) in [0, 1]."""
        ...


class ViewModel(Protocol):
    """A scene that renders itself: all that pictures need."""

    def planes(self, ws: Tensor, noise_mode: Any = ...) -> Tensor:
        """Tri-planes (N, 3, C, H, W) of latents ws (N, num_ws, w_dim)."""
        ...

    def render(
        self,
        planes: Tensor,
        ws: Tensor,
        c: Tensor,
        neural_rendering_resolution: int | None = ...,
        deterministic: bool = ...,
    ) -> RenderOutput:
        """Views of the planes from camera labels c (N, 25)."""
        ...


class PictureModel(ViewModel, DensityModel, Protocol):
    """A scene that renders itself and tells its density."""


class Cameras(Protocol):
    """The cameras of the training data. Angles are radians."""

    @property
    def yaw_range(self) -> tuple[float, float]: ...
    @property
    def pitch_range(self) -> tuple[float, float]: ...

    def label(self, yaw: float, pitch: float) -> Tensor:
        """Camera label (25,) of one orbit pose."""
        ...
