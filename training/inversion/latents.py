"""Latents and cameras of pictures, found by gradient descent from the mean latent.

The ramps of the learning rate and the noise that fades are those of StyleGAN2's projection (Karras
et al. 2020, appendix D), but that the ramp down takes half of the steps instead of a quarter. The
number of steps, the rate itself and the pull towards the mean are this program's own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.cameras import cameras_of
from training.inversion.objective import Objective
from training.inversion.pose import CameraOffsets
from training.networks.generator import Generator

OnStep = Callable[[str, float, float], None]
"""Told the phase, how much of it is done (0 to 1), and the loss."""

MAPPED = 10_000
SHRINKAGE = 0.01  # towards a round covariance, which a few thousand latents leave singular
RAMP_UP, RAMP_DOWN = 0.05, 0.5  # shares of the steps
NOISE_UNTIL = 0.75


@dataclass(frozen=True)
class LatentSettings:
    """How latents and cameras are optimised.

    Attributes:
        steps: Of latents and cameras together. lr: Of Adam for latents, in their own units.
        noise: Added to latents at first, in their deviations. prior: Weight of staying as near to
            the mean as mapped latents are.
        starts: Cameras to start from where none is known. start_steps: For each of them.
        pose_lr: Of Adam for turns (radians), shifts (radii) and log focal lengths.
        pose_prior: Weight of keeping the distance and the middle, without which a shift passes for
            a turn.
        optimise_focal: Whether the focal length is optimised with the pose.
    """

    steps: int = 400
    lr: float = 2e-2
    noise: float = 0.05
    prior: float = 0.02
    starts: int = 5
    start_steps: int = 30
    pose_lr: float = 1e-2
    pose_prior: float = 100.0
    optimise_focal: bool = False


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """What latents w (w_dim,) that come from the mapping network are like."""

    mean: Tensor  # (w_dim,)
    precision: Tensor  # (w_dim, w_dim), the inverse of the covariance
    deviation: float  # root mean square over the dimensions

    @classmethod
    @torch.no_grad()
    def of(cls, generator: Generator, seed: int = 0) -> LatentStatistics:
        """Statistics of 10,000 latents, conditioned on the frontal pose."""
        parameter = next(generator.parameters())
        z = torch.randn(MAPPED, generator.z_dim, generator=torch.Generator().manual_seed(seed))
        c = cameras_of(generator).frontal_label().to(parameter).expand(MAPPED, -1)
        w = generator.mapping(z.to(parameter), c)[:, 0].cpu().double()  # MPS has no float64
        covariance = torch.cov(w.T)
        variance = covariance.diagonal().mean()
        round_part = SHRINKAGE * variance * torch.eye(len(covariance), dtype=w.dtype)
        precision = torch.linalg.inv(covariance * (1 - SHRINKAGE) + round_part)
        return cls(w.mean(0).to(parameter), precision.to(parameter), float(variance.sqrt()))

    def beyond(self, ws: Tensor) -> Tensor:
        """How much farther than mapped latents ws (1, L, w_dim) are from the mean: squared
        Mahalanobis distances per dimension, of which 1 is usual, less 1, averaged over layers.
        """
        offset = ws - self.mean
        distance = ((offset @ self.precision) * offset).mean(-1)
        return torch.relu(distance - 1).mean()


def paced(steps: int, seconds: float | None) -> Iterator[float]:
    """Numbers from 0 to below 1, how much is done: `steps` of them, or fewer where the clock says
    so. At least one.
    """
    started, step, done = time.monotonic(), 0, 0.0
    while done < 1:
        yield done
        step += 1
        done = step / steps
        if seconds is not None:
            spent = time.monotonic() - started
            done = max(done, spent / seconds if seconds > 0 else 1.0)


def rate(done: float) -> float:
    """Factor of the learning rate: a ramp up, then a cosine down at the end."""
    return (
        min(1.0, (done + 1e-3) / RAMP_UP)
        * 0.5
        * (1 - math.cos(math.pi * min(1.0, (1 - done) / RAMP_DOWN)))
    )


@dataclass(frozen=True, eq=False)
class Fit:
    """Latents ws (1, num_ws, w_dim) and cameras labels (K, 25), and the objective's mean in the
    last step: with its noise, before it moved them.
    """

    ws: Tensor
    labels: Tensor
    loss: float


def fit_latents(
    generator: Generator,
    objective: Objective,
    statistics: LatentStatistics,
    start: Tensor,
    labels: Tensor,
    settings: LatentSettings,
    *,
    moves_cameras: bool = False,
    seconds: float | None = None,
    on_step: OnStep = lambda *_: None,
    seed: int = 0,
) -> Fit:
    """Optimise latents, and on request cameras, until their pictures are those of the objective.

    Args:
        start: (1, 1, w_dim) for W, (1, num_ws, w_dim) for W+.
        labels: Cameras (K, 25) of the K pictures.
    """
    w = start.detach().clone().requires_grad_()
    offsets = CameraOffsets(labels, cameras_of(generator), settings.optimise_focal)
    groups: list[dict[str, Any]] = [{"params": [w], "lr": settings.lr}]
    if moves_cameras:
        groups.append({"params": list(offsets.parameters()), "lr": settings.pose_lr})
    optimizer = torch.optim.Adam(groups)
    rates: list[float] = [group["lr"] for group in groups]
    random = torch.Generator().manual_seed(seed)
    loss = torch.zeros(())
    for done in paced(settings.steps, seconds):
        for group, full in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = full * rate(done)
        fade = max(0.0, 1 - done / NOISE_UNTIL) ** 2 * settings.noise * statistics.deviation
        noise = torch.randn(w.shape, generator=random).to(w) * fade
        ws = (w + noise).expand(-1, generator.num_ws, -1)
        c = offsets() if moves_cameras else labels
        loss = objective(generator.render(generator.planes(ws), ws, c)).mean()
        total = loss + settings.prior * statistics.beyond(w)
        if moves_cameras:
            total = total + settings.pose_prior * offsets.departure().mean()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        on_step("latents", done, float(loss.detach()))
    with torch.no_grad():
        found = offsets() if moves_cameras else labels
    ws = w.detach().expand(-1, generator.num_ws, -1).contiguous()
    return Fit(ws, found, float(loss.detach()))
