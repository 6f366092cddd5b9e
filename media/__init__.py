"""Pictures, videos, meshes, density volumes, 3D Gaussians, web pages, reports and the viewer.

The functions here need little of a generator: any object with the following methods will do.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from metrics.sampling import RenderOutput, ViewModel
from training.config.settings import RenderingConfig

__all__ = ["DensityModel", "PictureModel", "RenderOutput", "ViewModel"]


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


class PictureModel(ViewModel, DensityModel, Protocol):
    """A scene that renders itself and tells its density."""
