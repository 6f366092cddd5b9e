"""The density of one identity on a grid, layer by layer, and as a volume file.

A grid of resolution n samples the box of side s at the centres of n^3 cells of size s / n. Memory
is one slab of it: the grid is never held as a whole.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import mrcfile
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnnlib.console import UserError, progress
from dnnlib.files import atomic_write
from media import DensityModel
from media.meshes.region import CHUNK_POINTS, Region, point_densities, seen_region, surface_level
from media.pictures.normals import NORMAL_STEP

SLAB_SAMPLES = 1 << 22  # grid samples held at once
CUT_STEEPNESS = 10.0  # fall of the raw density per grid cell outside the seen region
# cells outside the region beyond which the density is constant and the model is not evaluated
CUT_CELLS = 3.0


@dataclass
class Grid(ABC):
    """Values on a grid over the box of a region, evaluated layer by layer."""

    region: Region
    resolution: int
    level: float  # of the surface, inside which values are higher

    @property
    def spacing(self) -> float:
        """Side of a cell in world units."""
        return self.region.side / self.resolution

    def world(self, index: Any) -> Any:
        """World coordinates of grid indices along any axis; index 0 is the first cell's centre."""
        return (index + 0.5) * self.spacing - self.region.side / 2

    @torch.no_grad()
    def layer(self, z: int, padding: int) -> NDArray[np.float32]:
        """Layer (n + 2 * padding, same) at grid index z, rows along y, columns along x; `padding`
        cells lie outside the box.
        """
        indices = torch.arange(-padding, self.resolution + padding, device=self.region.seen.device)
        axis = self.world(indices).to(self.region.seen)
        y, x = (values.flatten() for values in torch.meshgrid(axis, axis, indexing="ij"))
        points = torch.stack([x, y, torch.full_like(x, self.world(z))], dim=-1)
        values = torch.cat([self.values(chunk) for chunk in points.split(CHUNK_POINTS)])
        return values.reshape(len(axis), len(axis)).float().cpu().numpy()

    @torch.no_grad()
    def normals(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outward unit normals (V, 3) of the surface at points (V, 3) on it: against the values'
        gradient.
        """
        steps = torch.cat([torch.eye(3), -torch.eye(3)]) * self.normal_step
        found = []
        for chunk in torch.from_numpy(points).split(CHUNK_POINTS // len(steps)):
            around = (chunk[:, None] + steps).to(self.region.seen).flatten(0, 1)
            ahead, behind = self.values(around).view(-1, 2, 3).unbind(dim=1)
            found.append(torch.nn.functional.normalize(behind - ahead, dim=1).float().cpu())
        return torch.cat(found).numpy()

    @abstractmethod
    def values(self, points: Tensor) -> Tensor:
        """Values (M,) at points (M, 3)."""

    @property
    @abstractmethod
    def normal_step(self) -> float:
        """Distance, in world units, of the differences that a normal is made of."""

    @abstractmethod
    def check_level(self) -> None:
        """To be called once all layers are evaluated.

        Raises:
            UserError: if there is no surface.
        """


@dataclass
class DensityGrid(Grid):
    """Raw density of one identity's planes (1, 3, C, H, W), cut to a region."""

    generator: DensityModel
    planes: Tensor
    lowest: float = float("inf")  # of the densities seen so far, before the cut
    highest: float = -float("inf")

    def values(self, points: Tensor) -> Tensor:
        """Density (M,) at points (M, 3): the model's inside the region, at most a slope that falls
        below the level at its border.
        """
        cells = self.region.margin(points) / self.spacing
        slope = self.level + CUT_STEEPNESS * cells.clamp(min=-CUT_CELLS)
        bound = slope.where(cells < 1, float("inf"))
        near = cells > -CUT_CELLS
        if near.any():
            sigma = point_densities(self.generator, self.planes, points[near])
            self._note(sigma[cells[near] > 0])
            bound[near] = torch.minimum(bound[near], sigma)
        return bound

    def _note(self, densities: Tensor) -> None:
        if len(densities):
            self.lowest = min(self.lowest, float(densities.min()))
            self.highest = max(self.highest, float(densities.max()))

    @property
    def normal_step(self) -> float:
        """Some texels: less shows their edges."""
        return NORMAL_STEP * self.region.side / self.planes.shape[-1]

    def check_level(self) -> None:
        """Raise a UserError if the level lies outside the densities."""
        if self.lowest > self.highest:
            raise UserError(
                "no camera of the data sees any part of the box: the camera ranges do not fit this"
                " model"
            )
        if not self.lowest < self.level < self.highest:
            raise UserError(
                f"no surface at density {self.level:g}: the densities reach from {self.lowest:.4g}"
                f" to {self.highest:.4g}; choose a --shape-level between them"
            )


def density_grid(
    generator: DensityModel,
    planes: Tensor,
    cameras: Tensor,
    resolution: int,
    level: float | None = None,
) -> DensityGrid:
    """Grid of `resolution`^3 cells over the part of the box that cameras (K, 25) see; level none =
    `surface_level`.
    """
    region = seen_region(generator, planes, cameras)
    # a look-up reads one cache line
    fast = planes.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (1, 3))
    found = surface_level(generator, fast, region) if level is None else level
    return DensityGrid(region, resolution, found, generator, fast)


def density_slabs(
    grid: Grid, padding: int = 0, slab_samples: int = SLAB_SAMPLES
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The grid's layers in order, a few at a time: the first one's index and an array (layers, n,
    n) with axes z, y, x.

    A slab begins with the layer that the one before ended with, so that surfaces join without a
    seam.
    """
    thickness = max(2, slab_samples // (grid.resolution + 2 * padding) ** 2)
    layers: list[NDArray[np.float32]] = []
    last = grid.resolution + padding - 1
    with progress(
        range(-padding, last + 1), f"Density on {grid.resolution}^3", unit="layer"
    ) as bar:
        bar.leave = False
        for z in bar:
            layers.append(grid.layer(z, padding))
            if len(layers) == thickness or z == last:
                yield z + 1 - len(layers), np.stack(layers)
                layers = layers[-1:]


# --------------------------------------------------------------------------------------------------
# Volume files


def save_density(path: str | os.PathLike[str], grid: DensityGrid) -> None:
    """Write the raw density, cut to the region, as an MRC volume of 32-bit floats.

    Sections run along z, rows along y, columns (fastest) along x; the header's voxel size and
    origin (the centre of voxel 0, 0, 0) are world units. Three cells outside the region the values
    stay at level - 30.
    """
    with atomic_write(path) as file:
        shape = (grid.resolution,) * 3
        with mrcfile.new_mmap(file.name, shape, mrc_mode=2, overwrite=True) as volume:
            _set_header(volume, grid)
            statistics = _stream(file, volume.header.nbytes, grid)
            grid.check_level()
            volume.header.dmin, volume.header.dmax, volume.header.dmean, volume.header.rms = (
                statistics
            )


def _set_header(volume: Any, grid: DensityGrid) -> None:
    volume.voxel_size = grid.spacing
    volume.header.origin = (grid.world(0),) * 3
    # instead of the library's time stamp
    volume.header.label[0] = f"raw density, surface at {grid.level:.6g}"


def _stream(file: IO[bytes], start: int, grid: DensityGrid) -> tuple[float, float, float, float]:
    """Write the volume from byte `start` on; returns its minimum, maximum, mean and standard
    deviation.

    Through the file and not through a memory map: a full disk then is an error that can be told,
    not the end of the process.
    """
    lowest, highest, total, squares, count = (
        float("inf"),
        -float("inf"),
        0.0,
        0.0,
        grid.resolution**3,
    )
    for first, slab in density_slabs(grid):
        layers = slab if first == 0 else slab[1:]
        file.seek(start + (first + len(slab) - len(layers)) * slab[0].nbytes)
        file.write(layers.tobytes())
        lowest, highest = min(lowest, float(layers.min())), max(highest, float(layers.max()))
        total, squares = (
            total + float(layers.sum(dtype=np.float64)),
            squares + float(np.square(layers, dtype=np.float64).sum()),
        )
    mean = total / count
    return lowest, highest, mean, max(squares / count - mean**2, 0.0) ** 0.5
