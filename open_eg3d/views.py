"""What a generator shows: latents of seeds, pictures from any number of cameras, meshes, videos."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from torch import Tensor

from dnnlib.console import UserError, counter
from dnnlib.numbers import MAX_SEED
from media.meshes.shapes import extract_mesh
from media.pictures.grids import PANELS, seed_latent, shade_depth, to_pictures
from media.pictures.normals import in_camera, surface_normals
from media.splats.fit import fit_labels, fit_splats
from media.splats.splats import Splats
from media.videos import paths
from media.videos.files import VIDEO_FORMATS
from media.videos.videos import VideoWriter
from metrics.views import OPAQUE
from training.cameras import cameras_of
from training.networks.arguments import LABEL, check_labels, check_tensor
from training.networks.generator import Generator


@dataclass(frozen=True)
class Views:
    """N samples, each seen from K cameras.

    Attributes:
        labels: Cameras (N, K, 25).
        image: Final pictures (N, K, 3, R, R) in [-1, 1] up to overshoot.
        image_raw: Volume renderings (N, K, 3, r, r), likewise.
        depth: Mean distance along the ray (N, K, 1, r, r), world units.
        alpha: Share of the ray's light that the object stops (N, K, 1, r, r), in [0, 1].
        normals: Outward unit normals (N, K, 3, r, r) in the world's axes, where they were asked
            for.
    """

    labels: Tensor
    image: Tensor
    image_raw: Tensor
    depth: Tensor
    alpha: Tensor
    normals: Tensor | None = None

    def pictures(self, kind: str = "image") -> NDArray[np.uint8]:
        """Pictures (N, K, H, W, 3) of a kind: image, raw, depth (near is white; one scale per
        sample) or normals (in the camera's axes: red right, green up, blue towards the camera).

        Raises:
            UserError: for another kind, or normals that `render` was not asked for.
        """
        if kind == "image":
            return to_pictures(self.image)
        if kind == "raw":
            return to_pictures(self.image_raw)
        if kind == "depth":
            return np.stack([shade_depth(*one) for one in zip(self.depth, self.alpha, strict=True)])
        if kind != "normals" or self.normals is None:
            raise UserError(
                f"there are no pictures of the kind {kind!r}; kinds are {', '.join(PANELS)}, the"
                " last one after render(..., normals=True)"
            )
        seen = in_camera(self.normals.flatten(0, 1), self.labels.flatten(0, 1))
        shown = seen.where(self.alpha.flatten(0, 1) > OPAQUE, -1.0)
        return to_pictures(shown.view(self.normals.shape))


def seed_latents(generator: Generator, seeds: int | Sequence[int]) -> Tensor:
    """Latents z (N, z_dim) of one or N seeds, those of the command lines.

    Raises:
        UserError: for a seed that is no whole number from 0 to 4294967295.
    """
    chosen = [seeds] if isinstance(seeds, int) else list(seeds)
    for seed in chosen:
        if not (isinstance(seed, (int, np.integer)) and 0 <= seed <= MAX_SEED):
            raise UserError(f"seeds are whole numbers from 0 to {MAX_SEED}, not {seed!r}")
    if not chosen:
        raise UserError("no seed is given; write seed_latents(generator, range(4))")
    z = torch.cat([seed_latent(int(seed), generator.z_dim) for seed in chosen])
    return z.to(next(generator.parameters()).device)


@torch.no_grad()
def map_latents(
    generator: Generator,
    z: Tensor | NDArray[Any],
    *,
    truncation_psi: float = 1.0,
    truncation_cutoff: int | None = None,
    conditioning: Tensor | None = None,
) -> Tensor:
    """Latents ws (N, num_ws, w_dim) of z (N, z_dim), as the command lines map them.

    Args:
        truncation_psi: 1 none, 0 the average. truncation_cutoff: Number of layers it holds for,
            from the coarsest; None = all.
        conditioning: Camera (25,) or cameras (N, 25) that the mapping is conditioned on; None = the
            mean pose of the training data.

    Raises:
        UserError: for arguments of another shape.
    """
    if not isinstance(truncation_psi, (int, float)) or not math.isfinite(truncation_psi):
        raise UserError(f"truncation_psi must be a finite number, not {truncation_psi!r}")
    parameter = next(generator.parameters())
    z = torch.as_tensor(z).to(parameter)
    c = cameras_of(generator).frontal_label() if conditioning is None else conditioning
    c = c.to(parameter)
    check_tensor("z", z, "N", generator.z_dim)
    return generator.mapping(
        z, c.expand(len(z), -1) if c.dim() == 1 else c, truncation_psi, truncation_cutoff
    )


@torch.no_grad()
def render(
    generator: Generator,
    ws: Tensor,
    labels: Tensor,
    *,
    neural_rendering_resolution: int | None = None,
    normals: bool = False,
    batch: int = 4,
) -> Views:
    """Show N samples from K cameras each; the planes of a sample are computed once.

    For gradients, call the generator itself.

    Args:
        ws: (N, num_ws, w_dim), of `map_latents`.
        labels: Cameras (25,) or (K, 25) for all samples, or (N, K, 25).
        neural_rendering_resolution: Pixels per side of the volume rendering; None = the model's.
        normals: Also compute normals.
        batch: Cameras rendered at once.

    Raises:
        UserError: for arguments of another shape.
    """
    cameras = _cameras_of_samples(ws, labels)
    found = [
        _render_one(generator, one, c, neural_rendering_resolution, normals, batch)
        for one, c in zip(ws.split(1), cameras, strict=True)
    ]
    image, image_raw, depth, alpha, directions = (
        torch.stack(values) for values in zip(*found, strict=True)
    )
    return Views(cameras, image, image_raw, depth, alpha, directions if normals else None)


def _cameras_of_samples(ws: Tensor, labels: Tensor) -> Tensor:
    """Labels (N, K, 25) for ws (N, num_ws, w_dim)."""
    check_tensor("ws", ws, "N", "num_ws", "w_dim")
    labels = labels[None] if isinstance(labels, Tensor) and labels.dim() == 1 else labels
    if isinstance(labels, Tensor) and labels.dim() == 2:
        labels = labels.expand(len(ws), -1, -1)
    check_tensor("labels", labels, len(ws), "K", 25, hint=LABEL)
    if not labels.isfinite().all():
        raise UserError("labels hold NaN or infinite numbers")
    return labels.to(ws)


def _render_one(
    generator: Generator,
    ws: Tensor,
    cameras: Tensor,
    resolution: int | None,
    has_normals: bool,
    batch: int,
) -> tuple[Tensor, ...]:
    """Pictures, renderings, depths, alphas and normals (each K) of one sample."""
    planes = generator.planes(ws)
    parts = []
    for c in cameras.split(batch):
        out = generator.render(planes, ws, c, resolution)
        parts.append(
            (*out, surface_normals(generator, planes, c, out) if has_normals else out.alpha)
        )
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))


# --------------------------------------------------------------------------------------------------
# Meshes and videos


@torch.no_grad()
def mesh(
    generator: Generator,
    ws: Tensor,
    *,
    resolution: int = 256,
    level: float | None = None,
    texture: int | None = None,
    max_faces: int | None = None,
) -> trimesh.Trimesh:
    """Surface of one sample as a closed triangle mesh with colours, in world coordinates;
    `save_mesh` writes it.

    Args:
        ws: (1, num_ws, w_dim).
        resolution: Grid cells along a side of the box.
        level: Raw density of the surface; None = that of the visible surface.
        texture: Pixels per side of a baked texture; None = colours of vertices.
        max_faces: Reduce to about N triangles; None = all, with a texture 20,000.

    Raises:
        UserError: for more than one sample, or if there is no surface.
    """
    check_tensor("ws", ws, 1, generator.num_ws, generator.w_dim)
    return extract_mesh(
        generator,
        generator.planes(ws),
        cameras_of(generator).grid(),
        resolution,
        level,
        texture=texture,
        max_faces=max_faces,
    )


def splats(generator: Generator, ws: Tensor, cameras: Tensor | None = None) -> Splats:
    """One sample as some 20,000 3D Gaussians that look like its volume rendering; `save_splats`
    writes them. Takes some 20 seconds of one processor core.

    Args:
        ws: (1, num_ws, w_dim).
        cameras: Labels (K, 25) from which it is to look so; None = 48 of the training data's range
            and, where the object stands alone, all around it.

    Raises:
        UserError: for more than one sample, or if no camera sees anything.
    """
    check_tensor("ws", ws, 1, generator.num_ws, generator.w_dim)
    if cameras is None:
        cameras = fit_labels(generator, cameras_of(generator))
    check_labels(cameras, cameras.dtype)
    return fit_splats(generator, ws, cameras)


def camera_path(
    generator: Generator,
    kind: str | None = None,
    frames: int = 120,
    *,
    yaw_degrees: float | None = None,
    pitch_degrees: float | None = None,
) -> Tensor:
    """Labels (frames, 25) of a camera path on the orbit of the training data that ends where it
    begins.

    Args:
        kind: circle (to the sides and up and down), wobble (to the sides), turn (once around) or
            still; None = turn where the training data show all sides, else circle.
        yaw_degrees, pitch_degrees: How far it swings to either side, and up and down; None = 0.8 of
            the data's range.

    Raises:
        UserError: for another kind.
    """
    cameras = cameras_of(generator)
    kind = kind or paths.default_path(cameras)
    if kind not in paths.CAMERA_PATHS:
        raise UserError(f"unknown camera path {kind!r}; known are {', '.join(paths.CAMERA_PATHS)}")
    swings = (
        None if angle is None else math.radians(angle) for angle in (yaw_degrees, pitch_degrees)
    )
    return paths.camera_path(kind, cameras, frames, *swings)


def video(
    path: str | os.PathLike[str],
    generator: Generator,
    ws: Tensor,
    labels: Tensor | None = None,
    *,
    interpolate: bool = False,
    columns: int = 1,
    panels: Sequence[str] = ("image",),
    fps: float = 30.0,
    size: int | None = None,
    neural_rendering_resolution: int | None = None,
) -> Path:
    """Write a video, mp4 or gif by its name's ending, of N samples in a grid, or of a walk through
    them.

    Args:
        ws: (N, num_ws, w_dim).
        labels: Camera (F, 25) of each frame; None = `camera_path(generator)`.
        interpolate: Move smoothly from sample to sample and back to the first.
        columns: Samples beside each other; N is a multiple of it.
        panels: Side by side for each sample, of image, raw, depth and normals.
        size: Pixels of a panel's side; None = those of the final picture.

    Raises:
        UserError: for arguments that do not fit, or if the file cannot be written.
    """
    path = Path(path)
    check_tensor("ws", ws, "N", generator.num_ws, generator.w_dim)
    labels = camera_path(generator) if labels is None else labels
    check_tensor("labels", labels, "F", 25, hint=LABEL)
    cells = [ws] if interpolate else list(ws.split(1))
    unknown = [panel for panel in panels if panel not in PANELS]
    if path.suffix[1:] not in VIDEO_FORMATS or unknown or len(cells) % columns:
        raise UserError(
            f"cannot make {path} of {len(cells)} samples in {columns} columns and the panels"
            f" {', '.join(panels)}: endings are {', '.join(VIDEO_FORMATS)}, panels"
            f" {', '.join(PANELS)}, and columns divide the samples"
        )
    writer = VideoWriter(
        generator, cells, labels, columns, tuple(panels), neural_rendering_resolution, size
    )
    with counter("Frames", len(labels), "frame") as bar:
        writer.write([path], fps, bar)
    return path
