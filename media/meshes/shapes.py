"""Shapes of one identity: coloured or textured triangle meshes, and density volumes.

Axes are the world's: x to the picture's right in the frontal view, y up, z towards the frontal
camera; units are world units. What belongs to the object: `media.meshes.region` (what cameras see)
and `media.meshes.surface` (which of the surfaces in it). Memory is one slab of the grid plus the
surface found so far: the grid is never held as a whole.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import trimesh
from torch import Tensor

from media import DensityModel
from media.meshes.colours import SurfaceColours, simplify, textured
from media.meshes.density import SLAB_SAMPLES, density_grid, save_density
from media.meshes.files import MESH_FORMATS, save_mesh
from media.meshes.fusion import surface_grid
from media.meshes.surface import grid_surface

FORMATS = (*MESH_FORMATS, "mrc")
# of a mesh with a texture, unless said otherwise: the texture holds the detail
TEXTURED_FACES = 20_000


def extract_mesh(
    generator: DensityModel,
    planes: Tensor,
    cameras: Tensor,
    resolution: int = 256,
    level: float | None = None,
    largest_only: bool = True,
    slab_samples: int = SLAB_SAMPLES,
    texture: int | None = None,
    max_faces: int | None = None,
) -> trimesh.Trimesh:
    """Surface of one identity by marching cubes, closed, with outward normals.

    Args:
        planes: (1, 3, C, H, W).
        cameras: (K, 25) labels that cover the poses of the training data (`CameraSummary.grid`).
        resolution: Grid cells per side of the box.
        level: Raw density of the surface; none = the surface that depth shows
            (`media.meshes.fusion`).
        largest_only: Keep the object alone (`media.meshes.surface`); off keeps floaters and what is
            left of walls.
        slab_samples: Grid samples held at once.
        texture: Pixels per side of a baked texture; none = vertex colours.
        max_faces: Reduce to about N triangles; none = all, with a texture `TEXTURED_FACES`.

    Returns:
        Mesh in world coordinates with the model's colours (`media.meshes.colours`).

    Raises:
        UserError: if there is no surface at the level; the message names the densities' range.
    """
    density = density_grid(generator, planes, cameras, resolution, level)
    grid = surface_grid(density) if level is None else density
    points, faces = grid_surface(grid, slab_samples, largest_only)
    wanted = TEXTURED_FACES if texture and max_faces is None else max_faces
    if wanted is not None:
        points, faces = simplify(points, faces, wanted)
    normals = grid.normals(points)
    surface = SurfaceColours(generator, density.planes, cameras)
    if texture:
        return textured(surface, points, normals, faces, texture)
    colors = surface.colors(points, normals)
    return trimesh.Trimesh(
        points,
        faces,
        vertex_normals=normals,
        vertex_colors=np.pad(colors, ((0, 0), (0, 1)), constant_values=255),
        process=False,
    )


def save_shape(
    path: str | os.PathLike[str],
    generator: DensityModel,
    planes: Tensor,
    cameras: Tensor,
    resolution: int = 256,
    level: float | None = None,
    texture: int | None = None,
    max_faces: int | None = None,
) -> None:
    """Write one identity's shape in the format that the file's ending names, one of `FORMATS`;
    arguments as for `extract_mesh`.

    Raises:
        UserError: if there is no surface at the level, or the file cannot be written.
    """
    if Path(path).suffix == ".mrc":
        save_density(path, density_grid(generator, planes, cameras, resolution, level))
    else:
        save_mesh(
            path,
            extract_mesh(
                generator, planes, cameras, resolution, level, texture=texture, max_faces=max_faces
            ),
        )
