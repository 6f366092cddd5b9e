"""Traits of fakes (hair, noses, mouths, ...) beside those of reals, as read by a regressor that was
trained on reals whose true traits are known.

The regressor is linear (ridge regression) on feature maps of a network, looked up where a grid of
points on the face lies in each picture. The camera tells where that is, so a turned head's nose is
looked for where it is; averages over whole pictures, which the other metrics use, do not tell
noses, mouths and chins apart. Formulas in docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance
from torch import Tensor

from dnnlib.console import UserError
from metrics.detectors import Detector
from metrics.geometry import project, sample_at
from metrics.options import Measured, MetricOptions
from metrics.processes import WorkerGroup
from metrics.reals import RealImages, cached_arrays, software
from metrics.sampling import GeneratorSampler

Array = NDArray[np.float64]

LARGEST_TRAINING, FEWEST_TRAINING = 3000, 100  # reals that the regressor learns from
PENALTIES = 10.0 ** np.arange(-4, 3)  # of ridge regression, in units of the mean eigenvalue
READABLE = 0.2  # share of a trait's variance that must be explained in reals held out
MISSED = 3.0  # distance, in units of reals to reals, from which on a trait is named as missed
SPLITS = 16  # of the reals held out, over which distances are averaged
# Points of a face that looks along +z from the middle of a box of side 1, world units.
FACE_X, FACE_Y = np.linspace(-0.22, 0.22, 7), np.linspace(0.38, -0.34, 10)
FACE_Z, ROUNDNESS = 0.3, 1.2


@dataclass(frozen=True)
class Regressor:
    """Ridge regression of traits (N, T) on features (N, D), and how well it reads reals held out.

    Attributes:
        mean, weights, offset: traits = (features - mean) @ weights + offset.
        held_out: what it reads in the reals held out (M, T). r2: (T,) share of the variance of
            their true traits that it explains.
    """

    mean: Array
    weights: Array
    offset: Array
    held_out: Array
    r2: Array

    def read(self, features: Tensor) -> Tensor:
        """Traits (N, T), float64, of features (N, D)."""
        centred = features.double() - torch.from_numpy(self.mean)
        return centred @ torch.from_numpy(self.weights) + torch.from_numpy(self.offset)


def check_traits(reals: RealImages, detector: str, name: str, count: int) -> None:
    """Refuse data without traits or with too few pictures, and networks without feature maps.

    Raises:
        UserError: that says so.
    """
    needed = 2 * count + FEWEST_TRAINING
    if detector == "inception":
        raise UserError(f"{name} needs feature maps, which inception gives none of: {name}_lite0")
    if reals.traits()[0] is None or reals.labels is None:
        raise UserError(
            f"{name}: the traits of {reals.name} are not known; `dataset_tool.py heads` makes data"
            " that have them, `dataset_tool.py traits` adds them to older ones"
        )
    if reals.count < needed:
        raise UserError(
            f"{name} needs {needed} real pictures ({count} twice to compare with, the others to"
            f" learn from), {reals.name} has {reals.count}; use more data or ask for fewer"
        )


def compare_traits(
    sampler: GeneratorSampler,
    reals: RealImages,
    detector: Detector,
    options: MetricOptions,
    count: int,
) -> Measured:
    """Traits of `count` fakes beside those of twice as many reals, from which nothing was learnt.

    Raises:
        UserError: as `check_traits`.
    """
    check_traits(reals, detector.name, f"traits{count}", count)
    team = options.team
    regressor = trained_regressor(reals, detector, options, 2 * count)

    def read(start: int, size: int) -> Tensor:
        c = sampler.cameras(start, size)
        return regressor.read(local_features(detector, sampler(start, size), c))

    _, names = reals.traits()
    shape = (count, len(names))
    fakes = _collect(read, shape, torch.float64, options.batch, team, "Traits of fakes").numpy()
    return report(names, fakes, regressor)


def report(names: tuple[str, ...], fakes: Array, regressor: Regressor) -> Measured:
    """Distances of the readable traits of fakes (N, T) to those of the reals held out (2 N, T), in
    units of reals to reals.
    """
    held_out = regressor.held_out
    ratios = {
        name: trait_distance(fakes[:, index], held_out[:, index])
        for index, name in enumerate(names)
        if regressor.r2[index] >= READABLE
    }
    means = zip(fakes.mean(0), held_out.mean(0), strict=True)
    words = {
        name: f"{name} {ratios[name]:.1f} (mean {own:.3g}, reals {real:.3g})"
        for name, (own, real) in zip(names, means, strict=True)
        if ratios.get(name, 0) > MISSED
    }
    missed = sorted(words, key=lambda name: -ratios[name])
    summary = {
        "": float(np.mean(list(ratios.values()))) if ratios else float("nan"),
        "worst": max(ratios.values(), default=float("nan")),
        "missed": float(len(missed)),
    }
    read = {name: round(float(r2), 3) for name, r2 in zip(names, regressor.r2, strict=True)}
    protocol = {
        "missed": ", ".join(words[name] for name in missed) or "none",
        "not_readable": ", ".join(name for name in names if name not in ratios) or "none",
        "explained_variance_held_out": ", ".join(f"{name} {r2}" for name, r2 in read.items()),
    }
    return summary | ratios, protocol


def trait_distance(fakes: Array, reals: Array) -> float:
    """Wasserstein distance of fakes (N,) to half of the reals (2 N,), over that of the other half
    to it; both averaged over random halves. 1 where fakes are like reals.
    """
    random = np.random.RandomState(0)
    distances = np.zeros(2)
    for _ in range(SPLITS):
        first, second = np.array_split(random.permutation(reals), 2)
        distances += wasserstein_distance(fakes, first), wasserstein_distance(second, first)
    return float(distances[0] / max(distances[1], 1e-30))


# --------------------------------------------------------------------------------------------------
# The regressor


def local_features(detector: Detector, images: Tensor, c: Tensor) -> Tensor:
    """Features of uint8 pictures (N, 3, H, W) at the points of the face that cameras (N, 25)
    see: (N, D), float32 on the CPU.
    """
    assert detector.maps is not None
    y, x = np.meshgrid(FACE_Y, FACE_X, indexing="ij")
    points = torch.from_numpy(np.stack([x, y, FACE_Z - ROUNDNESS * x**2])).float()
    with torch.no_grad():
        maps = detector.maps(images.to(detector.device))
        c = c.to(maps)
        places = project(points.to(c).expand(len(c), -1, -1, -1), c)[0]
        return sample_at(maps, places).flatten(1).cpu()


def trained_regressor(
    reals: RealImages, detector: Detector, options: MetricOptions, held_out: int
) -> Regressor:
    """The regressor of a data set, from the cache where it is there: the first `held_out` reals of
    the fixed order are left for comparisons, and their heads are in none of the others.
    """
    (traits, names), labels = reals.traits(), reals.labels
    assert traits is not None
    assert labels is not None
    order, team = reals.chosen(reals.count), options.team
    _, heads = np.unique(traits.numpy(), axis=0, return_inverse=True)
    fresh = ~np.isin(heads[order], heads[order[:held_out]])
    indices = np.concatenate([order[:held_out], order[fresh][:LARGEST_TRAINING]])
    if len(indices) < held_out + FEWEST_TRAINING:
        raise UserError(
            f"traits: {reals.name} has too few heads besides those that are compared with; use"
            " more data, or ask for fewer"
        )

    def read(start: int, size: int) -> Tensor:
        part = indices[start : start + size]
        return local_features(detector, reals.read(part), labels[torch.from_numpy(part)])

    def compute() -> dict[str, np.ndarray]:
        size = (len(indices), read(0, 1).shape[1])
        rows = _collect(read, size, torch.float32, options.batch, team, "Traits of reals")
        return fit(rows, traits[torch.from_numpy(indices)].double(), held_out)

    key = {
        "traits": list(names),
        "data": reals.key,
        "values": float(traits.double().square().sum()),
        "pictures": [held_out, len(indices)],
        "device": options.device.type,
        **detector.protocol,
        **software(),
    }
    return Regressor(**cached_arrays(key, team, compute))


def _collect(
    read: Callable[[int, int], Tensor],
    shape: tuple[int, int],
    dtype: torch.dtype,
    batch: int,
    team: WorkerGroup,
    description: str,
) -> Tensor:
    """Rows (count, D) that `read` gives; the processes of `team` share them."""
    rows = torch.zeros(shape, dtype=dtype)
    for start, count in team.shown_batches(shape[0], batch, description):
        rows[start : start + count] = read(start, count)
    return team.sum(rows)


def fit(features: Tensor, traits: Tensor, held_out: int) -> dict[str, np.ndarray]:
    """Fields of the `Regressor` of features (N, D) and traits (N, T); the first `held_out` rows are
    not learnt from.

    Ridge regression in its dual form, as there are more features than pictures; the penalty of each
    trait is that of the least leave-one-out error (Hastie et al., The Elements of Statistical
    Learning, 2009, section 7.10).
    """
    mean = features[held_out:].mean(0)
    scale = features[held_out:].std(0).clamp(min=1e-6)
    rows = (features - mean) / scale
    known, truth = rows[held_out:], traits[held_out:]
    centred = truth - truth.mean(0)
    values, vectors = torch.linalg.eigh((known @ known.T).double())
    projected, unit = vectors.T @ centred, float(values.mean())
    best = torch.full((traits.shape[1],), torch.inf, dtype=torch.float64)
    dual = torch.zeros_like(centred)
    for penalty in PENALTIES:
        shrunk = 1 / (values.clamp(min=0) + penalty * unit)
        candidate = (vectors * shrunk) @ projected
        left_out = candidate / (vectors.square() @ shrunk)[:, None]
        error = left_out.square().mean(0)
        is_better = error < best
        best, dual = torch.where(is_better, error, best), torch.where(is_better, candidate, dual)
    weights = (known.T.double() @ dual) / scale[:, None].double()
    read = (features[:held_out].double() - mean.double()) @ weights + truth.mean(0)
    missing = (traits[:held_out] - read).square().mean(0)
    r2 = 1 - missing / traits[:held_out].var(0, correction=0).clamp(min=1e-12)
    fields = {"mean": mean, "weights": weights, "offset": truth.mean(0), "held_out": read, "r2": r2}
    return {name: value.double().numpy() for name, value in fields.items()}
