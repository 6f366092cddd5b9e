"""The part of a generator's box that the training cameras see, and the density at which its surface
lies.

What belongs to the object. A GAN is free to put density where no training camera looks: in the
corners of the box, behind the cameras' near limit, on the walls. So shapes are taken of the density
*cut to the region that the data's cameras see*: the frustums between near and far, less a thin
shell under the box's walls where look-ups mix with the zeros outside the planes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from media import DensityModel
from training.cameras import unpack_label
from training.rendering.rays import sample_rays

CHUNK_POINTS = 1 << 16  # points evaluated at once
# least thickness of the shell under the box's walls that counts as empty, in box sides
SHELL = 0.01
SEEN_RESOLUTION = 32  # of the look-up table of what cameras see
PUBLISHED_LEVEL = 10.0  # raw density at the surface of the released models
# cameras, rays per side and samples per ray for finding the level
LEVEL_VIEWS, LEVEL_RAYS, LEVEL_SAMPLES = 5, 32, 128
LEVEL_SHARE = 0.01  # of the rays must meet a surface, else the level is a guess
EDGE_SHARE = 0.05  # of the rays must pass beside the object, else there is no silhouette to go by
LEVEL_REST = 0.001  # of the range of densities must lie above the level
HALF_TRANSMITTANCE = math.log(2)  # optical depth at which half of the light is left


@dataclass(frozen=True)
class Region:
    """The part of the box that the data's cameras see. Lengths in world units."""

    side: float  # of the box
    shell: float  # empty layer under its walls
    # (1, 1, k, k, k), axes z, y, x, corners on the box's corners: signed distance to the border of
    # what is seen
    seen: Tensor
    cameras: Tensor  # (K, 25)
    near: float  # distances from the camera between which it renders
    far: float

    def margin(self, points: Tensor) -> Tensor:
        """Roughly how far points (M, 3) lie inside (positive) or outside (negative) the region:
        (M,).
        """
        in_box = self.side / 2 - self.shell - points.abs().amax(dim=-1)
        where = (points * (2 / self.side)).to(self.seen)[None, None, None]
        seen = torch.nn.functional.grid_sample(
            self.seen, where, padding_mode="border", align_corners=True
        )
        return torch.minimum(in_box, seen.flatten().to(in_box))


@torch.no_grad()
def seen_region(generator: DensityModel, planes: Tensor, cameras: Tensor) -> Region:
    """Region of a generator's box that cameras (K, 25) see, less a shell of one texel of the planes
    (at least `SHELL`).
    """
    rendering = generator.rendering
    side = rendering.box_warp
    near = 0.0 if rendering.ray_start == "auto" else rendering.ray_start
    far = float("inf") if rendering.ray_end == "auto" else rendering.ray_end
    axis = torch.linspace(-side / 2, side / 2, SEEN_RESOLUTION, device=planes.device)
    points = (
        torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).flip(-1).flatten(0, 2)
    )
    seen = torch.full_like(points[:, 0], -float("inf"))
    for cam2world, intrinsics in zip(*unpack_label(cameras.to(points)), strict=True):
        seen = torch.maximum(seen, _frustum_margin(points, cam2world, intrinsics, near, far))
    shell = side * max(SHELL, 1 / planes.shape[-1])
    return Region(side, shell, seen.view(1, 1, *(SEEN_RESOLUTION,) * 3), cameras, near, far)


def _frustum_margin(
    points: Tensor, cam2world: Tensor, intrinsics: Tensor, near: float, far: float
) -> Tensor:
    """Signed distance (M,), a bound, of points (M, 3) to the border of what one camera sees between
    near and far.
    """
    in_camera = (points - cam2world[:3, 3]) @ cam2world[:3, :3]
    depth, distance = in_camera[:, 2:], in_camera.norm(dim=-1, keepdim=True)
    from_left_and_top = (in_camera @ intrinsics.T)[:, :2]  # picture coordinates (u, v) times depth
    sides = torch.cat(
        [from_left_and_top, depth - from_left_and_top], dim=-1
    ) / intrinsics.diagonal()[:2].repeat(2)
    return torch.cat([sides, distance - near, far - distance], dim=-1).amin(dim=-1)


def point_densities(generator: DensityModel, planes: Tensor, points: Tensor) -> Tensor:
    """Raw densities (M,) at points (M, 3), a chunk at a time."""
    return torch.cat(
        [
            generator.query_density(chunk[None], planes)[0, :, 0]
            for chunk in points.split(CHUNK_POINTS)
        ]
    )


# --------------------------------------------------------------------------------------------------
# Level


@torch.no_grad()
def surface_level(generator: DensityModel, planes: Tensor, region: Region) -> float:
    """Raw density at the visible surface: the one whose surface has the silhouettes that the
    model's own pictures show.

    Of the rays of a few cameras as many meet the surface of this level as lose half of their light.
    Where hardly any ray passes beside the object, so that there is no silhouette, it is the median
    density at the place where half of the light is left. Where neither is to be had (a model at the
    start of its training), it is the released models' 10, or the middle of the densities if these
    miss 10.
    """
    rays = _survey(generator, planes, region)
    if not len(rays.samples):
        return PUBLISHED_LEVEL
    lowest, highest = float(rays.samples.min()), float(rays.samples.max())
    for level in (*rays.levels(), PUBLISHED_LEVEL):
        if lowest < level < highest - LEVEL_REST * (highest - lowest):
            return level
    return (lowest + highest) / 2


@dataclass(frozen=True)
class _Survey:
    """What rays of a few cameras find in the region."""

    samples: Tensor  # (K,) all densities
    peaks: Tensor  # (R,) largest density on each ray that passes the region
    fades: Tensor  # (R,) whether half of the light is lost on it
    at_surface: Tensor  # (F,) densities where that happens, of the rays where it does

    def levels(self) -> list[float]:
        """Levels, the best first; none where hardly any ray fades."""
        opaque, total = int(self.fades.sum()), len(self.fades)
        if opaque <= LEVEL_SHARE * total:
            return []
        if total - opaque < EDGE_SHARE * total:
            return [float(self.at_surface.median())]
        order = self.peaks.sort(descending=True).values
        return [float((order[opaque - 1] + order[opaque]) / 2), float(self.at_surface.median())]


def _survey(generator: DensityModel, planes: Tensor, region: Region) -> _Survey:
    chosen = (
        torch.linspace(0, len(region.cameras) - 1, min(LEVEL_VIEWS, len(region.cameras)))
        .round()
        .long()
    )
    parts = []
    for label in region.cameras[chosen].to(planes).split(1):
        points, step = ray_points(label, region, LEVEL_RAYS, LEVEL_SAMPLES)
        flat = points.flatten(0, 1)
        sigma = point_densities(generator, planes, flat).where(
            region.margin(flat) > 0, -float("inf")
        )
        on_rays = sigma.unflatten(0, points.shape[:2])
        fades, surface = _half_light_points(points, on_rays, step / generator.rendering.unit)
        peaks = on_rays.amax(dim=1)
        inside = peaks > -float("inf")
        parts.append(
            _Survey(
                sigma[sigma > -float("inf")],
                peaks[inside],
                fades[inside],
                point_densities(generator, planes, surface),
            )
        )
    return _Survey(
        *(torch.cat([getattr(part, item.name) for part in parts]) for item in fields(_Survey))
    )


def ray_points(label: Tensor, region: Region, side: int, samples: int) -> tuple[Tensor, float]:
    """Evenly spaced points (side * side, samples, 3) on the rays of one camera (1, 25) that pass
    the region, and their distance.
    """
    origins, directions = sample_rays(*unpack_label(label), side)
    reach = region.side / 2 * 3**0.5
    middle = float(origins[0, 0].norm())
    near, far = max(region.near, middle - reach, 0.0), min(region.far, middle + reach)
    depths = torch.linspace(near, far, samples, dtype=label.dtype, device=label.device)
    return origins[0, :, None] + depths[:, None] * directions[0, :, None], (far - near) / (
        samples - 1
    )


def _half_light_points(points: Tensor, sigma: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Which rays (R, S, 3) of raw densities (R, S), `step` units of the density apart, lose half of
    their light, (R,), and the points (F, 3) where these have lost it.
    """
    between = torch.nn.functional.softplus((sigma[:, 1:] + sigma[:, :-1]) / 2 - 1)
    after = (between * step).cumsum(dim=1)
    fades = after[:, -1] >= HALF_TRANSMITTANCE
    rays = fades.nonzero()[:, 0]
    index = (after[rays] >= HALF_TRANSMITTANCE).int().argmax(dim=1)
    gained = between[rays, index] * step
    part = 1 - (after[rays, index] - HALF_TRANSMITTANCE) / gained
    return fades, torch.lerp(points[rays, index], points[rays, index + 1], part[:, None])
