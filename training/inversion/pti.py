"""Pivotal tuning: the generator's weights are tuned until the pivot shows the picture (Roich et al.
2021, "Pivotal Tuning for Latent-based Editing of Real Images").

Two things hold the generator in place. Locality (section 3.3 there): latents near the pivot show
what they showed. Geometry: from other cameras the pivot has the depth and alpha that it had, and
roughly the pictures; else a face turns into a painted, flat one, which shows the picture as well.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.cameras import cameras_of
from training.inversion.latents import LatentStatistics, OnStep, paced, rate
from training.inversion.objective import Objective
from training.networks.generator import Generator, GeneratorOutput

BANK = (7, 3)  # yaws and pitches of the cameras that hold the geometry


@dataclass(frozen=True)
class TuningSettings:
    """How weights are tuned.

    Attributes:
        steps, lr: Of Adam. locality: Weight of the latents nearby, which are looked at every
            `locality_interval` steps. distance: How far away they are, in usual distances of
            latents from their mean.
        geometry: Weight of the depths and alphas from other cameras. pictures: Weight of the
            pictures from there. 0 leaves a term out.
    """

    steps: int = 350
    lr: float = 3e-4
    locality: float = 1.0
    locality_interval: int = 4
    distance: float = 0.5
    geometry: float = 5.0
    pictures: float = 0.1


def tune_generator(
    generator: Generator,
    objective: Objective,
    statistics: LatentStatistics,
    ws: Tensor,
    labels: Tensor,
    settings: TuningSettings,
    *,
    seconds: float | None = None,
    on_step: OnStep = lambda *_: None,
    seed: int = 0,
) -> Generator:
    """A copy of the generator, tuned so that ws (1, num_ws, w_dim) shows the objective's pictures
    from cameras labels (K, 25).
    """
    tuned = copy.deepcopy(generator)
    parameters = [*tuned.backbone.synthesis.parameters(), *tuned.decoder.parameters()]
    parameters += tuned.superresolution.parameters()
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=settings.lr)
    hold = _Hold(generator, statistics, ws, settings, seed)
    for step, done in enumerate(paced(settings.steps, seconds)):
        optimizer.param_groups[0]["lr"] = settings.lr * rate(done)
        planes = tuned.planes(ws)
        loss = objective(tuned.render(planes, ws, labels)).mean()
        total = loss + hold.geometry(tuned, planes)
        if step % settings.locality_interval == 0:
            total = total + settings.locality_interval * hold.locality(tuned)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        on_step("tuning", done, float(loss.detach()))
    return tuned.requires_grad_(False)


class _Hold:
    """What holds a tuned generator in place: terms of the loss against the untuned one."""

    def __init__(
        self,
        untuned: Generator,
        statistics: LatentStatistics,
        ws: Tensor,
        settings: TuningSettings,
        seed: int,
    ) -> None:
        self.untuned, self.statistics, self.ws, self.settings = untuned, statistics, ws, settings
        self.random = np.random.default_rng(seed)
        self.cameras = cameras_of(untuned).grid(*BANK).to(ws)
        with torch.no_grad():
            self.planes = untuned.planes(ws)
        self.bank: dict[int, GeneratorOutput] = {}

    def geometry(self, tuned: Generator, planes: Tensor) -> Tensor:
        """The pivot from one camera of the bank: depths in box sides, alphas, pictures."""
        if not (self.settings.geometry or self.settings.pictures):
            return planes.new_zeros(())
        index = int(self.random.integers(len(self.cameras)))
        c = self.cameras[index, None]
        if index not in self.bank:
            with torch.no_grad():
                self.bank[index] = self.untuned.render(self.planes, self.ws, c)
        was, out = self.bank[index], tuned.render(planes, self.ws, c)
        difference = (out.image_depth - was.image_depth).abs() / tuned.rendering.box_warp
        shape = (was.alpha * difference).mean() + (out.alpha - was.alpha).abs().mean()
        return self.settings.geometry * shape + self.settings.pictures * picture_distance(out, was)

    def locality(self, tuned: Generator) -> Tensor:
        """A latent on the way from the pivot to a random one, from a random camera."""
        if not self.settings.locality:
            return self.ws.new_zeros(())
        z = self.random.standard_normal((1, tuned.z_dim))
        c = self.cameras[int(self.random.integers(len(self.cameras))), None]
        with torch.no_grad():
            frontal = cameras_of(tuned).frontal_label()[None].to(self.ws)
            target = self.untuned.mapping(torch.from_numpy(z).to(self.ws), frontal)
            step = self.settings.distance * self.statistics.deviation * self.ws.shape[-1] ** 0.5
            near = self.ws + F.normalize(target - self.ws, dim=-1) * step
            was = self.untuned.synthesis(near, c)
        return self.settings.locality * picture_distance(tuned.synthesis(near, c), was)


def picture_distance(out: GeneratorOutput, was: GeneratorOutput) -> Tensor:
    """Mean absolute difference of pictures, and of renderings."""
    raw = (out.image_raw - was.image_raw).abs().mean()
    return (out.image - was.image).abs().mean() + raw
