"""Makes the pictures and loops of the documentation with the shipped model: `make docs-media`.

The same model gives the same files. What they show (which seeds, which paths) stands here and
nowhere else.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dnnlib.console import counter  # noqa: E402
from media.meshes.shapes import extract_mesh  # noqa: E402
from media.pictures.grids import (  # noqa: E402
    PANELS,
    Pictures,
    identity_grid,
    save_png,
    tile,
    to_pictures,
)
from media.pictures.panels import resize  # noqa: E402
from media.videos.paths import camera_path  # noqa: E402
from media.videos.videos import VideoWriter  # noqa: E402
from open_eg3d import load_generator, map_latents, render, seed_latents, splats  # noqa: E402
from training.cameras import (  # noqa: E402
    CameraSummary,
    cameras_of,
    unpack_label,
)
from training.networks.generator import Generator  # noqa: E402
from training.rendering.rays import sample_rays  # noqa: E402

SHIPPED = ROOT / "models" / "heads64.pkl"
TRUNCATION = 0.8
LARGEST_LOOP = 1_400_000  # bytes
PANEL_SIZES = (128, 120, 112, 104, 96, 80, 64, 48)  # pixels, of which the first that fits is taken
PEOPLE = (0, 1, 2, 5, 6, 7)  # seeds
FPS = 16
LIGHT = (0.35, 0.5, 0.8)  # direction to the lamp, in the camera's axes turned upright
AMBIENT = 0.25


class Model:
    """The shipped model and what is asked of it."""

    def __init__(self, path: Path) -> None:
        self.generator: Generator = load_generator(path, reuse_memory=True)
        self.cameras: CameraSummary = cameras_of(self.generator)

    @torch.no_grad()
    def latents(self, *seeds: int) -> Tensor:
        """Latents (K, num_ws, w_dim) of seeds."""
        z = seed_latents(self.generator, seeds)
        return map_latents(self.generator, z, truncation_psi=TRUNCATION).contiguous()

    def film(
        self,
        path: Path,
        cells: list[Tensor],
        kind: str,
        frames: int,
        columns: int,
        panels: tuple[str, ...],
    ) -> None:
        """Write a loop as GIF, with as many pixels as it may have."""
        labels = camera_path(kind, self.cameras, frames)
        for size in PANEL_SIZES:
            with counter(f"{path.name}, {size} pixels", frames, "frame") as bar:
                VideoWriter(self.generator, cells, labels, columns, panels, size=size).write(
                    [path], FPS, bar
                )
            if path.stat().st_size <= LARGEST_LOOP:
                return


def make_grid(model: Model, path: Path) -> None:
    """Identities from five sides: colour, rendering, depth."""
    save_png(
        path,
        identity_grid(
            model.generator,
            model.latents(*PEOPLE),
            model.cameras.label(model.cameras.default_yaws(5), model.cameras.pitch),
        ),
    )


def make_turn(model: Model, path: Path) -> None:
    """Identities as the camera circles around them."""
    cells = [model.latents(seed) for seed in PEOPLE]
    model.film(path, cells, "circle", 33, columns=len(cells) // 2, panels=("image",))


def make_walk(model: Model, path: Path) -> None:
    """A walk from seed to seed, in all panels."""
    model.film(path, [model.latents(*PEOPLE[:4])], "wobble", 41, columns=1, panels=PANELS)


def make_mesh(model: Model, path: Path) -> None:
    """Meshes from three sides: with their colours, and as they are lit."""
    rows = []
    for seed in PEOPLE[1:3]:
        with torch.no_grad():
            planes = model.generator.planes(model.latents(seed))
        mesh = extract_mesh(model.generator, planes, model.cameras.grid(), 192)
        views = [model.cameras.label(yaw, 0.1)[None] for yaw in (-0.6, 0.0, 0.6)]
        pictures = [picture for c in views for picture in picture_of(mesh, c)]
        rows += [resize(picture, 160) for picture in pictures]
    save_png(path, tile(np.stack(rows), 2, 6))


def make_splats(model: Model, path: Path) -> None:
    """One head as the model renders it and as Gaussians, from the front, a side and behind."""
    ws = model.latents(PEOPLE[1])
    labels = torch.stack([model.cameras.label(yaw, 0.1) for yaw in (0.0, 0.6, 1.6, 3.1)])
    cloud = splats(model.generator, ws)
    views = render(model.generator, ws, labels, neural_rendering_resolution=256)
    background = torch.tensor(model.generator.rendering.background)[:, None, None]
    rows = list(views.pictures("raw")[0])
    for label in labels:
        image, alpha = cloud.render(label, 256)
        rows.append(to_pictures((image + (1 - alpha) * background) * 2 - 1))
    save_png(path, tile(np.stack(rows), 2, len(labels)))


def picture_of(mesh: trimesh.Trimesh, c: Tensor, side: int = 320) -> tuple[Pictures, Pictures]:
    """A mesh with vertex colours from a camera (1, 25), by casting a ray a pixel: its colours, and
    white under a lamp.
    """
    origins, directions = (rays[0].double().numpy() for rays in sample_rays(*unpack_label(c), side))
    places, rays, triangles = mesh.ray.intersects_location(origins, directions, multiple_hits=False)
    shares = trimesh.triangles.points_to_barycentric(mesh.triangles[triangles], places)
    visual: Any = mesh.visual
    corners = mesh.faces[triangles]
    normals = np.einsum("tk,tkc->tc", shares, mesh.vertex_normals[corners])
    lamp = unpack_label(c)[0][0, :3, :3].double().numpy() @ (
        np.array(LIGHT) * (1, -1, -1) / np.linalg.norm(LIGHT)
    )
    light = AMBIENT + (1 - AMBIENT) * np.clip(normals @ lamp, 0, 1)
    colored, lit = np.full((side * side, 3), 255.0), np.full((side * side, 3), 255.0)
    colored[rays] = np.einsum(
        "tk,tkc->tc", shares, visual.vertex_colors[corners][..., :3].astype(float)
    )
    lit[rays] = 230 * light[:, None]
    first, second = (
        values.round().clip(0, 255).astype(np.uint8).reshape(side, side, 3)
        for values in (colored, lit)
    )
    return first, second


def main(folder: Path) -> None:
    """Write all files into `folder`."""
    torch.set_num_threads(1)  # sums in one order: the same files on every machine of a kind
    model = Model(SHIPPED)
    makers = {
        "heads.png": make_grid,
        "turn.gif": make_turn,
        "walk.gif": make_walk,
        "mesh.png": make_mesh,
        "splats.png": make_splats,
    }
    for name, make in makers.items():
        make(model, folder / name)
        print(f"{folder / name}: {(folder / name).stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "media")
