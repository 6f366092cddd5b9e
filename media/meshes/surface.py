"""From a grid to the triangles of one object.

Of the closed surfaces that the grid holds the object is the one with the most volume, surfaces on
the border of the region counting for nothing. Where that border goes through the object (a neck
that leaves the picture) the mesh is closed by a flat end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes

from media.meshes.density import Grid, density_slabs
from media.meshes.region import CHUNK_POINTS

Points = NDArray[np.float32]
Faces = NDArray[np.int32]


def grid_surface(grid: Grid, slab_samples: int, largest_only: bool = True) -> tuple[Points, Faces]:
    """Vertices (V, 3) in the world and faces (F, 3), counter-clockwise from outside, of the level
    surface.

    Marching cubes (Lorensen & Cline 1987, in Lewiner's variant) on one slab after the other.

    Args:
        largest_only: Keep the object alone; off keeps floaters and what is left of walls.

    Raises:
        UserError: if there is no surface at the level; the message names the densities' range.
    """
    surfaces = list(_slab_surfaces(grid, slab_samples))
    grid.check_level()
    vertices, faces = _weld(surfaces, grid.resolution)
    points = grid.world(vertices).astype(np.float32)
    return largest_part(points, faces, grid) if largest_only else (points, faces)


def _slab_surfaces(grid: Grid, slab_samples: int) -> Iterator[tuple[Points, Faces]]:
    """Vertices (V, 3) in grid indices, order x, y, z, and faces (F, 3) of one slab after the
    other.
    """
    for first, slab in density_slabs(grid, padding=1, slab_samples=slab_samples):
        slab = slab - np.float32(grid.level)
        slab[slab == 0] = np.finfo(np.float32).tiny  # every sample is either inside or outside
        if slab.min() < 0 < slab.max():
            vertices, faces, _, _ = marching_cubes(slab, 0.0)
            offset = np.array([-1.0, -1.0, first])
            # outward: the reversal of axes turns them round
            yield (vertices[:, ::-1] + offset).astype(np.float32), faces


def _weld(
    surfaces: list[tuple[NDArray[Any], NDArray[Any]]], resolution: int
) -> tuple[Points, Faces]:
    """Join slabs: vertices at the same place become one, triangles without area go."""
    starts = np.cumsum([0] + [len(vertices) for vertices, _ in surfaces[:-1]], dtype=np.int32)
    vertices = np.concatenate([vertices for vertices, _ in surfaces])
    faces = np.concatenate(
        [faces + start for (_, faces), start in zip(surfaces, starts, strict=True)]
    )
    surfaces.clear()
    # three coordinates in one integer: exact on a seam, where both slabs have the same numbers
    per_axis = 1 << 21
    places = ((vertices + 1) * (per_axis // (resolution + 2))).round().astype(np.int64)
    _, first, inverse = np.unique(
        places @ np.array([1, per_axis, per_axis**2]), return_index=True, return_inverse=True
    )
    # vertices stay in the order in which they were found, wherever slabs begin
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order))
    faces = rank[inverse][faces]
    proper = (
        (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    )
    return vertices[first[order]], faces[proper]


def largest_part(points: Points, faces: Faces, grid: Grid) -> tuple[Points, Faces]:
    """The closed surface with the most volume, weighed by the share of its vertices that do not lie
    on the region's border.

    A wall's outside lies on the border entirely; the inside of a cavity has negative volume.
    """
    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    graph = coo_matrix(
        (np.ones(len(edges), dtype=bool), (edges[:, 0], edges[:, 1])),
        shape=(len(points), len(points)),
    )
    count, label = connected_components(graph, directed=False)
    volume = np.zeros(count)
    for part in np.array_split(faces, len(faces) // CHUNK_POINTS + 1):
        a, b, c = points[part].astype(np.float64).swapaxes(0, 1)
        volume += np.bincount(
            label[part[:, 0]], (a * np.cross(b, c)).sum(axis=1) / 6, minlength=count
        )
    on_device = torch.from_numpy(points).to(grid.region.seen.device)
    free = np.concatenate(
        [
            (grid.region.margin(chunk) > grid.spacing).cpu().numpy()
            for chunk in on_device.split(CHUNK_POINTS)
        ]
    )
    share = np.bincount(label, free, minlength=count) / np.bincount(label, minlength=count)
    kept = label == np.argmax(volume * share)
    return points[kept], (np.cumsum(kept, dtype=np.int32) - 1)[faces[kept[faces[:, 0]]]]
