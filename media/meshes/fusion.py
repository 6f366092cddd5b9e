"""The surface that rendered depth shows: what many cameras see of one identity, in one field.

A model's surface is a layer in which light fades, over some 2 % of the box in the shipped model.
No single density lies where rays end: it is passed sooner by rays that graze the surface, and
carries every step of the planes. So depths from all over the data's range of cameras are averaged
as truncated signed distances (Curless & Levoy 1996, sections 3 and 4). Where no camera looks,
behind a head for instance, the density decides, at the level of `surface_level`.

The field is as fine as the planes, and is held as a whole: 67 MB with planes of 256 texels.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.ndimage import maximum_filter
from torch import Tensor
from tqdm import tqdm

from dnnlib.console import progress
from media.meshes.density import DensityGrid, Grid
from media.meshes.region import ray_points
from metrics.views import OPAQUE
from training.cameras import unpack_label
from training.rendering.compositing import expected_depth, interval_weights

DEPTH_SIDE, DEPTH_SAMPLES = 96, 192  # pixels per side of the depth maps, samples per ray
TRUNCATION = 0.05  # distance that counts as 1, in box sides: more than light needs to fade
# A camera's vote is a power of the cosine between its ray and the normal: a slanted view counts
# little where another looks straight, and much where none does.
FACING_POWER = 3
DENSITY_VOTE = 0.5  # little beside several cameras that look straight
EMPTY_VOTE = 0.03  # of a camera that looks through the place onto the background
SMOOTHING = 0.5  # standard deviation, in cells, of what evens out the pixels of the depth maps


@dataclass
class SurfaceGrid(Grid):
    """Signed distances, about 1 at `TRUNCATION` inside the surface and -1 outside, read from a
    coarser field (1, 1, k, k, k), axes z, y, x, the centres of whose cells fill the box.
    """

    field: Tensor

    def values(self, points: Tensor) -> Tensor:
        """Signed distances (M,) at points (M, 3)."""
        cut = self.region.margin(points) / (TRUNCATION * self.region.side)
        return torch.minimum(look_up(self.field, points, self.region.side), cut.to(self.field))

    @property
    def normal_step(self) -> float:
        """A cell of the field."""
        return self.region.side / self.field.shape[-1]

    def check_level(self) -> None:
        """There is a surface, or `surface_grid` gives no such grid."""


@torch.no_grad()
def surface_grid(grid: DensityGrid) -> Grid:
    """The grid of an identity's surface: as a grid of densities, whose level is where no camera
    looks. Where depth shows no surface, as in the fog of a model that has hardly been trained, it
    is `grid` itself, and a line says so.

    Raises:
        UserError: if there is no density at the level.
    """
    texels = min(grid.resolution, grid.planes.shape[-1])
    coarse = DensityGrid(grid.region, texels, grid.level, grid.generator, grid.planes)
    layers = [torch.from_numpy(coarse.layer(z, 0)) for z in range(texels)]
    coarse.check_level()
    density = torch.stack(layers).to(grid.planes.device)[None, None]
    field = _smooth(_fuse(coarse, density))
    if not field.max() > 0:
        line = "Depth shows no surface as large as a cell: the mesh is that of one density"
        tqdm.write(line, file=sys.stderr)
        return grid
    return SurfaceGrid(grid.region, grid.resolution, 0.0, field)


def look_up(field: Tensor, points: Tensor, side: float) -> Tensor:
    """Values (M,) of a field (1, 1, k, k, k) that fills a box, at points (M, 3): trilinear."""
    where = (points * (2 / side)).to(field)[None, None, None]
    return F.grid_sample(field, where, padding_mode="border", align_corners=False).flatten()


def _smooth(field: Tensor) -> Tensor:
    """A field (1, 1, k, k, k) after a Gaussian."""
    reach = torch.arange(-2, 3).to(field)
    kernel = torch.softmax(-0.5 * (reach / SMOOTHING) ** 2, dim=0)
    for shape in ((5, 1, 1), (1, 5, 1), (1, 1, 5)):
        padding = [(size - 1) // 2 for size in reversed(shape) for _ in (0, 1)]
        field = F.conv3d(F.pad(field, padding, mode="replicate"), kernel.view(1, 1, *shape))
    return field


# --------------------------------------------------------------------------------------------------
# Depth maps


@dataclass(frozen=True)
class _DepthMap:
    """What one camera (1, 25) sees: depth, whether that is something, cosine of its slant, as maps
    (1, 3, r, r).
    """

    label: Tensor
    maps: Tensor

    def votes(self, points: Tensor, reach: float) -> tuple[Tensor, Tensor]:
        """Signed distances (M,) at points (M, 3), positive behind what is seen, and how much they
        count, (M,): nothing beyond `reach` behind it.
        """
        cam2world, intrinsics = (value[0] for value in unpack_label(self.label))
        in_camera = (points - cam2world[:3, 3]) @ cam2world[:3, :3]
        u, v, depth = (in_camera @ intrinsics.T).unbind(-1)
        place = torch.stack([u, v], dim=-1) / depth[:, None] * 2 - 1
        depth, solid, cosine = F.grid_sample(self.maps, place[None, None], align_corners=False)[
            0, :, 0
        ]
        behind = (in_camera.norm(dim=-1) - depth) / reach
        in_picture = (place.abs() < 1).all(dim=-1)
        facing = cosine**FACING_POWER * (1 - behind).clamp(0, 1)
        weight = facing.where(solid > OPAQUE, EMPTY_VOTE) * in_picture
        return behind.clamp(-1, 1).where(solid > OPAQUE, -1.0), weight


def _depth_maps(grid: DensityGrid, density: Tensor) -> Iterator[_DepthMap]:
    """Depth maps of the region's cameras, rendered from a field of densities."""
    for label in grid.region.cameras.to(density).split(1):
        points, _ = ray_points(label, grid.region, DEPTH_SIDE, DEPTH_SAMPLES)
        sigma = look_up(density, points.flatten(0, 1), grid.region.side).view(1, *points.shape[:2])
        depths = (points - label[0, [3, 7, 11]]).norm(dim=-1)[None]
        weights = interval_weights(depths / grid.generator.rendering.unit, sigma)
        depth = expected_depth(depths, weights)[0]
        direction = F.normalize(points[:, -1] - points[:, 0], dim=-1)
        surface = label[0, [3, 7, 11]] + depth * direction
        values = torch.stack([depth[:, 0], weights[0].sum(dim=-1), _facing(surface, direction)])
        maps = values.unflatten(1, (DEPTH_SIDE, DEPTH_SIDE))
        yield _DepthMap(label, maps[None])


def _facing(surface: Tensor, direction: Tensor) -> Tensor:
    """Cosine (r * r,) between a surface through points (r * r, 3), row by row, and the rays that
    see it; 0 on the picture's border.
    """
    places = surface.view(DEPTH_SIDE, DEPTH_SIDE, 3)
    across = places[1:-1, 2:] - places[1:-1, :-2]
    down = places[2:, 1:-1] - places[:-2, 1:-1]
    normal = F.normalize(torch.linalg.cross(across, down), dim=-1)
    inner = direction.view(DEPTH_SIDE, DEPTH_SIDE, 3)[1:-1, 1:-1]
    return F.pad((normal * inner).sum(dim=-1).abs(), (1, 1, 1, 1)).flatten()


# --------------------------------------------------------------------------------------------------
# Fusion


def _fuse(grid: DensityGrid, density: Tensor) -> Tensor:
    """Field (1, 1, k, k, k) of signed distances from densities (1, 1, k, k, k)."""
    reach = TRUNCATION * grid.region.side
    above = density[0, 0] - grid.level
    near = _near_border(above > 0, int(TRUNCATION * grid.resolution) + 1)
    slopes = torch.stack(torch.gradient(above, spacing=grid.spacing)).norm(dim=0)
    field = (above / (slopes[near].median() * reach)).clamp(-1, 1)

    axis = grid.world(torch.arange(grid.resolution)).to(density)
    z, y, x = near.nonzero().unbind(dim=1)
    points = torch.stack([axis[x], axis[y], axis[z]], dim=-1)
    weights = torch.full_like(points[:, 0], DENSITY_VOTE)
    total = DENSITY_VOTE * field[near]
    with progress(_depth_maps(grid, density), "Depth", total=len(grid.region.cameras)) as bar:
        bar.leave = False
        for view in bar:
            distance, weight = view.votes(points, reach)
            total += weight * distance
            weights += weight
    field[near] = total / weights
    return field[None, None]


def _near_border(inside: Tensor, cells: int) -> Tensor:
    """Which cells (k, k, k) lie within some cells of the border of what is inside."""
    mask, size = inside.cpu().numpy(), 2 * cells + 1
    near = maximum_filter(mask, size) & maximum_filter(~mask, size)
    return torch.from_numpy(near).to(inside.device)
