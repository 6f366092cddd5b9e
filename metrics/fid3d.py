"""FID3D: fakes seen from other cameras than conditioned on (CGS-GAN, Barthel et al. 2025)."""

from __future__ import annotations

from functools import partial

from metrics.detectors import Detector
from metrics.features import Wanted, collect_features
from metrics.fid import frechet_distance
from metrics.options import MetricOptions
from metrics.picture_sets import RealSet, real_set
from metrics.reals import RealImages
from metrics.sampling import CAMERA_STREAM, GeneratorSampler

OTHER_CAMERA_STREAM = 4  # of random numbers; 1 to 3 are the sampler's own


def fid3d(
    sampler: GeneratorSampler,
    reals: RealImages,
    detector: Detector,
    options: MetricOptions,
    count: int,
) -> dict[str, float]:
    """Fréchet distance to `count` reals of as many fakes seen from another camera, drawn apart from
    the one that they are conditioned on; and (`own_camera`) seen from that one.
    """
    truth = real_set(RealSet(reals.chosen(count), is_moments=True), reals, detector, options)
    values, wanted = {}, Wanted(moments={count})
    for name, stream in (("", OTHER_CAMERA_STREAM), ("own_camera", CAMERA_STREAM)):
        read = partial(sampler.pictures, stream=stream)
        found = collect_features(
            read, detector, wanted, options.batch, options.team, f"Fakes {name}".strip()
        )
        moments = found.moments[count]
        values[name] = frechet_distance(*moments.statistics(), *truth.statistics())
    return values
