"""Traits of fakes beside those of reals, where the picture shows the traits as plain colours."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from dnnlib.console import UserError
from metrics import traits as module
from metrics.detectors import Detector
from metrics.evaluate import evaluate
from metrics.options import MetricOptions
from metrics.reals import RealImages, no_traits
from metrics.traits import check_traits, fit, local_features, trait_distance
from tests.metrics.scenes import Scene, draw_camera, sampler_of

NAMES = ("red", "green", "luck")


class Plain(Scene):
    """Pictures of one colour: red and green are the first two latents; red can be stuck."""

    def __init__(self, red: float | None = None) -> None:
        super().__init__(size=16, raw=8)
        self.red = red

    def render(self, planes: Tensor, ws: Tensor, c: Tensor, *rest: Any, **options: Any) -> Any:
        rendered = super().render(planes, ws, c, *rest, **options)
        colour = torch.cat([planes[:, 0, :2, 0, 0] / 4, torch.zeros(len(c), 1)], 1)
        if self.red is not None:
            colour[:, 0] = self.red
        return rendered._replace(image=colour[:, :, None, None].expand(-1, -1, 16, 16))


def detector(*_: Any) -> Detector:
    def maps(images: Tensor) -> Tensor:
        return images.float()[:, :, ::2, ::2]

    return Detector(
        "lite0", "0" * 64, "test", lambda _: NotImplemented, 6, 6, torch.device("cpu"), maps
    )


def reals_of(count: int) -> RealImages:
    sampler = sampler_of(Plain(), seed=50_000)
    random = np.random.RandomState(3)
    labels = torch.stack([draw_camera(random) for _ in range(count)])
    known = torch.cat(
        [sampler.latents(0, count)[:, :2], torch.from_numpy(random.randn(count, 1))], 1
    )

    def read(indices: np.ndarray) -> Tensor:
        return torch.cat([sampler(int(index), 1) for index in indices])

    return RealImages(
        count, 16, "key", read, labels, name="plain", traits=lambda: (known.double(), NAMES)
    )


@pytest.fixture
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path))
    monkeypatch.setattr("metrics.generator_metrics.load_detector", detector)


@pytest.mark.usefixtures("_cache")
def test_a_trait_that_fakes_lack_is_named_and_one_that_pictures_do_not_show_is_not():
    reals, options = reals_of(300), MetricOptions(batch=32)
    like, stuck = (
        evaluate(["traits80_lite0"], sampler_of(Plain(red)), reals, options)[0]
        for red in (None, 0.1)
    )
    assert set(like.values) == {
        f"traits80_lite0{end}" for end in ("", "_worst", "_missed", "_red", "_green")
    }
    assert like.values["traits80_lite0_missed"] == 0
    assert like.values["traits80_lite0_worst"] < 3
    assert like.protocol["missed"] == "none"
    assert like.protocol["not_readable"] == "luck"
    read = dict(part.split() for part in like.protocol["explained_variance_held_out"].split(", "))
    assert float(read["red"]) > 0.95 > 0.1 > float(read["luck"])
    assert stuck.values["traits80_lite0_red"] > 3
    assert stuck.values["traits80_lite0_green"] == pytest.approx(
        like.values["traits80_lite0_green"], rel=0.05
    )
    assert stuck.values["traits80_lite0_missed"] == 1
    assert stuck.protocol["missed"].startswith("red ")
    assert "(mean 0.39" in stuck.protocol["missed"]  # what the colour 0.1 says of red


@pytest.mark.usefixtures("_cache")
def test_the_regressor_is_trained_once_a_data_set(monkeypatch: pytest.MonkeyPatch):
    fits = []

    def counted(*given: Any) -> dict[str, np.ndarray]:
        fits.append(given)
        return fit(*given)

    monkeypatch.setattr(module, "fit", counted)
    for _ in range(2):
        evaluate(["traits60_lite0"], sampler_of(Plain()), reals_of(240), MetricOptions(batch=64))
    assert len(fits) == 1


def test_heads_that_are_held_out_are_not_learnt_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path))
    reals = reals_of(400)
    known, names = reals.traits()
    assert known is not None
    twice = known[torch.arange(400) // 2]  # two views a head
    reals = dataclasses.replace(reals, traits=lambda: (twice, names))
    seen: list[Tensor] = []

    def noted(rows: Tensor, traits: Tensor, held_out: int) -> dict[str, np.ndarray]:
        seen.append(traits)
        return fit(rows, traits, held_out)

    monkeypatch.setattr(module, "fit", noted)
    module.trained_regressor(reals, detector(), MetricOptions(batch=64), 100)
    held_out, learnt = seen[0][:100], seen[0][100:]
    assert len(learnt) >= 100
    assert not (held_out[:, None] == learnt).all(2).any()


def test_ridge_regression_is_scikit_learns_formula():
    """Against the normal equations in float64, with the penalty whose leave-one-out error, by
    leaving out each row in turn, is the least.
    """
    random = np.random.RandomState(0)
    rows = random.randn(40, 12) * np.linspace(0.5, 3, 12) + 2
    truth = rows @ random.randn(12, 2) + 2 * random.randn(40, 2)
    found = fit(torch.from_numpy(rows), torch.from_numpy(truth), held_out=10)
    known, wanted = rows[10:], truth[10:]
    z = (known - known.mean(0)) / known.std(0, ddof=1)
    gram = z @ z.T
    unit = np.linalg.eigvalsh(gram).mean()
    centred = wanted - wanted.mean(0)

    def weights(penalty: float, keep: np.ndarray) -> np.ndarray:
        part = z[keep]
        return np.linalg.solve(part.T @ part + penalty * unit * np.eye(12), part.T @ centred[keep])

    errors = [
        np.mean(
            [(centred[i] - z[i] @ weights(penalty, np.arange(30) != i)) ** 2 for i in range(30)],
            axis=0,
        )
        for penalty in module.PENALTIES
    ]
    best = np.argmin(errors, axis=0)
    expected = np.stack(
        [weights(module.PENALTIES[k], np.arange(30) >= 0)[:, t] for t, k in enumerate(best)], 1
    )
    np.testing.assert_allclose(
        found["weights"] * known.std(0, ddof=1)[:, None], expected, rtol=1e-6
    )
    read = (rows[:10] - known.mean(0)) / known.std(0, ddof=1) @ expected + wanted.mean(0)
    np.testing.assert_allclose(found["held_out"], read, rtol=1e-6)
    r2 = 1 - ((truth[:10] - read) ** 2).mean(0) / truth[:10].var(0)
    np.testing.assert_allclose(found["r2"], r2, rtol=1e-6)


def test_distance_is_in_units_of_reals_to_reals():
    random = np.random.RandomState(1)
    reals = random.randn(2000)
    assert trait_distance(random.randn(1000), reals) == pytest.approx(1, abs=0.6)
    unit = np.mean(
        [wasserstein_distance(*np.array_split(random.permutation(reals), 2)) for _ in range(50)]
    )
    assert trait_distance(random.randn(1000) + 2, reals) == pytest.approx(2 / unit, rel=0.15)


def test_points_of_the_face_are_followed_as_the_camera_turns():
    """A map that is the pixel's place: features are then the places of the points."""
    place = torch.stack(torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij"))
    network = Detector(
        "lite0",
        "",
        "",
        lambda _: NotImplemented,
        1,
        1,
        torch.device("cpu"),
        lambda images: place.expand(len(images), -1, -1, -1),
    )
    c = torch.stack([draw_camera(np.random.RandomState(index)) for index in range(3)])
    rows = local_features(network, torch.zeros(3, 3, 64, 64, dtype=torch.uint8), c)
    found = rows.unflatten(1, (2, len(module.FACE_Y), len(module.FACE_X)))
    for index in range(3):
        world = np.array([module.FACE_X[5], module.FACE_Y[2], 0])
        world[2] = module.FACE_Z - module.ROUNDNESS * world[0] ** 2
        pose = c[index, :16].reshape(4, 4).double().numpy()
        x, y, z = np.linalg.inv(pose)[:3] @ np.append(world, 1)
        focal = float(c[index, 16])
        expected = [64 * (focal * y / z + 0.5) - 0.5, 64 * (focal * x / z + 0.5) - 0.5]
        np.testing.assert_allclose(found[index, :, 2, 5], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"traits": no_traits}, "`dataset_tool.py traits`"),
        ({"count": 250}, "needs 260 real pictures"),
        ({}, "inception"),
    ],
)
def test_what_cannot_be_read_is_refused(change: dict[str, Any], words: str):
    reals = dataclasses.replace(reals_of(260), **change)
    with pytest.raises(UserError, match=words):
        check_traits(reals, "lite0" if change else "inception", "traits80", 80)
