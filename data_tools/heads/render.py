"""Ray casting of triangle meshes with Embree: exact cameras, antialiased colours, exact depth along
the ray.

Cameras and pixel centres are those of docs/cameras.md. A picture averages k x k rays per pixel,
evenly spaced, in plain sRGB values (box filter); k is odd, so that the middle ray is the pixel's
own and gives its depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.rendering.rays import sample_rays

Array = NDArray[np.float64]
# Colours in 0..1 (M, 3) of points with these attributes (M, A) and unit normals (M, 3).
Shader = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Mesh:
    """Triangles with smooth normals and values that are interpolated over them.

    Attributes:
        vertices: (V, 3) world coordinates.
        faces: (T, 3) vertex indices.
        normals: (V, 3) unit normals.
        attributes: (V, A) whatever the shader wants.
    """

    vertices: Array
    faces: NDArray[np.int64]
    normals: Array
    attributes: Array


@dataclass(frozen=True)
class Picture:
    """One rendered view: image (n, n, 3), or (n, n, 4) with straight alpha, uint8; depth (n, n)
    float32, the distance along the pixel's ray, 0 where it hits nothing.
    """

    image: NDArray[np.uint8]
    depth: NDArray[np.float32]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(n, n), true where the pixel's own ray hits the surface."""
        return self.depth > 0


def vertex_normals(vertices: Array, faces: NDArray[np.int64]) -> Array:
    """Area-weighted unit normals (V, 3)."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    face_normals = np.cross(b - a, c - a)
    normals = np.stack(
        [
            sum(
                np.bincount(faces[:, corner], face_normals[:, axis], len(vertices))
                for corner in range(3)
            )
            for axis in range(3)
        ],
        axis=1,
    )
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)


def camera_rays(cam2world: Array, intrinsics: Array, resolution: int) -> tuple[Array, Array]:
    """Origin (3,) and unit directions (resolution^2, 3), row by row, of a camera (4, 4) with
    normalised intrinsics (3, 3).
    """
    _, directions = sample_rays(
        torch.from_numpy(cam2world)[None], torch.from_numpy(intrinsics)[None], resolution
    )
    return cam2world[:3, 3], directions[0].numpy()


class Raycaster:
    """A mesh ready to be looked at from many cameras."""

    def __init__(self, mesh: Mesh) -> None:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        self.mesh = mesh
        self.scene = EmbreeScene()
        # Kept alive here: the scene holds no reference to its geometry.
        self.geometry = TriangleMesh(
            self.scene, mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32)
        )

    def cast(self, origin: Array, directions: Array) -> tuple[NDArray[np.int64], Array]:
        """First hits of rays from `origin` (3,) along unit `directions` (R, 3).

        Returns:
            face: (R,) triangle index or -1; barycentric: (R, 3) weights of its corners.
        """
        origins = np.broadcast_to(origin.astype(np.float32), directions.shape)
        hits = self.scene.run(
            np.ascontiguousarray(origins),
            np.ascontiguousarray(directions, dtype=np.float32),
            output=True,
        )
        face = hits["primID"].astype(np.int64)
        u, v = hits["u"].astype(np.float64), hits["v"].astype(np.float64)
        return face, np.stack([1 - u - v, u, v], axis=1)

    def distance(self, face: NDArray[np.int64], origin: Array, directions: Array) -> Array:
        """Distance (R,) to the plane of the triangle that was hit, in double precision (Embree's
        own is single); 0 for face -1.
        """
        corners = self.mesh.vertices[self.mesh.faces[face]]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        along = np.einsum("rc,rc->r", normals, directions)
        towards = np.einsum("rc,rc->r", normals, corners[:, 0] - origin)
        return np.where(face >= 0, towards / np.where(along == 0, np.inf, along), 0)

    def render(
        self,
        cam2world: Array,
        intrinsics: Array,
        resolution: int,
        shader: Shader,
        background: tuple[int, int, int] | None,
        supersampling: int = 3,
    ) -> Picture:
        """Picture of the mesh before a plain background (0..255), None = transparent, averaged over
        supersampling^2 rays a pixel.

        Raises:
            ValueError: if `supersampling` is even.
        """
        if supersampling % 2 == 0:
            raise ValueError(f"supersampling must be odd, not {supersampling}")
        size = resolution * supersampling
        origin, directions = camera_rays(cam2world, intrinsics, size)
        face, barycentric = self.cast(origin, directions)
        hit = np.flatnonzero(face >= 0)
        behind = (0, 0, 0, 0) if background is None else (*background, 255)
        pixels = np.tile(np.array(behind, dtype=np.float64) / 255, (size * size, 1))
        pixels[hit, :3] = np.clip(self._shade(face[hit], barycentric[hit], shader), 0, 1)
        pixels[hit, 3] = 1
        blocks = pixels.reshape(resolution, supersampling, resolution, supersampling, 4).mean(
            axis=(1, 3)
        )
        if background is None:
            blocks[..., :3] /= np.maximum(blocks[..., 3:], 1 / supersampling**2)
        else:
            blocks = blocks[..., :3]
        middle = np.arange(size * size).reshape(size, size)[
            supersampling // 2 :: supersampling, supersampling // 2 :: supersampling
        ]
        depth = self.distance(
            face[middle.reshape(-1)], origin, directions[middle.reshape(-1)]
        ).reshape(middle.shape)
        return Picture(np.round(blocks * 255).astype(np.uint8), depth.astype(np.float32))

    def _shade(self, face: NDArray[np.int64], barycentric: Array, shader: Shader) -> Array:
        corners = self.mesh.faces[face]
        attributes = np.einsum("rk,rka->ra", barycentric, self.mesh.attributes[corners])
        normals = np.einsum("rk,rkc->rc", barycentric, self.mesh.normals[corners])
        return shader(
            attributes, normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)
        )
