"""Super-resolution: the structure each size has, and what flows through it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import references
from training.config.settings import GeneratorConfig, ModelConfig, SuperResolutionConfig
from training.networks.stylegan2 import SynthesisBlock
from training.networks.superresolution import SuperResolution

# Output -> input size, (size, channels) of each block.
PUBLISHED: dict[int, tuple[int, list[tuple[int, int]]]] = {
    32: (16, [(16, 128), (32, 64)]),
    64: (32, [(32, 128), (64, 64)]),
    128: (64, [(64, 128), (128, 64)]),
    256: (128, [(128, 128), (256, 64)]),
    512: (128, [(256, 256), (512, 128)]),
    1024: (128, [(256, 256), (512, 128), (1024, 64)]),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def build(
    resolution: int, plane_channels: int = 32, w_dim: int = 512, **options: Any
) -> SuperResolution:
    generator = GeneratorConfig(w_dim=w_dim, plane_channels=plane_channels, channel_base=16)
    return SuperResolution(
        ModelConfig(
            resolution=resolution,
            generator=generator,
            superresolution=SuperResolutionConfig(**options),
        )
    )


def small(resolution: int = 32, **options: Any) -> SuperResolution:
    network = build(resolution, plane_channels=4, w_dim=6, **{"channels": (6, 5), **options})
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "noise_strength")):
            nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.3)
    return network


def blocks(network: SuperResolution) -> list[SynthesisBlock]:
    found = [
        network.get_submodule(f"block{index}") for index in range(len(list(network.children())))
    ]
    return [block for block in found if isinstance(block, SynthesisBlock)]


def assert_structure(
    network: SuperResolution, input_size: int, expected: list[tuple[int, int]]
) -> None:
    assert network.input_resolution == input_size
    size, channels = input_size, 32
    assert len(blocks(network)) == len(expected)
    for block, (out_size, out_channels) in zip(blocks(network), expected, strict=True):
        assert block.up == out_size // size
        assert block.conv0.weight.shape == (out_channels, channels, 3, 3)
        assert block.conv1.weight.shape == (out_channels, out_channels, 3, 3)
        assert block.torgb.weight.shape == (3, out_channels, 1, 1)
        assert (
            block.conv0.noise_const.shape == block.conv1.noise_const.shape == (out_size, out_size)
        )
        assert block.conv0.conv_clamp == block.conv1.conv_clamp == block.torgb.conv_clamp == 256
        size, channels = out_size, out_channels


@pytest.mark.parametrize("resolution", PUBLISHED)
def test_published_structure_whatever_the_channel_base(resolution: int) -> None:
    with torch.device("meta"):
        network = build(resolution)
        assert_structure(network, *PUBLISHED[resolution])
        for size in (32, 64, 128):
            picture = network(torch.empty(2, 32, size, size), torch.empty(2, 14, 512), "none")
            assert picture.shape == (2, 3, resolution, resolution)


def test_older_released_layout_of_512() -> None:
    with torch.device("meta"):
        assert_structure(build(512, channels=(128, 64)), 128, [(256, 128), (512, 64)])


def test_small_presets_choose_sizes_and_channels() -> None:
    with torch.device("meta"):
        assert_structure(
            build(64, channels=(32, 32), input_resolution=32), 32, [(32, 32), (64, 32)]
        )
        assert_structure(
            build(128, channels=(32, 16), input_resolution=32), 32, [(64, 32), (128, 16)]
        )


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [8, 16, 24])
def test_features_and_colours_are_resized_then_pass_the_blocks(size: int, antialias: bool) -> None:
    """From 8, 16 or 24 to the input size of 16; the non-antialiased resize is that of the older
    released 256 layout.
    """
    network, features, ws = (
        small(antialias=antialias),
        torch.randn(2, 4, size, size),
        torch.randn(2, 14, 6),
    )
    x = torch.from_numpy(references.resize(features.double().numpy(), 16, antialias)).float()
    rgb, latents = x[:, :3], ws[:, -1:].expand(-1, 3, -1)
    for block in blocks(network):
        x, rgb = block(x, rgb, latents, "none")
    torch.testing.assert_close(network(features, ws, "none"), rgb, atol=1e-4, rtol=1e-4)


def test_the_first_block_adds_its_colour_to_the_raw_colour() -> None:
    """With all colour layers silenced, the picture is the raw one, upsampled once."""
    network, features = small(), torch.randn(2, 4, 16, 16)
    for block in blocks(network):
        nn.init.zeros_(block.torgb.weight)
        nn.init.zeros_(block.torgb.bias)
    expected = references.upsample(features[:, :3].double().numpy())
    np.testing.assert_allclose(
        network(features, torch.randn(2, 14, 6), "none").detach(), expected, atol=1e-5
    )


@pytest.mark.parametrize("size", [16, 8])
def test_the_rendering_is_not_modified(size: int) -> None:
    network, features, ws = small(), torch.randn(2, 4, size, size), torch.randn(2, 14, 6)
    copies = features.clone(), ws.clone()
    with torch.no_grad():
        network(features, ws, "none")
    assert torch.equal(features, copies[0])
    assert torch.equal(ws, copies[1])


def test_only_the_last_latent_matters() -> None:
    network, features, ws = small(), torch.randn(2, 4, 16, 16), torch.randn(2, 14, 6)
    other = torch.cat([torch.randn(2, 13, 6), ws[:, -1:]], dim=1)
    assert torch.equal(network(features, ws, "none"), network(features, other, "none"))
    assert not torch.equal(network(features, ws, "none"), network(features, ws.flip(1), "none"))


def test_noise_modes() -> None:
    network, features, ws = small(), torch.randn(2, 4, 16, 16), torch.randn(2, 14, 6)
    assert SuperResolutionConfig().noise_mode == "none"
    pictures: dict[str, list[Tensor]] = {
        mode: [network(features, ws, mode) for _ in range(2)]
        for mode in ("none", "const", "random")
    }
    assert [torch.equal(*pair) for pair in pictures.values()] == [True, True, False]
    assert not torch.equal(pictures["none"][0], pictures["const"][0])


def test_a_batch_equals_its_samples() -> None:
    network, features, ws = small(), torch.randn(3, 4, 8, 8), torch.randn(3, 14, 6)
    together = network(features, ws, "none")
    for n in range(3):
        torch.testing.assert_close(
            network(features[n : n + 1], ws[n : n + 1], "none"),
            together[n : n + 1],
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_low_precision(dtype: torch.dtype, tolerance: float) -> None:
    network, features, ws = (
        small(channels=(32, 16)),
        torch.randn(2, 4, 16, 16),
        torch.randn(2, 14, 6),
    )
    expected = network(features, ws, "none")
    network.set_conv_dtype(dtype)
    result = network(features, ws, "none")
    assert result.dtype == torch.float32
    assert 0 < (result - expected).abs().max() < tolerance * expected.abs().max()


def test_wrong_number_of_channels() -> None:
    with pytest.raises(ValueError, match=r"superresolution\.channels has 3"):
        build(128, channels=(8, 8, 8))
