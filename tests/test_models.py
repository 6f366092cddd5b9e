"""The model that comes with the program: what it promises, on a few seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from media.pictures.grids import seed_latent
from metrics.consistency import view_consistency
from metrics.processes import WorkerGroup
from metrics.sampling import GeneratorSampler
from open_eg3d import SHIPPED_MODEL, load_generator
from training.cameras import cameras_of
from training.networks.generator import Generator, GeneratorOutput

SEEDS = range(6)
YAWS = (-40.0, 0.0, 40.0)  # degrees


@pytest.fixture(scope="module")
def generator() -> Generator:
    return load_generator(SHIPPED_MODEL)


@torch.no_grad()
def heads(generator: Generator, yaw: float) -> GeneratorOutput:
    """All seeds from one side."""
    cameras = cameras_of(generator)
    z = torch.cat([seed_latent(seed, generator.z_dim) for seed in SEEDS])
    ws = generator.mapping(z, cameras.frontal_label().expand(len(z), -1))
    return generator.synthesis(
        ws, cameras.label(math.radians(yaw), cameras.pitch).expand(len(z), -1)
    )


def psnr(first: Tensor, second: Tensor) -> float:
    return float(10 * torch.log10(4 / (first - second).square().mean()))


@pytest.fixture
def low_precision(generator: Generator) -> Iterator[None]:
    generator.set_conv_dtype(torch.bfloat16, torch.bfloat16)
    yield
    generator.set_conv_dtype(torch.float32, torch.float32)


def test_it_is_small_and_of_the_heads() -> None:
    assert SHIPPED_MODEL.stat().st_size < 12e6  # with an encoder
    assert Path(SHIPPED_MODEL).parent.joinpath("README.md").exists()


@pytest.mark.parametrize("yaw", YAWS)
def test_bf16_shows_the_same(
    generator: Generator, yaw: float, request: pytest.FixtureRequest
) -> None:
    exact = heads(generator, yaw)
    request.getfixturevalue("low_precision")
    rounded = heads(generator, yaw)
    assert psnr(rounded.image, exact.image) > 40
    assert psnr(rounded.image_raw, exact.image_raw) > 40


@pytest.mark.parametrize("yaw", YAWS)
def test_heads_fill_their_part_of_the_picture_and_have_relief(
    generator: Generator, yaw: float
) -> None:
    shown = heads(generator, yaw)
    alpha = shown.alpha.mean(dim=(1, 2, 3))
    assert ((alpha > 0.25) & (alpha < 0.75)).all()
    for depth, weight in zip(shown.image_depth, shown.alpha, strict=True):
        assert float(depth[weight > 0.9].std()) > 0.05  # a flat card has none; heads are 0.2 deep
    border = shown.alpha[:, :, :2]
    assert border.mean() < 0.1  # nothing floats above the heads


def test_people_differ(generator: Generator) -> None:
    images = heads(generator, 0.0).image
    distances = [psnr(images[i], images[j]) for i in SEEDS for j in SEEDS if i < j]
    assert max(distances) < 25
    assert images.std(dim=0).mean() > 0.1


def test_a_head_stays_the_same_as_it_turns(generator: Generator) -> None:
    cameras = cameras_of(generator)
    poses = cameras.poses
    sampler = GeneratorSampler(
        generator, lambda random: poses[random.randint(len(poses))], torch.device("cpu")
    )
    values = view_consistency(sampler, 16, 8, WorkerGroup())
    assert values["psnr_raw"] > 26
    assert values["share"] > 0.7


def test_raw_and_picture_have_the_same_colours(generator: Generator) -> None:
    """Median over all pixels of the object, after resizing to one size; 0 to 255."""
    for yaw in YAWS:
        shown = heads(generator, yaw)
        size = shown.image.shape[-2:]
        raw = torch.nn.functional.interpolate(shown.image_raw, size, mode="bilinear")
        alpha = torch.nn.functional.interpolate(shown.alpha, size, mode="bilinear")
        difference = (shown.image - raw).abs().amax(dim=1) * 127.5
        for seed, one, weight in zip(SEEDS, difference, alpha[:, 0], strict=True):
            assert float(one[weight > 0.5].median()) < 6, (seed, yaw)


@torch.no_grad()
def test_few_samples_near_the_surface_show_what_many_show(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures of docs/consistency.md, on one seed at 128 pixels."""
    cameras = cameras_of(generator)
    z = seed_latent(0, generator.z_dim)
    ws = generator.mapping(z, cameras.frontal_label()[None])
    c, planes = cameras.label([-0.5, 0.2], cameras.pitch), generator.planes(ws)

    def rendered(first_pass: str, first: int, second: int) -> Tensor:
        monkeypatch.setattr(generator.rendering, "first_pass", first_pass)
        monkeypatch.setattr(generator.rendering, "depth_resolution", first)
        monkeypatch.setattr(generator.rendering, "depth_resolution_importance", second)
        return generator.render(planes, ws, c, 128).image_raw

    many = rendered("full", 512, 0)
    for count, least in ((8, 36), (16, 40)):
        assert psnr(rendered("quarter", 48, count), many) > least
        assert psnr(rendered("full", count // 2, count // 2), many) < least - 8
