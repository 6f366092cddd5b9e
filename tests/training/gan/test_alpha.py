"""Training on pictures with alpha: reals and fakes over the same colours, or alpha shown to D."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from tests.tiny import RESOLUTION, differing, orbit_labels, tiny_config
from training.config.settings import Config
from training.gan import loss
from training.gan.trainer import Trainer
from training.networks.generator import Generator

SCHEDULE = loss.Schedule(16, 0.0, 0.0)


def config_of(mode: str) -> Config:
    # limits within which rays see something and pass beside it
    scene = ("rendering.ray_start=1.5", "rendering.ray_end=2.5", "rendering.density_gain=2")
    return tiny_config(f"rendering.alpha={mode}", *scene, "training.gamma_fakes=1")


def cut_out_pictures(count: int) -> Tensor:
    """Straight colours and alpha (count, 4, RESOLUTION, RESOLUTION) in [-1, 1]."""
    return torch.rand(count, 4, RESOLUTION, RESOLUTION) * 2 - 1


def trainer_of(mode: str) -> Trainer:
    return Trainer(config_of(mode), orbit_labels(8), torch.device("cpu"))


@torch.no_grad()
def test_fakes_lie_over_the_colours_that_are_given() -> None:
    torch.manual_seed(0)
    generator = Generator(config_of("composite").model)
    z, c = torch.randn(2, 8), orbit_labels(2)
    ws = generator.mapping(z, c)
    colours = torch.tensor([[0.4, -0.2, 1.0], [-0.9, 0.0, 0.3]])
    black = generator.synthesis(ws, c, background=torch.full((2, 3), -1.0))
    over = generator.synthesis(ws, c, background=colours)
    assert 0.01 < black.alpha.mean() < 0.99
    shown = (colours[:, :, None, None] + 1) * (1 - black.alpha)
    torch.testing.assert_close(over.image_raw, black.image_raw + shown)
    assert torch.equal(over.alpha, black.alpha)
    assert not torch.equal(over.image, black.image)
    generator.rendering.background = (0.7, 0.4, 1.0)
    usual = generator.synthesis(ws, c).image_raw[:1]
    torch.testing.assert_close(usual, over.image_raw[:1], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_reals_lie_over_the_same_colours() -> None:
    images, colours = cut_out_pictures(3), torch.rand(3, 3) * 2 - 1
    image, raw = loss.real_pictures(images, SCHEDULE, colours)
    alpha = (images[:, 3:] + 1) / 2
    expected = alpha * images[:, :3] + (1 - alpha) * colours[:, :, None, None]
    torch.testing.assert_close(image, expected)
    assert raw.shape == (3, 3, 16, 16)
    black = torch.full((3, 3), -1.0)
    image, raw = loss.real_pictures(images, SCHEDULE, black, judges_alpha=True)
    assert raw.shape == (3, 4, 16, 16)
    torch.testing.assert_close(image[:, 3:], images[:, 3:])
    torch.testing.assert_close(image[:, :3], alpha * (images[:, :3] + 1) - 1)


def test_colours_are_random_or_black() -> None:
    device = torch.device("cpu")
    assert loss.backgrounds("ignore", 4, device) is None
    drawn = loss.backgrounds("composite", 1000, device)
    assert drawn is not None
    assert drawn.shape == (1000, 3)
    assert abs(float(drawn.mean())) < 0.1
    assert drawn.min() >= -1
    assert drawn.max() <= 1
    black = loss.backgrounds("judge", 2, device)
    assert black is not None
    assert torch.equal(black, torch.full((2, 3), -1.0))


@pytest.mark.parametrize("mode", ["composite", "judge"])
def test_a_run_goes_on_as_if_it_had_not_stopped(mode: str) -> None:
    torch.manual_seed(0)
    batches = [(cut_out_pictures(4), orbit_labels(4, seed)) for seed in range(2)]
    whole = trainer_of(mode)
    channels = 8 if mode == "judge" else 6
    assert whole.D.get_submodule(f"b{RESOLUTION}.fromrgb").weight.shape[1] == channels
    before = {name: value.clone() for name, value in whole.G.state_dict().items()}
    whole.step(*batches[0])
    assert all(value.isfinite().all() for value in whole.G.state_dict().values())
    assert differing(before, whole.G.state_dict())
    resumed = trainer_of(mode)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for trainer in (whole, resumed):
        trainer.step(*batches[1])
    assert not differing(whole.state_dict(), resumed.state_dict())


def test_alpha_reaches_the_discriminator() -> None:
    """D's view of the fakes changes with their alpha where it judges that, and only there."""
    torch.manual_seed(0)
    generator = Generator(config_of("judge").model)
    fakes = generator(torch.randn(1, 8), orbit_labels(1))
    other = replace_alpha(fakes)
    for judges, is_same in ((True, False), (False, True)):
        first, second = (loss.fake_pictures(one, SCHEDULE, judges) for one in (fakes, other))
        assert all(map(torch.equal, first, second)) == is_same


def replace_alpha(fakes: loss.GeneratorOutput) -> loss.GeneratorOutput:
    return fakes._replace(alpha=1 - fakes.alpha)
