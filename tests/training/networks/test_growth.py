"""Larger generators that begin with smaller ones' weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dnnlib.console import UserError
from tests.tiny import (
    TINY_OPTIONS,
    finish,
    kimg,
    only_run,
    orbit_labels,
    start,
    tiny_config,
    write_dataset,
)
from training.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_state,
    save_checkpoint,
)
from training.config.presets import make_config
from training.networks.discriminator import Discriminator, make_discriminator
from training.networks.generator import Generator
from training.networks.growth import grow_state
from training.networks.stylegan2 import SynthesisBlock
from training.run.settings import fine_tune

LARGER = (
    "generator.plane_resolution=32",
    "superresolution.input_resolution=32",
    "superresolution.channels=[4]",
)
NO_NOISE = "generator.use_noise=false"


def generator(*assignments: str, seed: int) -> Generator:
    torch.manual_seed(seed)
    return Generator(tiny_config(*assignments).model).eval()


def planes_of(network: Generator) -> Tensor:
    with torch.no_grad():
        return network.planes(
            network.mapping(torch.linspace(-2, 2, 16).view(2, 8), torch.zeros(2, 25))
        )


def upsample_in_loops(image: Tensor) -> Tensor:
    """Zeros inserted, the filter [1,3,3,1] with gain 4 in all, zeros outside, centred."""
    size = image.shape[-1]
    taps = {-1.5: 1 / 8, -0.5: 3 / 8, 0.5: 3 / 8, 1.5: 1 / 8}
    matrix = torch.zeros(2 * size, size, dtype=torch.float64)
    for fine in range(2 * size):
        for coarse in range(size):
            offset = fine - (2 * coarse + 0.5)
            matrix[fine, coarse] = 2 * taps.get(offset, 0)
    return matrix @ image.double() @ matrix.T


def test_a_grown_generator_begins_with_the_planes_of_the_smaller_one() -> None:
    small, large = generator(NO_NOISE, seed=0), generator(NO_NOISE, *LARGER, seed=1)
    grown = grow_state(large, small.state_dict())
    load_state(large, grown.state, "large")
    assert (grown.added, grown.dropped) == (["backbone.synthesis.b32"], ["superresolution.block1"])
    assert grown.describe() == "new backbone.synthesis.b32; left out superresolution.block1"
    torch.testing.assert_close(
        planes_of(large).double(), upsample_in_loops(planes_of(small)), rtol=1e-5, atol=1e-5
    )


def test_new_blocks_learn() -> None:
    small, large = generator(NO_NOISE, seed=0), generator(NO_NOISE, *LARGER, seed=1)
    load_state(large, grow_state(large, small.state_dict()).state, "large")
    block = large.get_submodule("backbone.synthesis.b32")
    assert isinstance(block, SynthesisBlock)
    planes = large.planes(large.mapping(torch.randn(1, 8), torch.zeros(1, 25)))
    (gradient,) = torch.autograd.grad(
        (planes * torch.randn_like(planes)).sum(), [block.torgb.weight]
    )
    assert gradient.abs().min() > 0
    assert block.conv1.weight.std() > 0.5


def test_weights_that_fit_are_taken_as_they_are() -> None:
    source, target = generator(seed=0), generator(seed=1)
    grown = grow_state(target, source.state_dict())
    assert grown.describe() == ""
    assert grown.state.keys() == source.state_dict().keys()
    assert all(torch.equal(grown.state[name], value) for name, value in source.state_dict().items())


def test_a_smaller_generator_leaves_blocks_out() -> None:
    large, small = (
        generator(NO_NOISE, "generator.plane_resolution=32", seed=0),
        generator(NO_NOISE, seed=1),
    )
    grown = grow_state(small, large.state_dict())
    load_state(small, grown.state, "small")
    assert (grown.added, grown.dropped) == ([], ["backbone.synthesis.b32"])


def discriminator(resolution: int, seed: int, *assignments: str) -> Discriminator:
    torch.manual_seed(seed)
    config = tiny_config(*assignments).model
    config.resolution = resolution
    D = make_discriminator(config)
    for name, value in D.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.3)
    return D


WIDE = ("discriminator.channel_base=2048", "discriminator.channel_max=32")
NARROW = ("discriminator.channel_base=256", "discriminator.channel_max=32")


def test_a_grown_discriminator_keeps_what_it_knew() -> None:
    small, large = discriminator(32, 0, *NARROW), discriminator(64, 1, *NARROW)
    taken = copy.deepcopy(small.state_dict())
    grown = grow_state(large, taken)
    load_state(large, grown.state, "large")
    assert (grown.added, grown.dropped) == (["b64"], [])
    state = large.state_dict()
    assert all(torch.equal(state[name], taken[name]) for name in state if name[:4] != "b64.")
    lost = {name for name in taken if name not in state}
    assert lost == {name for name in taken if name.startswith("b32.fromrgb.")}
    back = grow_state(small, state)
    load_state(small, back.state, "small")
    assert (back.added, back.dropped) == ([], ["b64"])


@pytest.mark.parametrize("resolution", [64, 128])
def test_a_grown_discriminator_says_of_large_pictures_what_the_small_one_said_of_halved_ones(
    resolution: int,
) -> None:
    small, large = discriminator(32, 0, *WIDE), discriminator(resolution, 1, *WIDE)
    load_state(large, grow_state(large, small.state_dict()).state, "large")
    pictures = torch.randn(4, 6, resolution, resolution)
    halved = pictures
    while halved.shape[-1] > 32:
        halved = halve_in_loops(halved)
    c = orbit_labels(4)
    expected = small(halved[:, :3], halved[:, 3:], c)
    found = large(pictures[:, :3], pictures[:, 3:], c)
    assert float(expected.std()) > 1e-2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def halve_in_loops(images: Tensor) -> Tensor:
    """Every second value of the images filtered by [1,3,3,1] / 8 each way, zeros outside."""
    size = images.shape[-1]
    matrix = torch.zeros(size // 2, size)
    for coarse in range(size // 2):
        for offset, tap in ((-1, 1 / 8), (0, 3 / 8), (1, 3 / 8), (2, 1 / 8)):
            if 0 <= 2 * coarse + offset < size:
                matrix[coarse, 2 * coarse + offset] = tap
    return matrix @ images @ matrix.T


def test_new_blocks_of_a_discriminator_learn() -> None:
    small, large = discriminator(32, 0, *WIDE), discriminator(64, 1, *WIDE)
    load_state(large, grow_state(large, small.state_dict()).state, "large")
    logits = large(torch.randn(4, 3, 64, 64), torch.randn(4, 3, 64, 64), orbit_labels(4))
    block = large.get_submodule("b64")
    gradients = torch.autograd.grad(
        logits.square().sum(), [block.get_parameter(f"{n}.weight") for n in ("conv1", "skip")]
    )
    for gradient in gradients:
        assert float(gradient.abs().amax(dim=(0, 2, 3)).min()) > 0  # of every channel


@pytest.mark.parametrize("data_resolution", [16, 48, 96])
def test_networks_that_doubling_does_not_bring_to_the_data_are_refused(
    tmp_path: Path, data_resolution: int
) -> None:
    save_checkpoint(
        tmp_path / "small.pkl",
        Checkpoint(config=tiny_config(), G_ema=generator(seed=0).state_dict()),
    )
    config = make_config("auto", data_resolution, "laptop")
    with pytest.raises(UserError, match="to that size, or to 2, 4, 8, "):
        fine_tune(config, str(tmp_path / "small.pkl"))


@pytest.mark.parametrize(
    "change",
    [
        "generator.channel_max=16",
        "generator.mapping_layers=3",
        "generator.plane_channels=8",
        NO_NOISE,
    ],
)
def test_what_is_no_matter_of_blocks_is_refused(change: str) -> None:
    source, target = generator(seed=0), generator(change, *LARGER, seed=1)
    with pytest.raises(UserError, match="do not fit"):
        load_state(target, grow_state(target, source.state_dict()).state, "target")


def test_on_the_command_line(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data.zip", count=8)
    options: tuple[str | Path, ...] = (
        "--data",
        data,
        *TINY_OPTIONS,
        "--set",
        NO_NOISE,
        "--kimg",
        kimg(1),
    )
    finish(start("train.py", *options, "--outdir", tmp_path / "small")).assert_done()
    small = next(only_run(tmp_path / "small").glob("*.pkl"))
    larger = tuple(text for setting in LARGER for text in ("--set", setting))
    finish(
        start("train.py", *options, "--outdir", tmp_path / "large", "--init-from", small, *larger)
    ).assert_done()
    run_dir = only_run(tmp_path / "large")
    assert (
        "new backbone.synthesis.b32; left out superresolution.block1"
        in (run_dir / "log.txt").read_text()
    )
    assert (
        json.loads((run_dir / "training_options.json").read_text())["model"]["generator"][
            "plane_resolution"
        ]
        == 32
    )
    grown = load_checkpoint(next(run_dir.glob("*.pkl")))
    assert grown.G_ema is not None
    assert "backbone.synthesis.b32.torgb.weight" in grown.G_ema
    assert "superresolution.block1.torgb.weight" not in grown.G_ema


def test_pictures_of_twice_the_size_go_on_from_smaller_ones(tmp_path: Path) -> None:
    small_data = write_dataset(tmp_path / "small.zip", count=8)
    large_data = write_dataset(tmp_path / "large.zip", count=8, resolution=64)
    whole = ("superresolution.input_resolution=32", "superresolution.channels=[4]", NO_NOISE)
    options = (*TINY_OPTIONS, "--kimg", kimg(1), *(t for name in whole for t in ("--set", name)))
    finish(
        start("train.py", *options, "--data", small_data, "--outdir", tmp_path / "small")
    ).assert_done()
    small = next(only_run(tmp_path / "small").glob("*.pkl"))
    finish(
        start(
            "train.py",
            *("--data", large_data, "--kimg", kimg(1), "--batch", "4", "--init-from", small),
            *("--outdir", tmp_path / "large"),
        )
    ).assert_done()
    run_dir = only_run(tmp_path / "large")
    log = (run_dir / "log.txt").read_text()
    assert "generator: new superresolution.block1; discriminator: new b64" in log
    grown = Generator(load_checkpoint(next(run_dir.glob("*.pkl"))).config.model)
    assert grown.config.resolution == 64
    first = np.asarray(Image.open(run_dir / "fakes-000000.png").convert("RGB"))
    last = small.with_name(small.stem.replace("network-snapshot", "fakes") + ".png")
    before = np.asarray(Image.open(last).convert("RGB"))
    assert first.shape[0] > before.shape[0]
