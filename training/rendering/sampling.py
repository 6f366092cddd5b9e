"""Where along a ray the scene is looked at: stratified depths, then depths drawn by importance
(NeRF, section 5.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dnnlib.tables import look_up
from torch_utils.sample_random import rand

FineOffsets = Literal["independent", "stratified", "systematic"]

WEIGHT_FLOOR = 0.01
CDF_EPSILON = 1e-5


class Offsets(NamedTuple):
    """The random numbers of a call, in [0, 1)."""

    coarse: Tensor  # (N, R, S), how far each even depth moves towards the next
    # (N, R, F), where in the cumulated weights each fine depth lies; None = there is no second pass
    fine: Tensor | None


def draw_offsets(
    like: Tensor,
    coarse: int,
    fine: int,
    deterministic: bool,
    fine_offsets: FineOffsets = "independent",
) -> Offsets:
    """Offsets of `coarse` and `fine` samples for rays of the shape, dtype and device of `like` (N,
    R, 1).

    Args:
        deterministic: Half a step for each coarse sample, the fine ones evenly at (i + 0.5) / fine;
            both expanded, not stored.
        fine_offsets: `independent` numbers; `stratified`, one in each of the parts [i, i + 1) /
            fine; `systematic`, (i + s) / fine with one s per ray (both: Trevithick et al. 2024;
            less noise at the same cost).
    """
    shape = like.shape[:-1]
    if deterministic:
        half = torch.full((), 0.5, dtype=like.dtype, device=like.device)
        even = (torch.arange(fine, dtype=like.dtype, device=like.device) + 0.5) / max(fine, 1)
        return Offsets(half.expand(*shape, coarse), even.expand(*shape, fine) if fine > 0 else None)
    options: Any = {"dtype": like.dtype, "device": like.device}
    drawn = rand(*shape, coarse, **options)
    if fine == 0:
        return Offsets(drawn, None)
    u = rand(*shape, 1 if fine_offsets == "systematic" else fine, **options)
    if fine_offsets != "independent":
        below_one = 1 - torch.finfo(like.dtype).eps / 2
        u = ((torch.arange(fine, **options) + u) / fine).clamp(max=below_one)
    return Offsets(drawn, u)


def stratified_depths(near: Tensor, far: Tensor, u: Tensor) -> Tensor:
    """Evenly spaced depths from `near` to `far`, both included, each moved forward by u steps.

    Args:
        near: (N, R, 1).
        far: (N, R, 1).
        u: (N, R, S) in [0, 1).

    Returns:
        (N, R, S), increasing; the last may pass `far`.
    """
    count = u.shape[-1]
    steps = torch.linspace(0, 1, count, dtype=near.dtype, device=near.device)
    step = (far - near) / (count - 1)
    return near + (far - near) * steps + u * step


def smooth_weights(weights: Tensor) -> Tensor:
    """Blur interval weights (..., S-1): larger of neighbours with zero ends, mean of neighbours,
    plus a floor (mip-NeRF, section 3.1).
    """
    padded = torch.nn.functional.pad(weights, (1, 1))
    larger = torch.maximum(padded[..., 1:], padded[..., :-1])
    return (larger[..., 1:] + larger[..., :-1]) / 2 + WEIGHT_FLOOR


@torch.no_grad()
def importance_depths(
    depths: Tensor, weights: Tensor, u: Tensor, sampler: str = "interval"
) -> Tensor:
    """Depths drawn from the piecewise-constant density that the coarse weights give.

    Args:
        depths: (N, R, S) increasing coarse depths.
        weights: (N, R, S-1) compositing weights of the intervals between them.
        u: (N, R, F) in [0, 1), where in the cumulated weights the new depths lie.
        sampler: A name in `FINE_SAMPLERS`.

    Returns:
        (N, R, F); increasing where `u` is.

    Raises:
        UserError: for a name that is not in the table.
    """
    return look_up(FINE_SAMPLERS, sampler, "rendering.fine_sampling")(depths, weights, u)


def sample_intervals(depths: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Spread weight i between depths i and i+1."""
    return invert_cdf(depths, smooth_weights(weights), u)


def sample_as_released(depths: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """What the released models were trained with: without the first and last weight, the k-th
    remaining one lies between the midpoints k and k+1 of the depths.
    """
    weights = smooth_weights(weights)[..., 1:-1]
    edges = ((depths[..., 1:] + depths[..., :-1]) / 2)[..., : weights.shape[-1] + 1]
    return invert_cdf(edges, weights, u)


FINE_SAMPLERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "interval": sample_intervals,
    "released": sample_as_released,
}
"""By name in `rendering.fine_sampling`: depths (N, R, S), weights (N, R, S-1), u (N, R, F) to new
depths (N, R, F). Compiled operators have these two; others render by the composable path.
"""


def invert_cdf(edges: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Inverse of the cumulative distribution of a piecewise-constant density.

    Args:
        edges: (..., B+1) increasing bin edges.
        weights: (..., B) non-negative, need not be normalised.
        u: (..., M) in [0, 1).

    Returns:
        (..., M) positions.
    """
    weights = weights + CDF_EPSILON
    cdf = torch.cumsum(weights / weights.sum(dim=-1, keepdim=True), dim=-1)
    cdf = torch.nn.functional.pad(cdf, (1, 0))
    above = torch.searchsorted(cdf, u.contiguous(), right=True).clamp(max=weights.shape[-1])
    below = (above - 1).clamp(min=0)
    cdf_below, cdf_above = cdf.gather(-1, below), cdf.gather(-1, above)
    edge_below, edge_above = edges.gather(-1, below), edges.gather(-1, above)
    width = cdf_above - cdf_below
    # An empty bin has no inside; the released models divide by one there.
    width = torch.where(width < CDF_EPSILON, torch.ones_like(width), width)
    return edge_below + (u - cdf_below) / width * (edge_above - edge_below)
