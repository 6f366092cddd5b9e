"""A scene in any unit of length gives the same pictures, losses and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tiny import orbit_labels, pictures, tiny_config
from training.cameras import scale_label
from training.data.dataset import to_float
from training.gan.trainer import Trainer
from training.networks.generator import Generator

AUTO = ("rendering.ray_start=auto", "rendering.ray_end=auto", "rendering.length_unit=box")
FACTORS = [1e-6, 1e-3, 1e3, 1e6]


def images() -> Tensor:
    return to_float(torch.from_numpy(pictures(16)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("fused", [True, False])
def test_pictures_are_the_same_and_depths_scaled(
    factor: float, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fused:
        monkeypatch.setattr("training.rendering.renderer.fused_weights", lambda *_: None)
    outputs = []
    for size in (1.0, factor):
        torch.manual_seed(0)
        G = Generator(tiny_config(*AUTO, f"rendering.box_warp={1.3 * size}").model).eval()
        z, c = torch.randn(3, G.z_dim), scale_label(orbit_labels(3), size)
        outputs.append(G(z, c))
    plain, scaled = outputs
    assert float(plain.alpha.detach().max()) > 0.05
    for name in ("image", "image_raw", "alpha"):
        torch.testing.assert_close(
            getattr(scaled, name), getattr(plain, name), rtol=1e-4, atol=1e-5
        )
    torch.testing.assert_close(scaled.image_depth, plain.image_depth * factor, rtol=1e-4, atol=0)


@pytest.mark.parametrize("factor", FACTORS)
def test_training_goes_alike(factor: float) -> None:
    losses = []
    for size in (1.0, factor):
        labels = scale_label(orbit_labels(16), size)
        config = tiny_config(*AUTO, f"rendering.box_warp={1.3 * size}", "discriminator.c_noise=0.5")
        trainer = Trainer(config, labels, torch.device("cpu"))
        for first in (0, 4, 8):
            trainer.step(images()[first : first + 4], labels[first : first + 4])
        values = trainer.statistics.collect()
        told = ("Loss/", "Depth/")
        losses.append({name: v["mean"] for name, v in values.items() if name.startswith(told)})
    assert losses[1] == pytest.approx(losses[0], rel=2e-3, abs=1e-5)


def test_released_scenes_stay_in_world_units() -> None:
    torch.manual_seed(0)
    G = Generator(tiny_config("rendering.box_warp=1.3").model).eval()
    planes, points = (
        G.planes(G.mapping(torch.randn(1, G.z_dim), orbit_labels(1))),
        torch.rand(1, 9, 3),
    )
    before = G.query_density(points, planes)
    shown = G.render(planes, torch.zeros(1, G.num_ws, G.w_dim), orbit_labels(1)).alpha
    G.rendering.length_unit = "box"
    assert torch.equal(G.query_density(points, planes), before)
    assert not torch.allclose(
        G.render(planes, torch.zeros(1, G.num_ws, G.w_dim), orbit_labels(1)).alpha, shown
    )
