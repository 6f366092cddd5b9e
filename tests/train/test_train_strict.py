"""Pictures straight from the renderer: `superresolution.kind=none`."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import calc_metrics
import export
import gen_samples
import gen_videos
from dnnlib.console import UserError
from tests.tiny import (
    RESOLUTION,
    TINY_OPTIONS,
    call,
    differing,
    kimg,
    only_run,
    orbit_labels,
    state_in,
    tiny_config,
    write_dataset,
)
from tests.train.runs import snapshot_in, train_here
from training.config.checks import check_config
from training.config.presets import make_config
from training.config.settings import Config, set_option
from training.gan import loss
from training.networks.discriminator import make_discriminator
from training.networks.generator import Generator
from training.run.settings import enlarged, settle

STRICT = "superresolution.kind=none"
OPTIONS = (*TINY_OPTIONS, "--set", STRICT, "--set", f"rendering.resolution={RESOLUTION}")


def strict_config(*assignments: str) -> Config:
    config = tiny_config(STRICT, f"rendering.resolution={RESOLUTION}", *assignments)
    settle(config, {"rendering.resolution"})
    return config


@torch.no_grad()
def test_the_rendering_is_the_picture() -> None:
    torch.manual_seed(0)
    generator = Generator(strict_config().model)
    out = generator(torch.randn(2, generator.z_dim), orbit_labels(2))
    assert torch.equal(out.image, out.image_raw)
    assert out.image.shape == (2, 3, RESOLUTION, RESOLUTION)
    assert out.alpha.shape[-1] == RESOLUTION
    assert generator.decoder.net[2].weight.shape[0] == 1 + 3  # density and colour, no features
    small = generator(
        torch.randn(2, generator.z_dim), orbit_labels(2), neural_rendering_resolution=8
    )
    assert small.image.shape == out.image.shape


def test_the_discriminator_judges_one_picture() -> None:
    torch.manual_seed(0)
    D = make_discriminator(strict_config().model)
    c = orbit_labels(4)
    pictures = loss.Pictures(*torch.randn(2, 4, 3, RESOLUTION, RESOLUTION))
    logits = D(*pictures, c)
    assert torch.equal(logits, D(pictures.image, pictures.image * 0, c))
    assert not torch.equal(logits, D(pictures.image * 0, pictures.image_raw, c))
    assert D.get_submodule(f"b{RESOLUTION}.fromrgb").weight.shape[1] == 3
    penalty = loss.slope_penalty(lambda shown: D(*shown, c), pictures, Config().training)
    image = pictures.image.requires_grad_()
    (expected,) = torch.autograd.grad(D(image, image.detach(), c).sum(), image)
    torch.testing.assert_close(penalty, expected.square().sum(dim=(1, 2, 3)))


def test_what_follows_from_it_is_settled() -> None:
    config = make_config("heads", 64, "laptop")
    set_option(config, STRICT)
    settle(config, set())
    assert config.model.rendering.resolution == 64
    assert config.model.discriminator.kind == "single"
    assert config.model.generator.decoder_colors == 3
    check_config(config, 1)
    assert enlarged(config.model, 128).rendering.resolution == 128
    other = copy.deepcopy(config)
    other.model.rendering.resolution = 32
    with pytest.raises(UserError, match=r"leave rendering\.resolution out"):
        check_config(other, 1)
    other = copy.deepcopy(config)
    other.training.resolution_initial = 32
    with pytest.raises(UserError, match="leave --nrr-initial out"):
        check_config(other, 1)
    settle(other, set())
    check_config(other, 1)
    other = copy.deepcopy(config)
    other.model.superresolution.kind = "standard"
    with pytest.raises(UserError, match=r"leave it out, or choose superresolution\.kind=none"):
        check_config(other, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, the second of them after a stop."""
    folder = tmp_path_factory.mktemp("strict")
    data = write_dataset(folder / "data.zip")
    options: tuple[str | Path, ...] = ("--data", data, *OPTIONS, "--outdir")
    train_here(*options, folder / "whole", "--kimg", kimg(2)).assert_done()
    train_here(*options, folder / "parts", "--kimg", kimg(1)).assert_done()
    parts = only_run(folder / "parts")
    train_here("--resume", parts, "--kimg", kimg(2)).assert_done()
    assert not differing(state_in(only_run(folder / "whole")), state_in(parts))
    return parts


def test_programs_take_such_a_model(run: Path, tmp_path: Path) -> None:
    network = ("--network", snapshot_in(run))
    call(
        gen_samples.main, *network, "--seeds", "0", "--outdir", tmp_path, "--views", "0"
    ).assert_done()
    picture = np.asarray(Image.open(tmp_path / "seed0000.png"))
    assert picture.shape == (RESOLUTION, RESOLUTION, 3)
    videos = ("--seeds", "0", "--frames", "2", "--outdir", tmp_path, "--transparent")
    call(gen_videos.main, *network, *videos).assert_done()
    page = ("--seeds", "0", "--dest", tmp_path / "page.html")
    call(export.main, *network, *page).assert_done()
    assert (tmp_path / "page.html").stat().st_size > 10_000
    call(export.main, *network, "--dest", tmp_path / "plain.pkl").assert_done()
    metrics = ("--metrics", "speed", "--device", "cpu")
    call(calc_metrics.main, "--network", tmp_path / "plain.pkl", *metrics).assert_done()
