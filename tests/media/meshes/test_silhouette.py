"""The shipped model's meshes against its own pictures: silhouettes, depth and colours, by
casting rays at the mesh (Embree).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from media.meshes.shapes import extract_mesh
from media.pictures.grids import seed_latent, to_pictures
from open_eg3d import SHIPPED_MODEL, load_generator
from training.cameras import CameraSummary, cameras_of, unpack_label
from training.networks.generator import Generator
from training.rendering.rays import sample_rays

SEEDS = (0, 2, 5)
POSES = ((0.0, 0.0), (-0.6, 0.0), (0.6, 0.2), (0.0, -0.25))  # yaw, pitch
SIDE = 64
LEAST_OVERLAP = 0.95
OPAQUE = 0.9  # least alpha of a ray whose depth counts
MOST_DISTANCE = 0.005  # median, from the rendered depth, in box sides
# dB; a mesh whose colours are those of its neighbour in the list of seeds has some 12
LEAST_PSNR = 20.0


@pytest.fixture(scope="module")
def generator() -> Generator:
    return load_generator(SHIPPED_MODEL)


@pytest.fixture(scope="module")
def cameras(generator: Generator) -> CameraSummary:
    return cameras_of(generator)


@torch.no_grad()
def identity(generator: Generator, cameras: CameraSummary, seed: int) -> tuple[Tensor, Tensor]:
    ws = generator.mapping(seed_latent(seed, generator.z_dim), cameras.frontal_label()[None])
    return generator.planes(ws), ws


def cast(mesh: trimesh.Trimesh, c: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a camera (1, 25) sees of a mesh with vertex colours: which pixels, (SIDE^2,), their
    colours (SIDE^2, 3) and depths (SIDE^2,).
    """
    origins, directions = (rays[0].double().numpy() for rays in sample_rays(*unpack_label(c), SIDE))
    places, rays, triangles = mesh.ray.intersects_location(origins, directions, multiple_hits=False)
    shares = trimesh.triangles.points_to_barycentric(mesh.triangles[triangles], places)
    assert isinstance(mesh.visual, trimesh.visual.ColorVisuals)
    hit, colors, depths = np.zeros(SIDE**2, dtype=bool), np.zeros((SIDE**2, 3)), np.zeros(SIDE**2)
    hit[rays] = True
    depths[rays] = np.linalg.norm(places - origins[rays], axis=1)
    colors[rays] = np.einsum(
        "tk,tkc->tc", shares, mesh.visual.vertex_colors[mesh.faces[triangles], :3].astype(float)
    )
    return hit, colors, depths


@pytest.mark.parametrize("seed", SEEDS)
def test_mesh_has_the_models_silhouettes_depth_and_colours(
    generator: Generator, cameras: CameraSummary, seed: int
) -> None:
    planes, ws = identity(generator, cameras, seed)
    mesh = extract_mesh(generator, planes, cameras.grid(), 128)
    assert mesh.is_watertight
    assert mesh.volume > 0
    assert mesh.body_count == 1
    distances = []
    for yaw, pitch in POSES:
        c = cameras.label(yaw, pitch)[None]
        hit, colors, depths = cast(mesh, c)
        with torch.no_grad():
            shown = generator.render(planes, ws, c, SIDE)
        solid = shown.alpha.flatten().numpy() > 0.5
        overlap = (hit & solid).sum() / (hit | solid).sum()
        assert overlap > LEAST_OVERLAP, f"yaw {yaw}, pitch {pitch}: {overlap:.3f}"
        counted = hit & (shown.alpha.flatten().numpy() > OPAQUE)
        distances.append(np.abs(depths - shown.image_depth.flatten().numpy())[counted])
        error = (colors - to_pictures(shown.image_raw).reshape(-1, 3))[hit & solid]
        assert 10 * np.log10(255**2 / (error**2).mean()) > LEAST_PSNR
    assert np.median(np.concatenate(distances)) < MOST_DISTANCE * generator.rendering.box_warp


@pytest.mark.parametrize("seed", SEEDS[:1])
def test_normals_point_outward(generator: Generator, cameras: CameraSummary, seed: int) -> None:
    """A ray from a camera meets a front first: its triangle faces the camera."""
    planes, _ = identity(generator, cameras, seed)
    mesh = extract_mesh(generator, planes, cameras.grid(), 64)
    origins, directions = (
        rays[0].double().numpy()
        for rays in sample_rays(*unpack_label(cameras.frontal_label()[None]), SIDE)
    )
    _, rays, triangles = mesh.ray.intersects_location(origins, directions, multiple_hits=False)
    assert len(rays) > SIDE**2 / 5
    facing = (mesh.face_normals[triangles] * -directions[rays]).sum(axis=1)
    assert (facing > 0).mean() > 0.995  # but for rays that graze an edge
