"""Measures of shape: how much relief the model's depth has, and how it compares with true depth
maps. Formulas in docs/metrics.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dnnlib.console import UserError
from metrics.geometry import points_of_depth, straight_depth
from metrics.processes import WorkerGroup
from metrics.reals import RealImages
from metrics.sampling import GeneratorSampler
from metrics.views import resized, view_from

FLAT = 1e-6  # of the distance; a spread below it is rounding
FEWEST_PIXELS = 16  # that a picture must show for its depths to mean anything


def relief(
    sampler: GeneratorSampler, count: int, batch: int, team: WorkerGroup
) -> dict[str, float]:
    """Shape of the visible surface of `count` fakes, without any truth to compare with.

    Returns:
        depth_spread: standard deviation of the depth along the optical axis over a picture's solid
            pixels, world units, mean over pictures.
        relief: extent of the visible points across the plane that fits them best, over their
            largest extent; 0 for a card however it is turned, 0.47 for the half of a sphere that a
            far camera sees.
        alpha: share of solid pixels. pictures: those with enough solid pixels to count.
    """
    sums = torch.zeros(4, dtype=torch.float64)
    for start, size in sampler.batches(count, batch, team, "Relief"):
        view = view_from(sampler, sampler.cameras(start, size), start)
        points = points_of_depth(view.depth, view.cameras)
        for depth, solid, place in zip(
            straight_depth(view.depth, view.cameras), view.solid, points, strict=True
        ):
            sums[2] += float(solid.double().mean())
            if solid.sum() >= FEWEST_PIXELS:
                sums += torch.tensor(
                    [float(_spread(depth[solid])), relief_of_points(place[:, solid[0]].T), 0, 1],
                    dtype=torch.float64,
                )
    spread, ratio, alpha, pictures = team.sum(sums).tolist()
    seen = max(pictures, 1)
    return {
        "depth_spread": spread / seen if pictures else math.nan,
        "relief": ratio / seen if pictures else math.nan,
        "alpha": alpha / count,
        "pictures": pictures,
    }


def relief_of_points(points: Tensor) -> float:
    """Smallest over largest standard deviation of points (K, 3) along their principal axes."""
    values = torch.linalg.eigvalsh(torch.cov(points.T)).clamp(min=0)
    return float((values[0] / values[-1].clamp(min=1e-30)).sqrt())


def depth_against_maps(
    sampler: GeneratorSampler, reals: RealImages, count: int, batch: int, team: WorkerGroup
) -> dict[str, float]:
    """Depths of `count` fakes against the true depth maps of as many real pictures, each fake seen
    from its real picture's camera; a perfect model has the error of two different real objects.

    Returns:
        depth_error: mean squared difference of both depths (along the optical axis), each brought
            to mean 0 and variance 1 over the pixels where both are solid (EG3D, section 5.2); what
            has no depth at all gets 1, what is unrelated 2.
        depth_error_unscaled: the same, but both are divided by the deviation of the true depth, so
            that too little relief shows.
        relief_ratio: mean spread of the model's depths over that of the true ones; 1 is right, 0
            flat.
        overlap: intersection over union of the solid pixels. pictures: those with enough common
            pixels to count.

    Raises:
        UserError: if the data have no depth maps, or too few.
    """
    check_depth_maps(reals, f"depth{count}", count)
    assert reals.read_depth is not None
    assert reals.labels is not None
    indices = reals.chosen(count)
    sums = torch.zeros(7, dtype=torch.float64)
    for start, size in sampler.batches(count, batch, team, "Depth"):
        chosen = indices[start : start + size]
        cameras = reals.labels[torch.from_numpy(chosen)].to(sampler.device)
        view = view_from(sampler, cameras, start)
        truth = reals.read_depth(chosen).to(view.depth)
        depth = resized(view.depth, truth.shape[-1])
        solid = resized(view.solid.double(), truth.shape[-1]) > 1 - 1e-9
        straight, true = (straight_depth(values, view.cameras) for values in (depth, truth))
        sums += compare_depths(straight, solid, true)
    error, unscaled, spread, true_spread, common, either, pictures = team.sum(sums).tolist()
    return {
        "depth_error": error / pictures if pictures else math.nan,
        "depth_error_unscaled": unscaled / pictures if pictures else math.nan,
        "relief_ratio": spread / true_spread if true_spread else math.nan,
        "overlap": common / either if either else math.nan,
        "pictures": pictures,
    }


def check_depth_maps(reals: RealImages, name: str, count: int) -> None:
    """Refuse data without depth maps, or with fewer than `count` pictures, for the metric `name`.

    Raises:
        UserError: that says so.
    """
    if reals.read_depth is None or reals.labels is None:
        raise UserError(
            f"{name}: {reals.name} has no depth maps; make data that have them: dataset_tool.py"
            " heads --depth"
        )
    if reals.count < count:
        raise UserError(
            f"{name} takes {count}, {reals.name} has only {reals.count} pictures; ask for fewer"
        )


def compare_depths(depth: Tensor, solid: Tensor, truth: Tensor) -> Tensor:
    """Sums (7,) over pictures of depths, all (N, 1, n, n), true ones 0 where there is nothing: both
    errors of `depth_against_maps`, spreads of depth and truth, pixels solid in both and in either,
    pictures.
    """
    sums = torch.zeros(7, dtype=torch.float64)
    for own, own_solid, true in zip(depth, solid, truth, strict=True):
        common = own_solid & (true > 0)
        sums[4] += float(common.sum())
        sums[5] += float((own_solid | (true > 0)).sum())
        if common.sum() >= FEWEST_PIXELS:
            pair = own[common], true[common]
            error = (_normalised(pair[0]) - _normalised(pair[1])).square().mean()
            spreads = _spread(pair[0]), _spread(pair[1])
            shift = (pair[0] - pair[0].mean() - pair[1] + pair[1].mean()).square().mean()
            unscaled = shift / spreads[1].square().clamp(min=1e-30)
            sums += torch.stack([error, unscaled, *spreads, *error.new_tensor([0, 0, 1])]).cpu()
    return sums


def _spread(depths: Tensor) -> Tensor:
    return depths.std(correction=0)


def _normalised(depths: Tensor) -> Tensor:
    """Mean 0 and variance 1; all zero for depths without spread, whose rounding is no relief."""
    spread = _spread(depths)
    centred = depths - depths.mean()
    return centred / spread if spread > FLAT * depths.abs().mean() else torch.zeros_like(centred)
