"""View consistency: does the surface that two cameras see have one colour? Needs no network.
Formulas in docs/metrics.md.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.geometry import points_of_depth, project, sample_at
from metrics.processes import WorkerGroup
from metrics.sampling import GeneratorSampler
from metrics.views import View, render_view, resized

# of the picture's width at the point's distance: two views' depths may differ by it and still show
# one surface
DEPTH_TOLERANCE = 0.02
STRICT_DEGREES = (5, 15, 30)  # between the cameras of strict consistency
INTERIOR = 0.75  # of a picture's side, in which jitter is measured: borders differ anyhow
ROUNDING = 1e-9  # of interpolated masks
NAMES = ("image", "raw")


def view_consistency(
    sampler: GeneratorSampler, count: int, batch: int, team: WorkerGroup
) -> dict[str, float]:
    """Measure `count` pairs of views, warped in both directions.

    Returns:
        psnr_raw, psnr_image: of the colours of corresponding pixels, over all pixels of all pairs;
            higher is better.
        share: of the pixels whose surface the other camera should see, those where its depth says
            so too; 1 is right. Where the other camera sees through the surface, the depths
            contradict each other.
        seen: share of the solid pixels that the other camera should see; the rest lies outside its
            picture or behind something.
        angle_degrees: mean angle between the two cameras.
    """
    # squared error and count for image, raw; confirmed, contradicted, solid, angles
    sums = torch.zeros(8, dtype=torch.float64)
    for start, size in sampler.batches(count, batch, team, "View consistency"):
        sums += _pair_sums(sampler, start, size)
    total = team.sum(sums).tolist()
    values = {f"psnr_{name}": _psnr(total[2 * i], total[2 * i + 1]) for i, name in enumerate(NAMES)}
    confirmed, contradicted, solid, angles = total[4:]
    visible = confirmed + contradicted
    return {
        **values,
        "share": _ratio(confirmed, visible),
        "seen": _ratio(visible, solid),
        "angle_degrees": math.degrees(angles / count),
    }


def strict_consistency(
    sampler: GeneratorSampler, count: int, batch: int, team: WorkerGroup
) -> dict[str, float]:
    """The same of `count` fakes at fixed angles, by the degrees in `STRICT_DEGREES`, from cameras
    turned towards the front.

    Returns:
        psnr_raw_5, psnr_image_5, share_5, ...: as `view_consistency`.
        psnr_jitter: of the final picture from a camera whose picture lies one pixel to the right,
            against the first one moved by that pixel. Only what sticks to the picture differs.
    """
    turned = torch.zeros(len(STRICT_DEGREES), 7, dtype=torch.float64)
    jitter = torch.zeros(2, dtype=torch.float64)
    for start, size in sampler.batches(count, batch, team, "Strict consistency"):
        cameras = sampler.cameras(start, size)
        ws = sampler.ws(sampler.latents(start, size), cameras)
        with torch.no_grad():
            planes = sampler.model.planes(ws)
        first = render_view(sampler, ws, cameras, start, planes)
        for row, degrees in zip(turned, STRICT_DEGREES, strict=True):
            c = turn_to_front(cameras, math.radians(degrees))
            second = render_view(sampler, ws, c, start, planes)
            row += (warp_sums(first, second) + warp_sums(second, first)).cpu()
        moved = cameras.clone()
        moved[:, 18] += 1 / first.image.shape[-1]
        second = render_view(sampler, ws, moved, start, planes)
        jitter += jitter_sums(first.image, second.image).cpu()
    values: dict[str, float] = {}
    for row, degrees in zip(team.sum(turned).tolist(), STRICT_DEGREES, strict=True):
        psnrs = {
            f"psnr_{name}_{degrees}": _psnr(row[2 * i], row[2 * i + 1])
            for i, name in enumerate(NAMES)
        }
        values |= psnrs | {f"share_{degrees}": _ratio(row[4], row[4] + row[5])}
    return values | {"psnr_jitter": _psnr(*team.sum(jitter).tolist())}


def turn_to_front(c: Tensor, angle: float) -> Tensor:
    """Cameras c (N, 25) turned by `angle` about the vertical through the point of their optical
    axis that is nearest to the world's origin, to the side on which z is.
    """
    cam2world = c[:, :16].reshape(-1, 4, 4).double()
    position, axis = cam2world[:, :3, 3], F.normalize(cam2world[:, :3, 2], dim=1)
    pivot = position - (position * axis).sum(1, keepdim=True) * axis
    turn = torch.zeros_like(cam2world[:, :3, :3])
    signed = torch.where(position[:, 0] > pivot[:, 0], -angle, angle).to(turn)
    turn[:, 0, 0] = turn[:, 2, 2] = signed.cos()
    turn[:, 0, 2], turn[:, 2, 0], turn[:, 1, 1] = signed.sin(), -signed.sin(), 1.0
    moved = cam2world.clone()
    moved[:, :3, :3] = turn @ cam2world[:, :3, :3]
    moved[:, :3, 3] = pivot + (turn @ (position - pivot)[..., None])[..., 0]
    return torch.cat([moved.flatten(1).to(c), c[:, 16:]], dim=1)


def jitter_sums(first: Tensor, second: Tensor) -> Tensor:
    """Squared error and number of colours, (2,), between pictures (N, 3, R, R) and the same moved
    by a pixel to the right, in their interiors.
    """
    side = first.shape[-1]
    margin = max(round(side * (1 - INTERIOR) / 2), 1)
    inside = slice(margin, side - margin)
    error = second[..., inside, margin : side - margin]
    error = error - first[..., inside, margin - 1 : side - margin - 1]
    return torch.stack([error.square().sum(), error.new_tensor(float(error.numel()))])


def _pair_sums(sampler: GeneratorSampler, start: int, count: int) -> Tensor:
    cameras = sampler.cameras(start, count), sampler.second_cameras(start, count)
    ws = sampler.ws(sampler.latents(start, count), cameras[0])
    with torch.no_grad():
        planes = sampler.model.planes(ws)
    first, second = (render_view(sampler, ws, c, start, planes) for c in cameras)
    axes = (F.normalize(view.cameras[:, [2, 6, 10]], dim=1) for view in (first, second))
    cosines = torch.stack(list(axes)).prod(0).sum(1).clamp(-1, 1)
    sums = warp_sums(first, second) + warp_sums(second, first)
    return torch.cat([sums, cosines.acos().sum()[None]]).cpu()


def warp_sums(view: View, other: View) -> Tensor:
    """Sums (7,) over the pixels of `view`: squared colour error and number of colours that
    correspond, of image and of raw; pixels of raw that `other` confirms, that it contradicts, and
    that are solid.
    """
    parts, counts = [], view.depth.new_zeros(3)
    for name in NAMES:
        pixels, other_pixels = getattr(view, name), getattr(other, name)
        position, confirmed, contradicted = correspondence(view, other, pixels.shape[-1])
        error = (pixels - sample_at(other_pixels, position)).square() * confirmed
        parts += [error.sum(), 3 * confirmed.sum()]
        if name == "raw":
            counts = torch.stack([confirmed.sum(), contradicted.sum(), view.solid.sum()]).double()
    return torch.cat([torch.stack(parts).double(), counts])


def correspondence(view: View, other: View, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the surface of `view`, at `size` pixels per side, lies in `other`.

    Returns:
        Positions (N, 2, size, size); which pixels the other's depth confirms, and which it
        contradicts, both (N, 1, size, size). Neither: pixels of the background, outside the other
        picture (by half a rendered pixel), hidden there, or at an edge of the object there.
    """
    side = view.depth.shape[-1]
    depth, solid = resized(view.depth, size), resized(view.solid.double(), size) > 1 - ROUNDING
    position, distance = project(points_of_depth(depth, view.cameras), other.cameras)
    margin = 0.5 / side
    in_picture = ((position > margin) & (position < 1 - margin)).all(1, keepdim=True)
    inside = solid & (distance > 0) & in_picture
    # how far behind the point the other camera's ray ends
    behind = sample_at(other.depth, position) - distance
    solidity = sample_at(other.solid.double(), position)
    focal = other.cameras[:, [16, 20]].mean(1)[:, None, None, None]
    tolerance = DEPTH_TOLERANCE * distance.abs() / focal
    is_surface, is_background = solidity > 1 - ROUNDING, solidity < ROUNDING
    return (
        position,
        inside & is_surface & (behind.abs() <= tolerance),
        inside & (is_background | is_surface & (behind > tolerance)),
    )


def _psnr(squared_error: float, count: float) -> float:
    """Decibels for colours in [0, 1]; NaN where nothing corresponds."""
    return -10 * math.log10(max(squared_error / count, 1e-10)) if count else math.nan


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
