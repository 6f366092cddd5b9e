"""From a generator to Gaussians: a first guess from depth maps, then gradient descent against the
model's own renderings (Kerbl et al. 2023, section 5, without its densification: the depths tell
where the surface is).

What is fitted is the volume rendering (`image_raw`), which is the same thing from all sides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from dnnlib.console import UserError, progress
from media import PictureModel
from media.pictures.normals import surface_normals
from media.splats.splats import Splats
from metrics.views import OPAQUE
from training.cameras import CameraSummary, unpack_label
from training.rendering.rays import sample_rays

GRAZING = 0.15  # cosine below which a camera sees a surface too flat to tell where it is
AROUND_PITCH = math.radians(50)  # how far cameras that go all around look down
VOXEL = 2.0  # side of a voxel of the first guess, pixels
FLATNESS = 0.25  # of a first Gaussian: its extent along the normal, in extents along the surface
SPREAD = 0.6  # of a first Gaussian: standard deviation along the surface, in distances to the next
FIRST_OPACITY = 0.9
LEAST_OPACITY = 0.01  # below, a Gaussian is left out at the end
# Adam, whose steps a cosine takes to 0: those of positions in distances between Gaussians, of the
# logarithm of scales, of quaternions, of logits of opacities, of colours
STEPS = {"positions": 0.05, "scales": 0.02, "rotations": 0.02, "opacities": 0.05, "colors": 0.01}


@dataclass(frozen=True)
class FitSettings:
    """How Gaussians are fitted.

    Attributes:
        resolutions: Pixels per side of these renderings, in turn: Gaussians that are fitted at one
            only have holes at a higher, or are blurred at a lower one.
        steps: Steps of gradient descent, one rendering each.
        largest: Most Gaussians.
    """

    resolutions: tuple[int, ...] = (64, 128)
    steps: int = 200
    largest: int = 40_000


@dataclass(frozen=True)
class Target:
    """What one camera (25,) sees: colours in front of black (3, r, r) in [0, 1], alpha (1, r, r);
    surface points (P, 3) with normals (P, 3) and colours (P, 3).
    """

    label: Tensor
    image: Tensor
    alpha: Tensor
    points: Tensor
    normals: Tensor
    colors: Tensor


def fit_labels(generator: PictureModel, cameras: CameraSummary, views: int = 48) -> Tensor:
    """Cameras (views, 25) to fit from, evenly all over the data's range of yaw and pitch. Where the
    object stands alone, a quarter of them goes all around it, so that it is closed behind.
    """
    around = views // 4 if generator.rendering.background else 0
    count = views - around
    places = SobolEngine(2, scramble=False).draw(count, dtype=torch.float64)
    spans = torch.tensor([cameras.yaw_range, cameras.pitch_range], dtype=torch.float64)
    yaws, pitches = (spans[:, :1] + (spans[:, 1:] - spans[:, :1]) * places.T).unbind()
    ring = torch.arange(around, dtype=torch.float64) * (2 * math.pi / max(around, 1))
    tilts = (
        cameras.pitch + AROUND_PITCH * torch.tensor([0.0, 1.0, 0.0, -0.5]).repeat(around)[:around]
    )
    return torch.cat([cameras.label(yaws, pitches), cameras.label(ring, tilts.double())])


def fit_splats(
    generator: PictureModel, ws: Tensor, cameras: Tensor, settings: FitSettings | None = None
) -> Splats:
    """Gaussians of one identity ws (1, num_ws, w_dim) that look like the model from cameras (K,
    25); on the CPU.

    Raises:
        UserError: if no camera sees anything opaque.
    """
    settings = settings or FitSettings()
    targets = list(render_targets(generator, ws, cameras, settings))
    return refine(first_guess(targets, settings), targets, settings)


# --------------------------------------------------------------------------------------------------
# First guess


@torch.no_grad()
def render_targets(
    generator: PictureModel, ws: Tensor, cameras: Tensor, settings: FitSettings
) -> Iterator[Target]:
    """What the model shows to cameras (K, 25)."""
    resolutions = itertools.cycle(settings.resolutions)
    planes = generator.planes(ws)
    background = torch.tensor(generator.rendering.background or (0.0, 0.0, 0.0))[:, None, None]
    with progress(cameras.to(ws).split(1), "Renderings", unit="view") as bar:
        for c, resolution in zip(bar, resolutions, strict=False):
            out = generator.render(planes, ws, c, resolution, deterministic=True)
            origins, directions = (
                value[0] for value in sample_rays(*unpack_label(c.float()), resolution)
            )
            alpha = out.alpha[0].float()
            image = (out.image_raw[0].float() + 1) / 2 - (1 - alpha) * background.to(alpha)
            normals = surface_normals(generator, planes, c, out)[0].flatten(1).T
            facing = -(normals * directions).sum(dim=-1)
            points = origins + directions * out.image_depth[0].flatten()[:, None]
            # a mean depth over two surfaces lies between them, where nothing is
            solid = generator.query_density(points[None], planes)[0, :, 0] > 1
            kept = (alpha.flatten() > OPAQUE) & (facing > GRAZING) & solid
            colors = (image / alpha.clamp(min=OPAQUE)).flatten(1).T
            yield Target(
                *(
                    value.cpu()
                    for value in (c[0], image, alpha, points[kept], normals[kept], colors[kept])
                )
            )


def first_guess(targets: list[Target], settings: FitSettings) -> Splats:
    """A flat Gaussian for each voxel in which renderings show a surface. A voxel is a pixel wide,
    wider where these would be too many.

    Raises:
        UserError: if there is no surface.
    """
    points, normals, colors = (
        torch.cat([getattr(target, name) for target in targets])
        for name in ("points", "normals", "colors")
    )
    if not len(points):
        raise UserError("no camera of the data sees anything opaque: there is nothing to splat")
    first = next(target for target in targets if len(target.points))
    distance = (first.points - first.label[[3, 7, 11]]).norm(dim=1).mean()
    spacing = VOXEL * float(distance / (first.label[16] * max(settings.resolutions)))
    while True:
        voxels, owner = torch.unique((points / spacing).floor(), dim=0, return_inverse=True)
        if len(voxels) <= settings.largest:
            break
        spacing *= 1.02 * math.sqrt(len(voxels) / settings.largest)
    count = torch.bincount(owner)[:, None]
    points, normals, colors = (
        torch.zeros(len(voxels), 3).index_add(0, owner, values) / count
        for values in (points, normals, colors)
    )
    scales = torch.tensor([SPREAD, SPREAD, SPREAD * FLATNESS]) * spacing
    return Splats(
        points,
        scales.repeat(len(voxels), 1),
        _turns_to(normals),
        torch.full((len(voxels),), FIRST_OPACITY),
        colors.clamp(0, 1),
    )


def _turns_to(normals: Tensor) -> Tensor:
    """Quaternions (N, 4), w x y z, that turn the z axis to normals (N, 3) of any length."""
    x, y, z = torch.nn.functional.normalize(normals, dim=-1).unbind(-1)
    turn = torch.stack([1 + z, -y, x, torch.zeros_like(z)], dim=-1)
    turn = torch.where((z < -0.999)[:, None], torch.tensor([0.0, 1.0, 0.0, 0.0]), turn)
    return torch.nn.functional.normalize(turn, dim=-1)


# --------------------------------------------------------------------------------------------------
# Refinement


def refine(first: Splats, targets: list[Target], settings: FitSettings) -> Splats:
    """Gaussians moved, resized, turned and coloured until they show the targets: mean squared error
    of colours in front of black and of alpha.
    """
    spacing = first.scales.amax(dim=1).mean() / SPREAD
    free = {
        "positions": first.positions / spacing,
        "scales": first.scales.log(),
        "rotations": first.rotations,
        "opacities": first.opacities.logit(),
        "colors": first.colors,
    }
    free = {name: value.clone().requires_grad_() for name, value in free.items()}
    optimizer = torch.optim.Adam(
        [{"params": [value], "lr": STEPS[name]} for name, value in free.items()], fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    order = torch.Generator().manual_seed(0)
    with progress(range(settings.steps), "Gaussians", unit="step") as bar:
        for step in bar:
            if step % len(targets) == 0:
                turn = torch.randperm(len(targets), generator=order)
            target = targets[turn[step % len(targets)]]
            image, alpha = _bound(free, spacing).render(target.label, len(target.alpha[0]))
            loss = (image - target.image).square().mean() + (alpha - target.alpha).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            free["colors"].data.clamp_(0, 1)
    found = _bound({name: value.detach() for name, value in free.items()}, spacing)
    kept = found.opacities > LEAST_OPACITY
    return Splats(*(value[kept] for value in vars(found).values()))


def _bound(free: dict[str, Tensor], spacing: Tensor) -> Splats:
    """The Gaussians that free parameters stand for."""
    return Splats(
        free["positions"] * spacing,
        free["scales"].exp(),
        torch.nn.functional.normalize(free["rotations"], dim=-1),
        free["opacities"].sigmoid(),
        free["colors"],
    )
