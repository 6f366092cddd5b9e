"""The fp16 policy of training on CUDA, emulated on the CPU: fp16 blocks beside the same in fp32, at
magnitudes where fp16 would overflow.

Super-resolution and the discriminator's highest blocks compute in fp16: weights and styles are
brought to a largest magnitude of one before modulation, what leaves a layer is clamped to 256, and
nothing is scaled or cast behind the networks' back.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_config
from training.networks.discriminator import Discriminator
from training.networks.superresolution import SuperResolution

ROOT = Path(__file__).parents[3]
LARGEST = torch.finfo(torch.float16).max


def make_superresolution(clamp: float | None) -> SuperResolution:
    torch.manual_seed(0)
    config = tiny_config(
        "superresolution.channels=[32,16]",
        "generator.plane_channels=8",
        "superresolution.input_resolution=16",
    ).model
    config.superresolution.conv_clamp = clamp
    return SuperResolution(config)


def enlarge(network: SuperResolution, dtype: torch.dtype, features: Tensor, ws: Tensor) -> Tensor:
    network.set_conv_dtype(dtype)
    return network(features, ws, "none")


def inputs(magnitude: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 8, 16, 16, generator=generator) * magnitude, torch.randn(
        2, 14, 8, generator=generator
    )


@pytest.mark.parametrize("magnitude", [1.0, 100.0, 3000.0])
def test_superresolution_with_clamped_activations(magnitude: float) -> None:
    network, (features, ws) = make_superresolution(256.0), inputs(magnitude)
    expected = enlarge(network, torch.float32, features, ws)
    result = enlarge(network, torch.float16, features, ws)
    assert result.isfinite().all()
    assert (result - expected).abs().max() < 0.01 * expected.abs().max()
    assert not torch.equal(result, expected)


def test_without_the_clamp_activations_leave_the_range_of_fp16() -> None:
    """The magnitudes above do need it: in fp32 and without it, the first layer's output is beyond
    fp16's largest number.
    """
    network, (features, ws) = make_superresolution(None), inputs(1.0)
    features = features.sign() * 60000  # themselves within it
    seen: list[float] = []
    network.get_submodule("block0").register_forward_hook(
        lambda _module, _inputs, output: seen.append(float(output[0].detach().abs().max()))
    )
    enlarge(network, torch.float32, features, ws)
    assert max(seen) > LARGEST
    assert not enlarge(network, torch.float16, features, ws).isfinite().all()
    assert enlarge(make_superresolution(256.0), torch.float16, features, ws).isfinite().all()


@pytest.mark.parametrize("scale", [0.1, 1.0, 1e4])
def test_weights_and_styles_of_any_magnitude(scale: float) -> None:
    """Demodulation cancels both, so that only what overflows on the way could tell."""
    network, (features, ws) = make_superresolution(256.0), inputs(1.0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "conv" in name and ("affine" in name or name.endswith("weight")):
                parameter.mul_(scale)
    expected = enlarge(network, torch.float32, features, ws)
    result = enlarge(network, torch.float16, features, ws)
    assert (result - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("magnitude", [1.0, 300.0])
def test_discriminator_and_its_gradients(magnitude: float) -> None:
    torch.manual_seed(0)
    config = tiny_config("discriminator.conv_clamp=256").model
    network = Discriminator(config)
    image, raw = torch.randn(4, 3, 32, 32) * magnitude, torch.randn(4, 3, 8, 8) * magnitude
    c = torch.randn(4, 25)
    logits, gradients = [], []
    for dtype in (torch.float32, torch.float16):
        network.set_conv_dtype(dtype)
        leaf = image.clone().requires_grad_()
        logits.append(network(leaf, raw, c))
        gradients.append(torch.autograd.grad(logits[-1].sum(), leaf)[0])
    assert all(
        value.dtype == torch.float32 and value.isfinite().all() for value in (*logits, *gradients)
    )
    assert (logits[1] - logits[0]).abs().max() < 0.03 * logits[0].abs().max()
    assert (gradients[1] - gradients[0]).abs().mean() < 0.05 * gradients[0].abs().mean()


def test_nothing_casts_or_scales_behind_the_networks_back() -> None:
    """No autocast region and no loss scaler anywhere: dtypes are settings of blocks."""
    folders = ("training", "torch_utils", "metrics", "media", "open_eg3d")
    sources = [
        *ROOT.glob("*.py"),
        *(path for folder in folders for path in (ROOT / folder).rglob("*.py")),
    ]
    assert len(sources) > 50
    for path in sources:
        text = path.read_text()
        assert "GradScaler" not in text
        assert "autocast(" not in text.replace("is_autocast_enabled(", "")
