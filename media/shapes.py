"""Shapes of one identity: coloured triangle meshes and density volumes.

Axes are the world's: x to the picture's right in the frontal view, y up, z towards the frontal camera; units are world units. A grid
of resolution n samples the box of side s at the centres of n^3 cells of size s / n.

What belongs to the object. A GAN is free to put density where no training camera looks: in the corners of the box, behind the
cameras' near limit, on the walls. So the surface is taken of the density *cut to the region that the data's cameras see* (the
frustums between near and far, less a thin shell under the box's walls where look-ups mix with the zeros outside the planes), and
of the closed surfaces that result the object is the one with the most volume, surfaces on the cut itself counting for nothing.
Where the cut goes through the object (a neck that leaves the picture) the mesh is closed by a flat end.

Memory is one slab of the grid plus the surface found so far: the grid is never held as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import mrcfile
import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes
from torch import Tensor
from trimesh.visual import ColorVisuals

from dnnlib.console import UserError, progress
from dnnlib.files import atomic_write
from media import DensityModel
from training.cameras import unpack_label
from training.rendering.rays import sample_rays

MESH_FORMATS = ("ply", "obj", "glb")
FORMATS = (*MESH_FORMATS, "mrc")

CHUNK_POINTS = 1 << 16  # points evaluated at once
SLAB_SAMPLES = 1 << 22  # grid samples held at once
SHELL = 0.01  # least thickness of the shell under the box's walls that counts as empty, in box sides
SEEN_RESOLUTION = 32  # of the look-up table of what cameras see
CUT_STEEPNESS = 10.0  # fall of the raw density per grid cell outside the seen region
CUT_CELLS = 3.0  # the density stops falling, and the model is not asked any more, so many cells outside
PUBLISHED_LEVEL = 10.0  # raw density at the surface of the released models
LEVEL_VIEWS, LEVEL_RAYS, LEVEL_SAMPLES = 5, 32, 128  # cameras, rays a side, samples a ray for finding the level
LEVEL_SHARE = 0.01  # of the rays must meet a surface, else the level is a guess
LEVEL_REST = 0.001  # of the range of densities must lie above the level
HALF_TRANSMITTANCE = float(np.log(2))  # optical depth at which half of the light is left


# ---------------------------------------------------------------------------------------------------------------------
# Region and density


@dataclass(frozen=True)
class Region:
    """The part of the box that the data's cameras see. Lengths in world units."""

    side: float  # of the box
    shell: float  # empty layer under its walls
    seen: Tensor  # (1, 1, k, k, k), axes z, y, x, corners on the box's corners: signed distance to the border of what is seen
    cameras: Tensor  # (K, 25)
    near: float  # distances from the camera between which it renders
    far: float

    def margin(self, points: Tensor) -> Tensor:
        """Roughly how far points (M, 3) lie inside (positive) or outside (negative) the region: (M,)."""
        in_box = self.side / 2 - self.shell - points.abs().amax(dim=-1)
        where = (points * (2 / self.side)).to(self.seen)[None, None, None]
        seen = torch.nn.functional.grid_sample(self.seen, where, padding_mode="border", align_corners=True)
        return torch.minimum(in_box, seen.flatten().to(in_box))


@torch.no_grad()
def seen_region(generator: DensityModel, planes: Tensor, cameras: Tensor) -> Region:
    """Region of a generator's box that cameras (K, 25) see, less a shell of one texel of the planes (at least `SHELL`)."""
    rendering = generator.rendering
    side = rendering.box_warp
    near = 0.0 if rendering.ray_start == "auto" else rendering.ray_start
    far = float("inf") if rendering.ray_end == "auto" else rendering.ray_end
    axis = torch.linspace(-side / 2, side / 2, SEEN_RESOLUTION, device=planes.device)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).flip(-1).flatten(0, 2)
    seen = torch.full_like(points[:, 0], -float("inf"))
    for cam2world, intrinsics in zip(*unpack_label(cameras.to(points)), strict=True):
        seen = torch.maximum(seen, _frustum_margin(points, cam2world, intrinsics, near, far))
    shell = side * max(SHELL, 1 / planes.shape[-1])
    return Region(side, shell, seen.view(1, 1, *(SEEN_RESOLUTION,) * 3), cameras, near, far)


def _frustum_margin(points: Tensor, cam2world: Tensor, intrinsics: Tensor, near: float, far: float) -> Tensor:
    """Signed distance (M,), a bound, of points (M, 3) to the border of what one camera sees between near and far."""
    in_camera = (points - cam2world[:3, 3]) @ cam2world[:3, :3]
    depth, distance = in_camera[:, 2:], in_camera.norm(dim=-1, keepdim=True)
    from_left_and_top = (in_camera @ intrinsics.T)[:, :2]  # picture coordinates (u, v) times depth
    sides = torch.cat([from_left_and_top, depth - from_left_and_top], dim=-1) / intrinsics.diagonal()[:2].repeat(2)
    return torch.cat([sides, distance - near, far - distance], dim=-1).amin(dim=-1)


def _densities(generator: DensityModel, planes: Tensor, points: Tensor) -> Tensor:
    """Raw densities (M,) at points (M, 3), a chunk at a time."""
    return torch.cat([generator.sample_densities(chunk[None], planes)[0, :, 0] for chunk in points.split(CHUNK_POINTS)])


def _colors(generator: DensityModel, planes: Tensor, points: Tensor) -> Tensor:
    """Colours (M, 3) at points (M, 3), a chunk at a time; copied, since a view would keep all of the decoder's channels."""
    return torch.cat([generator.sample_planes(chunk[None], planes)[1][0, :, :3].clone() for chunk in points.split(CHUNK_POINTS)])


# ---------------------------------------------------------------------------------------------------------------------
# Level


@torch.no_grad()
def surface_level(generator: DensityModel, planes: Tensor, region: Region) -> float:
    """Raw density at the visible surface: the median, over rays of a few cameras, where half of the light is left.

    As many rays meet the isosurface of this level before as behind the place where they fade. Where hardly a ray fades by half (a
    model at the start of its training), or no density is above that median (a step), it is the released models' 10, or the middle
    of the densities if these miss 10.
    """
    chosen = torch.linspace(0, len(region.cameras) - 1, min(LEVEL_VIEWS, len(region.cameras))).round().long()
    seen, at_surface = [], []
    for label in region.cameras[chosen].to(planes).split(1):
        points, step = _ray_points(label, region)
        flat = points.flatten(0, 1)
        sigma = _densities(generator, planes, flat).where(region.margin(flat) > 0, -float("inf"))
        seen.append(sigma[sigma > -float("inf")])
        surface = _half_light_points(points, sigma.unflatten(0, points.shape[:2]), step)
        at_surface.append(_densities(generator, planes, surface))
    densities, samples = torch.cat(at_surface), torch.cat(seen)
    if not len(samples):
        return PUBLISHED_LEVEL
    lowest, highest = float(samples.min()), float(samples.max())
    is_found = len(densities) > LEVEL_SHARE * len(chosen) * LEVEL_RAYS**2
    for level in [float(densities.median())] * is_found + [PUBLISHED_LEVEL]:
        if lowest < level < highest - LEVEL_REST * (highest - lowest):
            return level
    return (lowest + highest) / 2


def _ray_points(label: Tensor, region: Region) -> tuple[Tensor, float]:
    """Evenly spaced points (R, S, 3) on the rays of one camera (1, 25) that pass the region, and their distance."""
    origins, directions = sample_rays(*unpack_label(label), LEVEL_RAYS)
    reach = region.side / 2 * 3**0.5
    middle = float(origins[0, 0].norm())
    near, far = max(region.near, middle - reach, 0.0), min(region.far, middle + reach)
    depths = torch.linspace(near, far, LEVEL_SAMPLES, dtype=label.dtype, device=label.device)
    return origins[0, :, None] + depths[:, None] * directions[0, :, None], (far - near) / (LEVEL_SAMPLES - 1)


def _half_light_points(points: Tensor, sigma: Tensor, step: float) -> Tensor:
    """Points (K, 3) on those rays (R, S, 3) of raw densities (R, S) that lose half of their light, where they have lost it."""
    between = torch.nn.functional.softplus((sigma[:, 1:] + sigma[:, :-1]) / 2 - 1)
    after = (between * step).cumsum(dim=1)
    rays = (after[:, -1] >= HALF_TRANSMITTANCE).nonzero()[:, 0]
    index = (after[rays] >= HALF_TRANSMITTANCE).int().argmax(dim=1)
    gained = between[rays, index] * step
    part = 1 - (after[rays, index] - HALF_TRANSMITTANCE) / gained
    return torch.lerp(points[rays, index], points[rays, index + 1], part[:, None])


# ---------------------------------------------------------------------------------------------------------------------
# Grid


@dataclass
class DensityGrid:
    """Raw density of one identity's planes (1, 3, C, H, W) on a grid, cut to a region; evaluated layer by layer."""

    generator: DensityModel
    planes: Tensor
    region: Region
    resolution: int
    level: float
    lowest: float = float("inf")  # of the densities seen so far, before the cut
    highest: float = -float("inf")

    @property
    def spacing(self) -> float:
        """Side of a cell in world units."""
        return self.region.side / self.resolution

    def world(self, index: Any) -> Any:
        """World coordinates of grid indices along any axis; index 0 is the first cell's centre."""
        return (index + 0.5) * self.spacing - self.region.side / 2

    @torch.no_grad()
    def layer(self, z: int, padding: int) -> NDArray[np.float32]:
        """Layer (n + 2 * padding, same) at grid index z, rows along y, columns along x; `padding` cells lie outside the box."""
        indices = torch.arange(-padding, self.resolution + padding, device=self.planes.device)
        axis = self.world(indices).to(self.planes.dtype)
        y, x = (values.flatten() for values in torch.meshgrid(axis, axis, indexing="ij"))
        points = torch.stack([x, y, torch.full_like(x, self.world(z))], dim=-1)
        values = torch.cat([self._cut_density(chunk) for chunk in points.split(CHUNK_POINTS)])
        return values.reshape(len(axis), len(axis)).float().cpu().numpy()

    def _cut_density(self, points: Tensor) -> Tensor:
        """Density (M,) at points (M, 3): the model's inside the region, at most a slope that falls below the level at its border."""
        cells = self.region.margin(points) / self.spacing
        slope = self.level + CUT_STEEPNESS * cells.clamp(min=-CUT_CELLS)
        bound = slope.where(cells < 1, float("inf"))
        near = cells > -CUT_CELLS
        if near.any():
            sigma = _densities(self.generator, self.planes, points[near])
            self._note(sigma[cells[near] > 0])
            bound[near] = torch.minimum(bound[near], sigma)
        return bound

    def _note(self, densities: Tensor) -> None:
        if len(densities):
            self.lowest = min(self.lowest, float(densities.min()))
            self.highest = max(self.highest, float(densities.max()))

    def check_level(self) -> None:
        """To be called once all layers are evaluated.

        Raises:
            UserError: if the level lies outside the densities, so that there is no surface.
        """
        if self.lowest > self.highest:
            raise UserError("no camera of the data sees any part of the box: the camera ranges do not fit this model")
        if not self.lowest < self.level < self.highest:
            raise UserError(
                f"no surface at density {self.level:g}: the densities reach from {self.lowest:.4g} to {self.highest:.4g}; "
                "choose a --shape-level between them"
            )


def density_grid(generator: DensityModel, planes: Tensor, cameras: Tensor, resolution: int, level: float | None = None) -> DensityGrid:
    """Grid of `resolution`^3 cells over the part of the box that cameras (K, 25) see; level none = `surface_level`."""
    region = seen_region(generator, planes, cameras)
    fast = planes.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (1, 3))  # a look-up reads one cache line
    return DensityGrid(generator, fast, region, resolution, surface_level(generator, fast, region) if level is None else level)


def density_slabs(grid: DensityGrid, padding: int = 0, slab_samples: int = SLAB_SAMPLES) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The grid's layers in order, a few at a time: the first one's index and an array (layers, n, n) with axes z, y, x.

    A slab begins with the layer that the one before ended with, so that surfaces join without a seam.
    """
    thickness = max(2, slab_samples // (grid.resolution + 2 * padding) ** 2)
    layers: list[NDArray[np.float32]] = []
    last = grid.resolution + padding - 1
    with progress(range(-padding, last + 1), f"Density on {grid.resolution}^3", unit="layer") as bar:
        bar.leave = False
        for z in bar:
            layers.append(grid.layer(z, padding))
            if len(layers) == thickness or z == last:
                yield z + 1 - len(layers), np.stack(layers)
                layers = layers[-1:]


# ---------------------------------------------------------------------------------------------------------------------
# Mesh


def extract_mesh(
    generator: DensityModel,
    planes: Tensor,
    cameras: Tensor,
    resolution: int = 256,
    level: float | None = None,
    largest_only: bool = True,
    slab_samples: int = SLAB_SAMPLES,
) -> trimesh.Trimesh:
    """Surface of one identity by marching cubes (Lorensen & Cline 1987, in Lewiner's variant), closed, with outward normals.

    Args:
        planes: (1, 3, C, H, W).
        cameras: (K, 25) labels that cover the poses of the training data (`camera_grid`).
        resolution: Grid cells along a side of the box.
        level: Raw density of the surface; none = `surface_level`.
        largest_only: Keep the object alone (see the top of this file); off keeps floaters and what is left of walls.
        slab_samples: Grid samples held at once.

    Returns:
        Mesh in world coordinates; vertex colours are the model's at the vertices.

    Raises:
        UserError: if there is no surface at the level; the message tells the densities' range.
    """
    grid = density_grid(generator, planes, cameras, resolution, level)
    surfaces = list(_slab_surfaces(grid, slab_samples))
    grid.check_level()
    vertices, faces = _weld(surfaces, resolution)
    points = grid.world(vertices).astype(np.float32)
    if largest_only:
        points, faces = _largest(points, faces, grid)
    return trimesh.Trimesh(points, faces, vertex_colors=_vertex_colors(grid, points), process=False)


def _slab_surfaces(grid: DensityGrid, slab_samples: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int32]]]:
    """Vertices (V, 3) in grid indices, order x, y, z, and faces (F, 3) of one slab after the other."""
    for first, slab in density_slabs(grid, padding=1, slab_samples=slab_samples):
        slab = slab - np.float32(grid.level)
        slab[slab == 0] = np.finfo(np.float32).tiny  # every sample is either inside or outside
        if slab.min() < 0 < slab.max():
            vertices, faces, _, _ = marching_cubes(slab, 0.0)
            offset = np.array([-1.0, -1.0, first])
            yield (vertices[:, ::-1] + offset).astype(np.float32), faces  # outward: the reversal of axes turns them round


def _weld(surfaces: list[tuple[NDArray[Any], NDArray[Any]]], resolution: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Join slabs: vertices at the same place become one, triangles without area go."""
    starts = np.cumsum([0] + [len(vertices) for vertices, _ in surfaces[:-1]], dtype=np.int32)
    vertices = np.concatenate([vertices for vertices, _ in surfaces])
    faces = np.concatenate([faces + start for (_, faces), start in zip(surfaces, starts, strict=True)])
    surfaces.clear()
    per_axis = 1 << 21  # three coordinates in one integer: exact on a seam, where both slabs have the same numbers
    places = ((vertices + 1) * (per_axis // (resolution + 2))).round().astype(np.int64)
    _, first, inverse = np.unique(places @ np.array([1, per_axis, per_axis**2]), return_index=True, return_inverse=True)
    order = np.argsort(first)  # vertices stay in the order in which they were found, wherever slabs begin
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order))
    faces = rank[inverse][faces]
    proper = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    return vertices[first[order]], faces[proper]


def _largest(points: NDArray[np.float32], faces: NDArray[np.int32], grid: DensityGrid) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The closed surface with the most volume, weighed by the share of its vertices that do not lie on the region's border.

    A wall's outside lies on the border entirely; the inside of a cavity has negative volume.
    """
    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    graph = coo_matrix((np.ones(len(edges), dtype=bool), (edges[:, 0], edges[:, 1])), shape=(len(points), len(points)))
    count, label = connected_components(graph, directed=False)
    volume = np.zeros(count)
    for part in np.array_split(faces, len(faces) // CHUNK_POINTS + 1):
        a, b, c = points[part].astype(np.float64).swapaxes(0, 1)
        volume += np.bincount(label[part[:, 0]], (a * np.cross(b, c)).sum(axis=1) / 6, minlength=count)
    on_device = torch.from_numpy(points).to(grid.planes.device)
    free = np.concatenate([(grid.region.margin(chunk) > grid.spacing).cpu().numpy() for chunk in on_device.split(CHUNK_POINTS)])
    share = np.bincount(label, free, minlength=count) / np.bincount(label, minlength=count)
    kept = label == np.argmax(volume * share)
    return points[kept], (np.cumsum(kept, dtype=np.int32) - 1)[faces[kept[faces[:, 0]]]]


@torch.no_grad()
def _vertex_colors(grid: DensityGrid, points: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colours (V, 4), opaque sRGB, of the model at points (V, 3)."""
    colors = _colors(grid.generator, grid.planes, torch.from_numpy(points).to(grid.planes))
    rgb = (colors.float() * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return np.concatenate([rgb, np.full_like(rgb[:, :1], 255)], axis=1)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def save_shape(
    path: str | os.PathLike[str],
    generator: DensityModel,
    planes: Tensor,
    cameras: Tensor,
    resolution: int = 256,
    level: float | None = None,
) -> None:
    """Write one identity's shape in the format that the file's ending names, one of `FORMATS`; arguments as for `extract_mesh`.

    Raises:
        UserError: if there is no surface at the level, or the file cannot be written.
    """
    if Path(path).suffix == ".mrc":
        save_density(path, density_grid(generator, planes, cameras, resolution, level))
    else:
        save_mesh(path, extract_mesh(generator, planes, cameras, resolution, level))


def save_mesh(path: str | os.PathLike[str], mesh: trimesh.Trimesh) -> None:
    """Write a mesh with its vertex colours as ply, obj or glb, by the file's ending.

    PLY and OBJ hold the colours as they are (sRGB); GLB holds them linear, as its standard demands (glTF 2.0, section 3.7.2.1).
    """
    kind = Path(path).suffix[1:]
    if kind == "glb":
        colors = _linear_colors(cast(ColorVisuals, mesh.visual).vertex_colors)
        mesh = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=colors, process=False)
    data: Any = mesh.export(file_type=kind)
    with atomic_write(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def _linear_colors(colors: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Linear from sRGB colours (V, 4), IEC 61966-2-1."""
    rgb = colors[:, :3] / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.concatenate([(linear * 255).round().astype(np.uint8), colors[:, 3:]], axis=1)


def save_density(path: str | os.PathLike[str], grid: DensityGrid) -> None:
    """Write the raw density, cut to the region, as an MRC volume of 32-bit floats.

    Sections run along z, rows along y, columns (fastest) along x; the header's voxel size and origin (the centre of voxel 0, 0, 0)
    are world units. Three cells outside the region the values stay at level - 30.
    """
    with atomic_write(path) as file:
        shape = (grid.resolution,) * 3
        with mrcfile.new_mmap(file.name, shape, mrc_mode=2, overwrite=True) as volume:
            _set_header(volume, grid)
            statistics = _stream(file, volume.header.nbytes, grid)
            grid.check_level()
            volume.header.dmin, volume.header.dmax, volume.header.dmean, volume.header.rms = statistics


def _set_header(volume: Any, grid: DensityGrid) -> None:
    volume.voxel_size = grid.spacing
    volume.header.origin = (grid.world(0),) * 3
    volume.header.label[0] = f"raw density, surface at {grid.level:.6g}"  # instead of the library's time stamp


def _stream(file: IO[bytes], start: int, grid: DensityGrid) -> tuple[float, float, float, float]:
    """Write the volume from byte `start` on; returns its minimum, maximum, mean and standard deviation.

    Through the file and not through a memory map: a full disk then is an error that can be told, not the end of the process.
    """
    lowest, highest, total, squares, count = float("inf"), -float("inf"), 0.0, 0.0, grid.resolution**3
    for first, slab in density_slabs(grid):
        layers = slab if first == 0 else slab[1:]
        file.seek(start + (first + len(slab) - len(layers)) * slab[0].nbytes)
        file.write(layers.tobytes())
        lowest, highest = min(lowest, float(layers.min())), max(highest, float(layers.max()))
        total, squares = total + float(layers.sum(dtype=np.float64)), squares + float(np.square(layers, dtype=np.float64).sum())
    mean = total / count
    return lowest, highest, mean, max(squares / count - mean**2, 0.0) ** 0.5
