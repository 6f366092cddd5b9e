"""How well meshes agree with what their model renders: python -m benchmarks.meshes --seeds 0-19.

Rays of cameras that the mesh was not made from meet the mesh and the rendering. Columns:

- distance, signed, 90th: from the rendered depth to the mesh, along rays of alpha above 0.9, in per
  cent of the box's side: median of absolute and of signed distances (positive: the mesh lies
  behind), and the 90th percentile of absolute ones
- normals: mean cosine between the mesh's normals and those of the rendered depth
- overlap: intersection over union of silhouettes, of the worst camera
- wall: thickness in millimetres, of an object 100 mm high, that 99 % of the surface has
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.timing import json_option, show
from cli.values import Finite, Seeds
from dnnlib.console import HELP, progress, run_cli
from media.meshes.files import PRINT_HEIGHT, printable
from media.meshes.shapes import extract_mesh
from media.pictures.grids import map_seed
from open_eg3d import SHIPPED_MODEL, load_generator
from torch_utils.precision import use_full_fp32
from training.cameras import CameraSummary, cameras_of, unpack_label
from training.networks.generator import Generator
from training.rendering.rays import sample_rays

POSES = ((0.0, 0.0), (-0.5, 0.0), (0.5, 0.1), (0.0, -0.2), (-0.25, 0.15))  # yaw, pitch, radians
SIDE = 64  # rays per side
OPAQUE = 0.9  # least alpha of a ray whose depth counts
SOLID = 0.5  # least alpha of a ray that belongs to the silhouette
THIN_SHARE = 0.01  # of the surface may be thinner than the thickness that is told

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rendered:
    """What rays see: origins, directions, points where they end, (R, 3), and alpha (R,)."""

    origins: Array
    directions: Array
    places: Array
    alpha: Array

    def normals(self) -> Array:
        """Unit normals (R, 3) of the surface through the places; NaN at the picture's border."""
        grid = self.places.reshape(SIDE, SIDE, 3)
        normals = np.full_like(grid, np.nan)
        normals[1:-1, 1:-1] = np.cross(
            grid[2:, 1:-1] - grid[:-2, 1:-1], grid[1:-1, 2:] - grid[1:-1, :-2]
        )
        return (normals / np.linalg.norm(normals, axis=-1, keepdims=True)).reshape(-1, 3)


def rendered(generator: Generator, planes: Tensor, ws: Tensor, label: Tensor) -> Rendered:
    """What the model shows to a camera (1, 25)."""
    out = generator.render(planes, ws, label, SIDE, deterministic=True)
    origins, directions = (rays[0].double() for rays in sample_rays(*unpack_label(label), SIDE))
    places = origins + directions * out.image_depth.flatten()[:, None]
    values = (origins, directions, places, out.alpha.flatten().double())
    return Rendered(*(value.numpy() for value in values))


def agreement(mesh: trimesh.Trimesh, views: list[Rendered], side: float) -> dict[str, float]:
    """Distances, in per cent of the box's side, normals and silhouettes against renderings."""
    distances, angles, overlaps = [], [], []
    for view in views:
        places, rays, triangles = mesh.ray.intersects_location(
            view.origins, view.directions, multiple_hits=False
        )
        hit = np.isin(np.arange(len(view.origins)), rays)
        solid = view.alpha > SOLID
        overlaps.append((hit & solid).sum() / (hit | solid).sum())
        counted = view.alpha[rays] > OPAQUE
        behind = (places - view.places[rays]) * view.directions[rays]
        distances.append(behind.sum(axis=1)[counted] / side * 100)
        shares = trimesh.triangles.points_to_barycentric(mesh.triangles[triangles], places)
        normals = (shares[:, :, None] * mesh.vertex_normals[mesh.faces[triangles]]).sum(axis=1)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        angles.append((normals * view.normals()[rays]).sum(axis=1)[counted])
    signed, cosines = np.concatenate(distances), np.concatenate(angles)
    return {
        "distance %": float(np.median(np.abs(signed))),
        "signed %": float(np.median(signed)),
        "90th %": float(np.quantile(np.abs(signed), 0.9)),
        "normals": float(np.nanmean(cosines)),
        "overlap": float(min(overlaps)),
    }


def thinnest(mesh: trimesh.Trimesh) -> float:
    """Thickness, along normals, in millimetres of the printed object, that all but `THIN_SHARE` of
    its surface has.
    """
    solid = printable(mesh)
    inward = -solid.face_normals
    starts = solid.triangles_center + 1e-4 * PRINT_HEIGHT * inward
    places, rays, _ = solid.ray.intersects_location(starts, inward, multiple_hits=False)
    thickness = np.linalg.norm(places - starts[rays], axis=1)
    order = np.argsort(thickness)
    area = np.cumsum(solid.area_faces[rays][order])
    return float(thickness[order][np.searchsorted(area, THIN_SHARE * area[-1])])


@torch.no_grad()
def row(
    generator: Generator, cameras: CameraSummary, seed: int, resolution: int, level: float | None
) -> dict[str, Any]:
    """A line of the table."""
    ws = map_seed(generator, seed)
    planes = generator.planes(ws)
    labels = [cameras.label(cameras.yaw + yaw, cameras.pitch + pitch)[None] for yaw, pitch in POSES]
    views = [rendered(generator, planes, ws, label) for label in labels]
    mesh = extract_mesh(generator, planes, cameras.grid(), resolution, level)
    return {
        "seed": seed,
        **agreement(mesh, views, generator.rendering.box_warp),
        "bodies": mesh.body_count,
        "closed": mesh.is_watertight,
        "Euler": mesh.euler_number,
        "wall mm": thinnest(mesh),
    }


@click.command(context_settings=HELP)
@click.option("--network", default=str(SHIPPED_MODEL), help="Checkpoint.")
@click.option("--seeds", type=Seeds(), default="0-19", help="Identities.")
@click.option("--shape-res", type=click.IntRange(8), default=128, help="Cells per side.")
@click.option("--shape-level", type=Finite(), help="Raw density; none = what depth shows.")
@json_option
def main(
    network: str,
    seeds: list[int],
    shape_res: int,
    shape_level: float | None,
    json_path: Path | None,
) -> None:
    """Measure meshes of some seeds; the last line has medians."""
    use_full_fp32()
    generator = load_generator(network)
    cameras = cameras_of(generator)
    with progress(seeds, "Meshes", unit="mesh") as bar:
        rows = [row(generator, cameras, seed, shape_res, shape_level) for seed in bar]
    medians = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
    show(f"Meshes of {network}", [*rows, {**medians, "seed": "median"}], json_path)


if __name__ == "__main__":
    run_cli(main)
