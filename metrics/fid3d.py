"""FID3D: how fakes look from another camera than the one they were conditioned on (CGS-GAN, Barthel
et al. 2025)."""

from __future__ import annotations

import torch
from torch import Tensor

from metrics.detectors import Detector
from metrics.features import Wanted, collect_features
from metrics.fid import frechet_distance
from metrics.options import MetricOptions
from metrics.picture_sets import RealSet, real_set
from metrics.reals import RealImages
from metrics.sampling import GeneratorSampler, to_pixels

OTHER_CAMERA_STREAM = 4  # of random numbers; 1 to 3 are the sampler's own


def fid3d(
    sampler: GeneratorSampler,
    reals: RealImages,
    detector: Detector,
    options: MetricOptions,
    count: int,
) -> tuple[float, float]:
    """Fréchet distance to `count` reals of as many fakes seen from another camera, drawn apart from
    the one that they are conditioned on; and seen from that one.
    """
    team = options.team
    truth = real_set(RealSet(count, is_moments=True), reals, detector, options, team).statistics()

    def elsewhere(start: int, size: int) -> Tensor:
        return seen_from_elsewhere(sampler, start, size)

    distances = []
    for read, text in ((elsewhere, "Fakes from elsewhere"), (sampler, "Fakes")):
        wanted = Wanted(moments={count})
        found = collect_features(read, detector, wanted, options.batch, team, text)
        distances.append(frechet_distance(*found.moments[count].statistics(), *truth))
    return distances[0], distances[1]


def seen_from_elsewhere(sampler: GeneratorSampler, start: int, count: int) -> Tensor:
    """Fakes start, start + 1, ..., each conditioned on its camera and seen from another draw, as
    uint8 pictures (count, 3, H, W).
    """
    ws = sampler.ws(sampler.latents(start, count), sampler.cameras(start, count))
    draws = [
        sampler.draw_camera(sampler.random(start + i, OTHER_CAMERA_STREAM)) for i in range(count)
    ]
    return to_pixels(sampler.render(ws, torch.stack(draws).to(ws), start).image)
