"""Signs of collapse: against formulas in float64 and on generators that have collapsed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests.tiny import orbit_labels, tiny_config
from training.gan import health
from training.gan.loss import Schedule, real_pictures
from training.networks.discriminator import make_discriminator
from training.networks.generator import Generator


def make_generator() -> Generator:
    torch.manual_seed(0)
    return Generator(tiny_config("generator.z_dim=32", "generator.w_dim=32").model).eval()


def test_share_and_cosine_against_loops() -> None:
    G, c = make_generator(), orbit_labels(1)[0]
    found = health.spread_of_ws(G, c)
    z = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
    w = G.mapping(z, c.expand(256, -1))[:, 0].detach().double().numpy()
    share = w.var(axis=0, ddof=1).sum() / (w**2).sum(axis=1).mean()
    units = [row / np.linalg.norm(row) for row in w]
    cosine = np.mean([a @ b for a, b in itertools.combinations(units, 2)])
    assert found["Spread/w"] == pytest.approx(share)
    assert found["Spread/w_cosine"] == pytest.approx(cosine)


def test_distance_of_pictures_against_loops() -> None:
    pictures = torch.rand(7, 3, 16, 16) * 2 - 1
    pairs = itertools.combinations(pictures.double().numpy(), 2)
    expected = np.sqrt(np.mean([((a - b) ** 2).mean() for a, b in pairs]))
    found = health.spread_of_pictures(pictures)
    assert found["Spread/pixels"] == pytest.approx(expected)
    assert found["Spread/features"] > 0


def test_a_generator_that_ignores_its_latents_has_no_spread() -> None:
    G, c = make_generator(), orbit_labels(1)[0]
    alive = health.spread_of_pictures(health.fakes_at_one_camera(G, c))
    for layer in (0, 1):
        G.backbone.mapping.get_parameter(f"fc{layer}.weight").data.zero_()
    G.backbone.mapping.get_parameter("fc1.bias").data.fill_(50.0)
    collapsed = health.spread_of_pictures(health.fakes_at_one_camera(G, c))
    assert alive["Spread/pixels"] > 0
    assert collapsed["Spread/pixels"] < alive["Spread/pixels"] * 1e-3
    assert collapsed["Spread/features"] < alive["Spread/features"] * 1e-3
    assert health.spread_of_ws(G, c)["Spread/w"] < 1e-6
    assert health.spread_of_ws(G, c)["Spread/w_cosine"] == pytest.approx(1)


def test_looking_draws_no_random_numbers() -> None:
    G, c = make_generator(), orbit_labels(1)[0]
    state = torch.get_rng_state()
    health.spread_of_ws(G, c)
    health.fakes_at_one_camera(G, c)
    assert torch.equal(torch.get_rng_state(), state)


def test_reals_near_a_camera_are_the_nearest() -> None:
    labels = orbit_labels(100)
    chosen = health.reals_near_one_camera(labels, labels[40])
    assert len(chosen) == health.PICTURES
    assert int(chosen[0]) == 40
    distances = (labels - labels[40]).norm(dim=1)
    rest = torch.ones(100, dtype=torch.bool)
    rest[chosen] = False
    assert distances[chosen].max() <= distances[rest].min()


def test_a_watch_compares_with_the_reals_and_warns() -> None:
    G, c = make_generator(), orbit_labels(1)[0]
    fakes = health.fakes_at_one_camera(G, c)
    same = health.CollapseWatch(c, fakes).look(G)
    assert same["Spread/pixels"] == pytest.approx(1)
    assert same["Spread/features"] == pytest.approx(1)
    assert health.collapse_warning(same) is None
    wider = health.CollapseWatch(c, (fakes - fakes.mean(0)) * 20).look(G)
    assert wider["Spread/pixels"] == pytest.approx(1 / 20)
    assert "4 % of the reals' spread" in str(health.collapse_warning(wider))


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_discriminator_is_asked_about_reals_that_it_knows_and_others(noise: float) -> None:
    torch.manual_seed(1)
    D = make_discriminator(tiny_config(f"discriminator.c_noise={noise}").model)
    known, others = (
        health.JudgedReals(torch.rand(count, 3, 32, 32) * 2 - 1, orbit_labels(count))
        for count in (6, 6)
    )
    state, schedule = torch.get_rng_state(), Schedule(8, 0.0, 0.0)
    found = health.RealsWatch(known, others, 4, torch.device("cpu")).look(D, schedule)
    assert torch.equal(state, torch.get_rng_state())
    assert len(found) == 4
    if noise:
        return
    for name, reals in (("trained_on", known), ("held_out", others)):
        logits = [
            value
            for part in (slice(0, 4), slice(4, 6))
            for value in D(*real_pictures(reals.images[part], schedule), reals.c[part]).tolist()
        ]
        assert found[f"Reals/logits_{name}"] == pytest.approx(np.mean(logits), rel=1e-5)
        assert found[f"Reals/accuracy_{name}"] == pytest.approx(np.mean(np.array(logits) > 0))
