"""Alias-free super-resolution: filters and frequency plan against SciPy and the paper's rules, and
that pictures move with their input.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import signal
from torch import Tensor, nn

from torch_utils.ops import filtered_lrelu
from training.config.settings import (
    GeneratorConfig,
    ModelConfig,
    RenderingConfig,
    SuperResolutionConfig,
)
from training.config.sizes import block_sizes
from training.networks import alias_free
from training.networks.alias_free import (
    AliasFreeLayer,
    AliasFreeSuperResolution,
    Band,
    FrequencyLine,
    plan_bands,
)
from training.networks.generator import Generator
from training.networks.superresolution import SuperResolution

# (output, input) sizes: the published ones, a laptop's, and both kinds of first block
SIZES = [(32, 16), (64, 32), (128, 32), (128, 64), (256, 128), (512, 128), (1024, 128)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def make_config(
    resolution: int,
    input_resolution: int | None = None,
    channels: tuple[int, ...] | None = None,
    **options: Any,
) -> ModelConfig:
    superresolution = SuperResolutionConfig(
        kind="alias_free", channels=channels, input_resolution=input_resolution, **options
    )
    return ModelConfig(
        resolution=resolution,
        generator=GeneratorConfig(w_dim=16, plane_channels=8),
        superresolution=superresolution,
    )


def small(
    resolution: int = 32,
    input_resolution: int = 16,
    channels: tuple[int, ...] = (6, 5),
    **options: Any,
) -> AliasFreeSuperResolution:
    return AliasFreeSuperResolution(make_config(resolution, input_resolution, channels, **options))


def layers(network: nn.Module) -> list[AliasFreeLayer]:
    return [module for module in network.modules() if isinstance(module, AliasFreeLayer)]


def bands_of(resolution: int, input_resolution: int) -> list[Band]:
    return plan_bands(*block_sizes(resolution, input_resolution))


# --------------------------------------------------------------------------------------------------
# Frequencies and filters


def test_a_whole_generator_has_the_cutoffs_and_stopbands_of_the_specification() -> None:
    line = FrequencyLine(1024)
    steps = [line.band(i / 12, rate=2, margin=10) for i in range(13)]
    cutoffs = np.array([band.cutoff for band in steps])
    stopbands = np.array([band.cutoff + band.half_width for band in steps])
    np.testing.assert_allclose([cutoffs[0], stopbands[0]], [2, 2**2.1])
    np.testing.assert_allclose([cutoffs[-1], stopbands[-1]], [512, 512 * 2**0.3])
    np.testing.assert_allclose(cutoffs[1:] / cutoffs[:-1], 256 ** (1 / 12))
    np.testing.assert_allclose(stopbands[1:] / stopbands[:-1], (512 * 2**0.3 / 2**2.1) ** (1 / 12))


@pytest.mark.parametrize(("resolution", "input_resolution"), SIZES)
def test_plan_keeps_the_input_and_makes_no_aliases_before_the_last_layer(
    resolution: int, input_resolution: int
) -> None:
    bands = bands_of(resolution, input_resolution)
    cutoffs = [band.cutoff for band in bands]
    assert len(bands) == 1 + 2 * len(block_sizes(resolution, input_resolution)[1])
    assert cutoffs[0] == pytest.approx(input_resolution / 2)
    assert cutoffs == sorted(cutoffs)
    assert all(band.cutoff + band.half_width <= band.rate / 2 * (1 + 1e-9) for band in bands[1:-1])
    assert cutoffs[-1] == pytest.approx(resolution / 2)
    assert cutoffs[-1] + bands[-1].half_width == pytest.approx(resolution / 2 * 2**0.3)


@pytest.mark.parametrize(
    ("resolution", "input_resolution", "rates"),
    [
        (64, 32, [64, 64]),
        (128, 32, [64, 128]),
        (256, 128, [256, 256]),
        (512, 128, [256, 512]),
        (1024, 128, [256, 512, 1024]),
    ],
)
def test_rates_and_margins(resolution: int, input_resolution: int, rates: list[int]) -> None:
    bands = bands_of(resolution, input_resolution)
    assert [band.rate for band in bands] == [
        input_resolution,
        *(rate for rate in rates for _ in range(2)),
    ]
    assert [band.size - band.rate for band in bands] == [20] * (len(bands) - 1) + [0]


@pytest.mark.parametrize(
    ("taps", "cutoff", "half_width", "rate"),
    [(12, 16, 6.6, 64), (24, 64, 28, 512), (48, 8, 7, 128), (12, 5, 0.4, 16)],
)
def test_lowpass_equals_scipy(taps: int, cutoff: float, half_width: float, rate: int) -> None:
    """The last case has so narrow a transition that its window is a box (attenuation below 21 dB);
    the first two lie around 50 dB.
    """
    expected = signal.firwin(taps, cutoff, width=2 * half_width, fs=rate)
    np.testing.assert_allclose(
        alias_free.design_lowpass(taps, cutoff, half_width, rate), expected, atol=1e-7
    )
    width = 4 * half_width / rate
    assert alias_free.kaiser_beta(taps, width) == pytest.approx(
        signal.kaiser_beta(signal.kaiser_atten(taps, width))
    )


@pytest.mark.parametrize(("resolution", "input_resolution"), SIZES)
def test_layers_filter_with_six_taps_a_sample_at_twice_the_rate(
    resolution: int, input_resolution: int
) -> None:
    bands = bands_of(resolution, input_resolution)
    channels = (2,) * (len(bands) // 2)
    for layer, source, target in zip(
        layers(small(resolution, input_resolution, channels)), bands[:-1], bands[1:], strict=True
    ):
        fine_rate = 2 * max(source.rate, target.rate)
        assert (layer.up, layer.down) == (fine_rate // source.rate, fine_rate // target.rate)
        for taps, factor, band in (
            (layer.up_filter, layer.up, source),
            (layer.down_filter, layer.down, target),
        ):
            assert len(taps) == 6 * factor
            assert_lowpass(taps.double().numpy(), band, fine_rate)


def assert_lowpass(taps: np.ndarray, band: Band, rate: int) -> None:
    """Response: 1 at 0, about 1 in the passband, half at the cutoff, and in the stopband what
    Kaiser's formula promises.
    """
    frequencies, response = signal.freqz(taps, worN=4096, fs=rate)
    gain = np.abs(response)
    promised = 10 ** (-signal.kaiser_atten(len(taps), 4 * band.half_width / rate) / 20)
    assert gain[0] == pytest.approx(1, abs=1e-6)
    assert np.abs(gain[frequencies <= band.cutoff - band.half_width] - 1).max() < 0.1
    assert np.interp(band.cutoff, frequencies, gain) == pytest.approx(0.5, abs=0.04)
    assert gain[frequencies >= band.cutoff + band.half_width].max() < 1.35 * promised


# --------------------------------------------------------------------------------------------------
# Geometry and signal


def wave(size: int, rate: int, shift: float = 0.0) -> Tensor:
    """1.5 + sine of 3 cycles a picture along x and a cosine along y at a map's (size, size) sample
    centres, in fp64.
    """
    position = (torch.arange(size, dtype=torch.float64) + 0.5 - size / 2) / rate
    along_x, along_y = (
        torch.sin(2 * math.pi * 3 * (position - shift)),
        torch.cos(2 * math.pi * 2 * position),
    )
    return (1.5 + 0.7 * along_x[None, :] + 0.7 * along_y[:, None])[None, None]


@pytest.mark.parametrize(("resolution", "input_resolution"), [(64, 32), (128, 32), (256, 32)])
def test_layers_and_colour_neither_move_nor_scale_the_signal(
    resolution: int, input_resolution: int
) -> None:
    """A positive signal of low frequency passes a leaky ReLU unchanged but for the gain, so its
    samples elsewhere are known.
    """
    bands = bands_of(resolution, input_resolution)
    network = small(resolution, input_resolution, (2,) * (len(bands) // 2)).double()
    for layer, source, target in zip(layers(network), bands[:-1], bands[1:], strict=True):
        x = wave(source.size, source.rate)
        y = filtered_lrelu(
            x,
            layer.up_filter,
            layer.down_filter,
            up=layer.up,
            down=layer.down,
            padding=layer.padding,
            gain=1.0,
        )
        assert y.shape[-2:] == (target.size, target.size)
        inner = slice(target.size // 4, -(target.size // 4))
        assert (y - wave(target.size, target.rate))[..., inner, inner].abs().max() < 0.05
    color = network.color(wave(bands[0].size, input_resolution))
    inner = slice(resolution // 8, -(resolution // 8))
    assert (color - wave(resolution, resolution))[..., inner, inner].abs().max() < 0.02


@pytest.mark.parametrize(("resolution", "input_resolution"), SIZES)
def test_a_flat_picture_stays_flat_up_to_its_border(resolution: int, input_resolution: int) -> None:
    network = small(
        resolution, input_resolution, (2,) * len(block_sizes(resolution, input_resolution)[1])
    )
    nn.init.zeros_(network.torgb.weight)
    image = network(
        torch.full((1, 8, input_resolution, input_resolution), 0.8), torch.randn(1, 2, 16)
    )
    torch.testing.assert_close(
        image, torch.full((1, 3, resolution, resolution), 0.8), atol=0.002, rtol=0
    )


def make_field(size: int, shift: float, bandwidth: float, channels: int = 8) -> Tensor:
    """(1, channels, size, size) samples of a sum of 200 random waves below `bandwidth` cycles a
    sample, `shift` samples to the right.
    """
    random = np.random.default_rng(1)
    frequency_x, frequency_y = random.uniform(-bandwidth, bandwidth, (2, channels, 200, 1))
    phase, amplitude = (
        random.uniform(0, 2 * np.pi, (channels, 200, 1)),
        random.standard_normal((channels, 200)) / 20,
    )
    position = np.arange(size) + 0.5
    along_x = np.exp(1j * (2 * np.pi * frequency_x * (position - shift) + phase))
    along_y = np.exp(2j * np.pi * frequency_y * position)
    return torch.from_numpy(
        np.einsum("cm,cmy,cmx->cyx", amplitude, along_y, along_x, optimize=True).real[None]
    ).float()


def translation_psnr(
    network: nn.Module, input_resolution: int, resolution: int, shift: float, bandwidth: float = 0.3
) -> float:
    """How well the picture of the moved features is the moved picture, away from the borders; dB of
    the picture's range.
    """
    ws = torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        still, moved = (
            network(make_field(input_resolution, s, bandwidth), ws, "none") for s in (0.0, shift)
        )
    pixels, crop = shift * resolution / input_resolution, resolution // 4
    assert pixels == int(pixels)
    expected = still[..., crop:-crop, crop - int(pixels) : -crop - int(pixels)]
    error = (moved[..., crop:-crop, crop:-crop] - expected).square().mean()
    return 10 * math.log10((expected.max() - expected.min()) ** 2 / error)


@pytest.mark.parametrize(
    ("resolution", "input_resolution", "shift", "channels"),
    [
        (64, 32, 0.5, (16, 16)),
        (64, 32, -1.5, (16, 16)),
        (128, 32, 0.25, (16, 16)),
        (256, 32, 0.125, (12, 8, 8)),
    ],
)
def test_sub_pixel_translation(
    resolution: int, input_resolution: int, shift: float, channels: tuple[int, ...]
) -> None:
    """Content below 0.3 cycles a sample of the input. The paper's measure (EQ-T) with random
    weights.
    """
    config = make_config(resolution, input_resolution, channels)
    ours, standard = AliasFreeSuperResolution(config), SuperResolution(config)
    psnr = translation_psnr(ours, input_resolution, resolution, shift)
    assert psnr > 50
    assert psnr > translation_psnr(standard, input_resolution, resolution, shift) + 8


def test_whole_pixel_translation_is_exact_away_from_the_border() -> None:
    assert translation_psnr(small(128, 64, (8, 8)), 64, 128, 1.0) > 100


# --------------------------------------------------------------------------------------------------
# The network


@pytest.mark.parametrize(
    ("resolution", "rendering"),
    [(32, 16), (64, 32), (64, 64), (128, 32), (256, 64), (512, 64), (512, 128)],
)
def test_output_has_the_resolution_asked_for(resolution: int, rendering: int) -> None:
    network = small(resolution, min(128, resolution // 2), (4, 3))
    image = network(
        torch.randn(2 if resolution < 256 else 1, 8, rendering, rendering),
        torch.randn(2 if resolution < 256 else 1, 5, 16),
    )
    assert image.shape[1:] == (3, resolution, resolution)
    assert image.dtype == torch.float32
    assert image.isfinite().all()


@pytest.mark.parametrize("resolution", [32, 64, 128, 256, 512, 1024])
def test_channels_are_those_of_the_standard_network(resolution: int) -> None:
    with torch.device("meta"):
        config = make_config(resolution)
        ours, standard = AliasFreeSuperResolution(config), SuperResolution(config)
    shapes = {
        name: parameter.shape
        for name, parameter in standard.named_parameters()
        if "conv" in name and "noise" not in name
    }
    assert {
        name: parameter.shape for name, parameter in ours.named_parameters() if "conv" in name
    } == shapes


def test_names_are_stable() -> None:
    layer = ["weight", "bias", "affine.weight", "affine.bias"]
    convs = [f"block{block}.conv{conv}" for block in range(2) for conv in range(2)]
    network = small()
    assert {name for name, _ in network.named_parameters()} == {
        f"{part}.{name}" for part in [*convs, "torgb"] for name in layer
    }
    filters = {f"{conv}.{name}" for conv in convs for name in ("up_filter", "down_filter")}
    assert {name for name, _ in network.named_buffers()} == filters | {"color.filter"}


def test_the_generator_takes_the_network_that_the_settings_name() -> None:
    config = make_config(32, 16, (4, 4))
    config.generator = GeneratorConfig(
        z_dim=8, w_dim=16, plane_resolution=16, plane_channels=8, channel_base=64, channel_max=8
    )
    config.rendering = RenderingConfig(
        resolution=8, depth_resolution=4, depth_resolution_importance=4
    )
    generator = Generator(config)
    assert type(generator.superresolution) is AliasFreeSuperResolution
    label = torch.cat([torch.eye(4).flatten(), torch.tensor([3.0, 0, 0.5, 0, 3, 0.5, 0, 0, 1])])[
        None
    ]
    label[0, 11] = -2.7
    out = generator(torch.randn(1, 8), label)
    assert out.image.shape == (1, 3, 32, 32)
    raw = out.image_raw.clone()
    out.image.sum().backward()
    assert torch.equal(out.image_raw, raw)
    assert all(parameter.grad is not None for parameter in generator.superresolution.parameters())
    config.superresolution.kind = "standard"
    assert type(Generator(config).superresolution) is SuperResolution


def test_only_the_last_latent_counts_and_noise_modes_make_no_difference() -> None:
    network, features, ws = small(), torch.randn(2, 8, 16, 16), torch.randn(2, 4, 16)
    image = network(features, ws, "none")
    assert torch.equal(image, network(features, ws[:, -1:], "random"))
    assert not torch.equal(image, network(features, ws.flip(1), "none"))


def test_forward_passes_change_nothing_and_repeat_exactly() -> None:
    network, features, ws = small(), torch.randn(2, 8, 16, 16), torch.randn(2, 4, 16)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image = network.train()(features, ws)
    assert torch.equal(image, network.eval()(features, ws))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_batch_is_its_samples_one_by_one() -> None:
    network, features, ws = small(), torch.randn(3, 8, 16, 16), torch.randn(3, 4, 16)
    one_by_one = torch.cat([network(features[i : i + 1], ws[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(features, ws), one_by_one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("resolution", "input_resolution"), [(64, 32), (128, 32), (256, 64)])
def test_activations_start_near_unit_magnitude(resolution: int, input_resolution: int) -> None:
    network = small(resolution, input_resolution, (48, 48))
    magnitudes: list[float] = []
    for layer in layers(network):
        layer.register_forward_hook(
            lambda _module, _inputs, output: magnitudes.append(output.square().mean().sqrt().item())
        )
    features = make_field(input_resolution, 0.0, 0.25)
    network(features / features.square().mean().sqrt(), torch.randn(1, 1, 16))
    assert len(magnitudes) == 4
    assert all(0.5 < value < 2 for value in magnitudes)


def test_the_clamp_bounds_what_is_added_to_the_colours() -> None:
    network, features, ws = small(conv_clamp=1e-3), torch.rand(1, 8, 16, 16), torch.randn(1, 1, 16)
    reference = small(conv_clamp=None)
    reference.load_state_dict(network.state_dict())
    padded = nn.functional.pad(features[:, :3], [10] * 4, mode="replicate")
    assert (network(features, ws) - network.color(padded)).abs().max() <= 1e-3 + 1e-6
    assert (reference(features, ws) - network.color(padded)).abs().max() > 0.1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.005)])
@pytest.mark.parametrize("resolution", [32, 64])
def test_half_precision_is_close_and_leaves_the_colours_alone(
    resolution: int, dtype: torch.dtype, tolerance: float
) -> None:
    network, features, ws = small(resolution), torch.randn(2, 8, 16, 16), torch.randn(2, 4, 16)
    exact = network(features, ws)
    network.set_conv_dtype(dtype)
    seen: list[torch.dtype] = []
    for layer in layers(network):
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    image = network(features, ws)
    assert seen == [dtype] * 4
    assert image.dtype == torch.float32
    assert (image - exact).abs().max() < tolerance * exact.abs().max()
    image.square().sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in network.parameters()
    )
    nn.init.zeros_(network.torgb.weight)
    colors = network(features, ws)
    network.set_conv_dtype(torch.float32)
    assert torch.equal(colors, network(features, ws))


def test_gradients_against_finite_differences() -> None:
    bands = plan_bands(4, [4, 8])
    layer = AliasFreeLayer(2, 2, 3, bands[0], bands[1], conv_clamp=256.0).double()
    nn.init.normal_(layer.bias)
    parameters = [layer.weight, layer.bias, layer.affine.weight, layer.affine.bias]
    x = torch.randn(2, 2, bands[0].size, bands[0].size, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w, *_: layer(x, w), (x, w, *parameters), fast_mode=True
    )


def test_a_few_steps_fit_a_picture() -> None:
    """The target is a smooth function of other channels than those that start as the colours."""
    network, features, ws = (
        small(32, 16, (12, 12)),
        make_field(16, 0.0, 0.25),
        torch.randn(1, 1, 16),
    )
    target = nn.functional.interpolate(
        torch.tanh(2 * features[:, 3:6]), size=(32, 32), mode="bicubic"
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02, betas=(0.0, 0.99))
    losses = []
    for _ in range(60):
        loss = (network(features, ws) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 6
    assert losses[-1] < target.var() / 3
