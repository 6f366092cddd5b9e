"""Shape of the visible surface beside that of real objects: normals, left-right asymmetry, and how
many ways it varies in. Formulas in docs/metrics.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.depth import check_depth_maps
from metrics.detectors import Detector
from metrics.features import Wanted, collect_features
from metrics.fid import frechet_distance
from metrics.geometry import points_of_depth, project, sample_at
from metrics.moments import Moments
from metrics.processes import WorkerGroup
from metrics.reals import RealImages
from metrics.sampling import GeneratorSampler
from metrics.views import in_double, view_from

Surfaces = Callable[[int, int], tuple[Tensor, Tensor]]
"""(start, count) to depths along the rays (count, 1, n, n), 0 where there is nothing, and cameras
(count, 25), float64."""

# Where faces are that look along +z, in world units; heads of the presets fill a box of side 1.
FACE_X, FACE_Y, FACE_Z = 0.16, (-0.26, 0.22), 0.3
GRID = 33  # heights of a face, along each side
FRONTAL = math.radians(20)  # of yaw; beyond, the far cheek is hidden
STEPS = 12  # each brings a height nearer by more than half
TOLERANCE = 0.003  # world units, a fifth of a pixel of 64; a point farther off is hidden


def fake_surfaces(sampler: GeneratorSampler, cameras: Callable[[int, int], Tensor]) -> Surfaces:
    """What fakes show to cameras by number."""

    def surfaces(start: int, count: int) -> tuple[Tensor, Tensor]:
        view = view_from(sampler, cameras(start, count), start)
        return torch.where(view.solid, view.depth, 0.0).cpu(), view.cameras.cpu()

    return surfaces


def real_surfaces(reals: RealImages, indices: np.ndarray, size: int = 0) -> Surfaces:
    """True depths of reals, in `size` pixels (0 = as they are): the nearest one, as averages would
    lie between surfaces.
    """
    assert reals.labels is not None
    labels = reals.labels[torch.from_numpy(indices)]

    def surfaces(start: int, count: int) -> tuple[Tensor, Tensor]:
        assert reals.read_depth is not None
        part = slice(start, start + count)
        depth = reals.read_depth(indices[part])
        if size and size < depth.shape[-1]:
            depth = F.interpolate(depth, (size, size), mode="nearest-exact")
        return in_double(depth), in_double(labels[part])

    return surfaces


# --------------------------------------------------------------------------------------------------
# Normals


def camera_normals(depth: Tensor, c: Tensor) -> Tensor:
    """Unit normals (N, 3, n - 1, n - 1) in the camera's axes (x right, y down, z forward), from
    each pixel's point and its right and lower neighbours'; 0 where one of them is nothing.
    """
    points, solid = points_of_depth(depth, c), depth > 0
    right, down = points.diff(dim=3)[:, :, :-1], points.diff(dim=2)[:, :, :, :-1]
    seen = solid[..., :-1, :-1] & solid[..., :-1, 1:] & solid[..., 1:, :-1]
    normals = F.normalize(torch.cross(down, right, dim=1), dim=1)
    world2cam = c[:, :16].reshape(-1, 4, 4)[:, :3, :3].mT
    return torch.einsum("nij,njhw->nihw", world2cam, normals) * seen


def neighbour_angles(normals: Tensor) -> Tensor:
    """Sums (4,) over pictures of normals (N, 3, h, w): angle in degrees between a normal and its
    lower, and its right neighbour, mean over a picture's pairs; pictures that have such pairs.
    """
    seen = normals.abs().sum(1) > 0
    sums = []
    for dim in (2, 3):
        count = normals.shape[dim]
        first, second = normals.narrow(dim, 0, count - 1), normals.narrow(dim, 1, count - 1)
        both = seen.narrow(dim - 1, 0, count - 1) & seen.narrow(dim - 1, 1, count - 1)
        # of the chord, since the arc cosine is inexact near 0
        chord = (first - second).norm(dim=1)
        angles = torch.rad2deg(2 * torch.asin((chord / 2).clamp(max=1))) * both
        pairs = both.sum((1, 2))
        sums += [(angles.sum((1, 2)) / pairs.clamp(min=1)).sum(), (pairs > 0).sum()]
    return torch.stack([value.double() for value in sums])


def normal_pictures(surfaces: Surfaces, start: int, count: int) -> Tensor:
    """Normals as colours, uint8 (count, 3, n - 1, n - 1); grey where there is nothing."""
    return ((camera_normals(*surfaces(start, count)) + 1) * 127.5).round().to(torch.uint8)


def normals_distance(
    sampler: GeneratorSampler,
    reals: RealImages,
    detector: Detector,
    count: int,
    batch: int,
    team: WorkerGroup,
) -> dict[str, float]:
    """Fréchet distance of pictures of normals: of `count` fakes to as many reals' true ones, from
    the same cameras; and, where there are twice as many reals, of other reals.

    Raises:
        UserError: if the data have no depth maps, or too few.
    """
    check_depth_maps(reals, f"normals{count}", count)
    surfaces = _beside(sampler, reals, count)
    pictures = {"": surfaces[0], "truth": surfaces[1]}
    if len(unseen := reals.unseen(count)[0]):
        pictures["real"] = real_surfaces(reals, unseen, surfaces[0](0, 1)[0].shape[-1])
    moments: dict[str, Moments] = {}
    for name, source in pictures.items():
        read = partial(normal_pictures, source)
        wanted = Wanted(moments={count})
        found = collect_features(read, detector, wanted, batch, team, f"Normals {name}".strip())
        moments[name] = found.moments[count]
    truth = moments.pop("truth").statistics()
    return {name: frechet_distance(*own.statistics(), *truth) for name, own in moments.items()}


def _beside(sampler: GeneratorSampler, reals: RealImages, count: int) -> tuple[Surfaces, Surfaces]:
    """Surfaces of fakes and of reals, from the reals' cameras and in as many pixels."""
    indices = reals.chosen(count)
    truth = real_surfaces(reals, indices)
    fakes = fake_surfaces(
        sampler, lambda start, size: truth(start, size)[1].float().to(sampler.device)
    )
    return fakes, real_surfaces(reals, indices, fakes(0, 1)[0].shape[-1])


# --------------------------------------------------------------------------------------------------
# Faces


def face_heights(depth: Tensor, c: Tensor) -> Tensor:
    """Heights z (N, GRID, GRID) of a surface over points (x, y) of the world's face, seen by
    cameras (N, 25); NaN where nothing is seen, or something before it.

    A height is a fixed point: what the camera sees in the direction of (x, y, z) has the height z.
    """
    x, y = torch.linspace(-FACE_X, FACE_X, GRID), torch.linspace(*FACE_Y, GRID)
    plane = torch.stack(torch.meshgrid(y, x, indexing="ij")).flip(0).to(depth)
    plane = plane.expand(len(depth), -1, -1, -1)
    heights = torch.full_like(plane[:, :1], FACE_Z)
    surface = points_of_depth(depth, c)
    for _ in range(STEPS):
        found = sample_at(surface, project(torch.cat([plane, heights], 1), c)[0])
        heights = found[:, 2:]
    solid = sample_at((depth > 0).to(depth), project(found, c)[0]) > 1 - 1e-6
    seen = solid & ((found[:, :2] - plane).norm(dim=1, keepdim=True) < TOLERANCE)
    return torch.where(seen, heights, torch.nan)[:, 0]


def asymmetry(heights: Tensor) -> float:
    """Mean absolute difference, in world units, of heights (N, h, w) to their mirror images."""
    return float((heights - heights.flip(-1)).abs().nanmean())


def effective_dimensions(heights: Tensor) -> float:
    """Participation ratio (sum of variances)^2 / (sum of squared variances) along the principal
    axes of heights (N, h, w) over N: how many ways they vary in. Each is taken without its mean;
    gaps count as average.
    """
    rows = heights.flatten(1)
    rows = rows - rows.nanmean(1, keepdim=True)
    rows = (rows - rows.nanmean(0)).nan_to_num(0.0)
    variances = torch.linalg.svdvals(rows).square()
    return float(variances.sum().square() / variances.square().sum())


def shape(
    sampler: GeneratorSampler, reals: RealImages | None, count: int, batch: int, team: WorkerGroup
) -> dict[str, float]:
    """Bands, asymmetry and variety of the depth of `count` fakes; where there are reals with true
    depth, from their cameras and with their values (`real_...`) beside them.

    Returns:
        vertical_angle, horizontal_angle: between normals of pixels that lie above and beside each
            other, degrees. asymmetry: see there, from cameras near the front. effective_dimensions:
            likewise. frontal: cameras near the front; the last two are NaN without two.
    """
    if reals is None or reals.read_depth is None or reals.count < count:
        return _shape_of(fake_surfaces(sampler, sampler.cameras), count, batch, team)
    fakes, truth = (
        _shape_of(surfaces, count, batch, team) for surfaces in _beside(sampler, reals, count)
    )
    return fakes | {f"real_{name}": value for name, value in truth.items()}


def _shape_of(surfaces: Surfaces, count: int, batch: int, team: WorkerGroup) -> dict[str, float]:
    sums = torch.zeros(4, dtype=torch.float64)
    heights = torch.zeros(count, GRID, GRID, dtype=torch.float64)
    is_frontal = torch.zeros(count)
    for start, size in team.shown_batches(count, batch, "Shape"):
        depth, c = surfaces(start, size)
        sums += neighbour_angles(camera_normals(depth, c))
        rows = slice(start, start + size)
        heights[rows] = face_heights(depth, c)
        is_frontal[rows] = (torch.atan2(-c[:, 2], -c[:, 10]).abs() <= FRONTAL).float()
    vertical, vertical_count, horizontal, horizontal_count = team.sum(sums).tolist()
    heights = team.sum(heights)[team.sum(is_frontal) > 0]
    has_faces = len(heights) > 1
    return {
        "vertical_angle": vertical / vertical_count if vertical_count else math.nan,
        "horizontal_angle": horizontal / horizontal_count if horizontal_count else math.nan,
        "asymmetry": asymmetry(heights) if has_faces else math.nan,
        "effective_dimensions": effective_dimensions(heights) if has_faces else math.nan,
        "frontal": float(len(heights)),
    }
