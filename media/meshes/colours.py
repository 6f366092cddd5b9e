"""Colours of a surface: what the model shows there, as vertex colours or baked into a texture.

A model's surface is not infinitely thin: a picture's colour comes from the layer in which light
fades. So the colour of a surface point is composited like a picture's (NeRF, equation 3), from it
on inward, in the direction in which cameras of the data look at it.
"""

from __future__ import annotations

from dataclasses import dataclass

import fast_simplification
import numpy as np
import torch
import trimesh
import xatlas
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from trimesh.visual import TextureVisuals
from trimesh.visual.material import SimpleMaterial

from dnnlib.console import UserError
from media import DensityModel
from media.meshes.region import CHUNK_POINTS
from training.cameras import unpack_label
from training.rendering.compositing import interval_weights

COLOUR_DEPTH = 0.1  # box sides below the surface over which colours are composited
# the denser the nearer to the surface: how soon light fades differs between models
COLOUR_SAMPLES = 24
LEAST_ALPHA = 0.05  # of the way inward, else the colour at the point itself is all there is
# how much more a camera counts the more it faces a point; much more shows seams between cameras
FACING = 3.0
GRAZING = 0.4  # cosine below which a view is no longer straight enough and gives way to the normal
# texels between charts, filled with their neighbours' colours, so that filtering finds no foreign
# ones
GUTTER = 4
# of the reduction, tried in turn until the surface is closed; higher ones pinch more of it
EAGERNESS = (5.0, 4.0, 3.0, 6.0, 7.0, 8.0)
MOST_ABOVE = 1.1  # of the wanted number of triangles
BAKE_TEXELS = 1 << 20  # candidates per chunk

Colors = NDArray[np.uint8]


@dataclass(frozen=True)
class SurfaceColours:
    """Colours of one identity's surface: planes (1, 3, C, H, W), seen by cameras (K, 25)."""

    generator: DensityModel
    planes: Tensor
    cameras: Tensor

    @torch.no_grad()
    def colors(self, points: NDArray[np.floating], normals: NDArray[np.floating]) -> Colors:
        """sRGB colours (V, 3) at surface points (V, 3) with outward unit normals (V, 3), in the
        world.
        """
        found = [torch.zeros(0, 3).to(self.planes)]
        depths = (
            COLOUR_DEPTH
            * self.generator.rendering.box_warp
            * torch.linspace(0, 1, COLOUR_SAMPLES).square().to(self.planes)
        )
        for chunk in np.array_split(
            np.arange(len(points)), len(points) * COLOUR_SAMPLES // CHUNK_POINTS + 1
        ):
            start, normal = (
                torch.from_numpy(np.ascontiguousarray(values[chunk])).to(self.planes)
                for values in (points, normals)
            )
            along = start[:, None] + depths[:, None] * self.view_directions(start, normal)[:, None]
            densities, colors = self.generator.query(along.flatten(0, 1)[None], self.planes)
            found.append(
                _composite(
                    depths / self.generator.rendering.unit,
                    densities.view(along.shape[:2]),
                    colors[0, :, :3].view(along.shape),
                )
            )
        return (torch.cat(found).float() * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()

    def view_directions(self, points: Tensor, normals: Tensor) -> Tensor:
        """Unit directions (V, 3) in which cameras that face a point look at it; straight inward
        where none does.

        A mean over all cameras, so that neighbouring points are looked at from almost the same
        side.
        """
        positions = unpack_label(self.cameras.to(points))[0][:, :3, 3]
        looks = torch.nn.functional.normalize(points[:, None] - positions, dim=-1)
        facing = -(looks * normals[:, None]).sum(dim=-1)
        view = torch.nn.functional.normalize(
            ((FACING * facing).softmax(dim=1)[..., None] * looks).sum(dim=1), dim=-1
        )
        seen = (-(view * normals).sum(dim=-1, keepdim=True) / GRAZING).clamp(0, 1)
        return torch.nn.functional.normalize(seen * view - (1 - seen) * normals, dim=-1)


def _composite(depths: Tensor, densities: Tensor, colors: Tensor) -> Tensor:
    """Colours (V, 3) that rays with depths (S,), raw densities (V, S) and colours (V, S, 3) show,
    as if nothing were behind them.
    """
    weights = interval_weights(depths.expand_as(densities)[None], densities[None])[0]
    alpha = weights.sum(dim=-1, keepdim=True)
    middle = (colors[:, 1:] + colors[:, :-1]) / 2
    shown = torch.einsum("vs,vsk->vk", weights, middle) / alpha.clamp(min=LEAST_ALPHA)
    return shown.where(alpha > LEAST_ALPHA, colors[:, 0])


# --------------------------------------------------------------------------------------------------
# Texture


def simplify(
    points: NDArray[np.float32], faces: NDArray[np.int32], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Closed surface with about `count` triangles (Garland & Heckbert 1997) of a closed one; one
    that has no more stays as it is.

    Raises:
        UserError: if with so few triangles it touches itself along an edge.
    """
    if len(faces) <= count:
        return points, faces
    for eagerness in EAGERNESS:
        fewer, corners = fast_simplification.simplify(
            points, faces, target_count=count, agg=eagerness
        )
        corners = without_folds(corners)
        if 0 < len(corners) <= MOST_ABOVE * count and is_closed(corners):
            kept, places = np.unique(corners, return_inverse=True)
            return fewer[kept].astype(np.float32), places.reshape(-1, 3).astype(np.int32)
    raise UserError(
        f"a surface of {len(faces)} triangles cannot be reduced to {count} and stay closed; ask for"
        " more of them"
    )


def without_folds(faces: NDArray[np.int32]) -> NDArray[np.int32]:
    """Faces (F, 3) less those without area and pairs that lie on each other back to back, which
    reducing leaves behind.
    """
    corners = np.sort(faces, axis=1)
    flat = (corners[:, 0] == corners[:, 1]) | (corners[:, 1] == corners[:, 2])
    _, group, sizes = np.unique(corners, axis=0, return_inverse=True, return_counts=True)
    return faces[~flat & (sizes[group.ravel()] % 2 == 1)]


def is_closed(faces: NDArray[np.int32]) -> bool:
    """Whether every edge of faces (F, 3) belongs to two of them."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    return bool((np.unique(edges, axis=0, return_counts=True)[1] == 2).all())


def textured(
    surface: SurfaceColours,
    points: NDArray[np.float32],
    normals: NDArray[np.float32],
    faces: NDArray[np.int32],
    size: int,
) -> trimesh.Trimesh:
    """A mesh of vertices (V, 3) with normals (V, 3) and faces (F, 3), cut open and laid flat
    (xatlas), with a baked texture of size x size.

    Vertices on cuts are doubled, as they have two places in the texture; the surface is the same.
    """
    atlas = xatlas.Atlas()
    atlas.add_mesh(points, faces.astype(np.uint32), normals)
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding, packing.bilinear = size, GUTTER, True
    atlas.generate(pack_options=packing)
    source, corners, uv = atlas[0]
    uv = uv.astype(np.float64)
    points, normals = points[source], normals[source]
    picture = bake(surface, points, normals, corners.astype(np.int64), uv, size)
    material = SimpleMaterial(
        image=Image.fromarray(picture),
        diffuse=(255, 255, 255, 255),
        ambient=(255, 255, 255, 255),
        glossiness=0.0,
    )
    # there v runs upward
    visual = TextureVisuals(uv=np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1), material=material)
    return trimesh.Trimesh(
        points, corners.astype(np.int64), vertex_normals=normals, visual=visual, process=False
    )


def bake(
    surface: SurfaceColours,
    points: NDArray[np.floating],
    normals: NDArray[np.floating],
    faces: NDArray[np.int64],
    uv: NDArray[np.float64],
    size: int,
) -> Colors:
    """Texture (size, size, 3) of vertices (V, 3) at places uv (V, 2), v downward: the surface's
    colour at every texel's centre.

    Texels outside all triangles get the colour of the nearest one inside.
    """
    texels, corners, shares = covered_texels(uv[faces] * size, size)
    corners = faces[corners]
    where = np.einsum("tk,tkc->tc", shares, points[corners])
    direction = np.einsum("tk,tkc->tc", shares, normals[corners])
    direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-12)
    picture = np.zeros((size, size, 3), dtype=np.uint8)
    is_empty = np.ones((size, size), dtype=bool)
    picture[texels[:, 1], texels[:, 0]] = surface.colors(where, direction)
    is_empty[texels[:, 1], texels[:, 0]] = False
    rows, columns = distance_transform_edt(is_empty, return_distances=False, return_indices=True)
    return picture[rows, columns]


def covered_texels(
    triangles: NDArray[np.float64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Texels whose centres lie in triangles (F, 3, 2), coordinates in texels.

    Returns:
        Texels (T, 2) as column and row, the triangle (T,) of each and its barycentric coordinates
        (T, 3) there.
    """
    low = np.clip(np.floor(triangles.min(axis=1) - 0.5).astype(np.int64), 0, size - 1)
    high = np.clip(np.ceil(triangles.max(axis=1) - 0.5).astype(np.int64), 0, size - 1)
    spans = high - low + 1
    counts = spans.prod(axis=1)
    parts = []
    for group in np.array_split(np.arange(len(triangles)), counts.sum() // BAKE_TEXELS + 1):
        owner = np.repeat(group, counts[group])
        rank = np.arange(len(owner)) - np.repeat(
            np.cumsum(counts[group]) - counts[group], counts[group]
        )
        texel = low[owner] + np.stack([rank % spans[owner, 0], rank // spans[owner, 0]], axis=1)
        share = _barycentric(texel + 0.5, triangles[owner])
        inside = (share >= -1e-9).all(axis=1)
        parts.append((texel[inside], owner[inside], share[inside]))
    texels, owners, shares = (np.concatenate(values) for values in zip(*parts, strict=True))
    return texels, owners, shares


def _barycentric(
    points: NDArray[np.float64], triangles: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Barycentric coordinates (T, 3) of points (T, 2) in triangles (T, 3, 2); -1 where a triangle
    has no area.
    """
    a, b, c = triangles.swapaxes(0, 1)

    def cross(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
        return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]

    area = cross(b - a, c - a)
    flat = np.abs(area) < 1e-12
    parts = np.stack(
        [
            cross(b - points, c - points),
            cross(c - points, a - points),
            cross(a - points, b - points),
        ],
        axis=1,
    )
    return np.where(flat[:, None], -1.0, parts / np.where(flat, 1.0, area)[:, None])
