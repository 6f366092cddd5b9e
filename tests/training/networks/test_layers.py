"""Shared layers against float64 loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import references
from torch_utils.ops.modulation import scale_channels
from torch_utils.ops.upfirdn2d import setup_filter
from training.networks.layers import (
    Conv2d,
    FullyConnected,
    modulated_conv2d,
    modulated_projection,
    normalize_2nd_moment,
    resize_image,
)

FILTER = setup_filter([1, 3, 3, 1])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def numpy(x: Tensor | None) -> np.ndarray:
    assert x is not None
    return x.detach().double().numpy()


def test_normalize_2nd_moment() -> None:
    x = (
        torch.randn(5, 7, dtype=torch.float64)
        * torch.logspace(-3, 6, 5, dtype=torch.float64)[:, None]
    )
    np.testing.assert_allclose(
        normalize_2nd_moment(x), references.unit_moment(x.numpy()), rtol=1e-12
    )
    assert torch.equal(normalize_2nd_moment(torch.zeros(1, 4)), torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("size_in", "size_out"), [(16, 8), (16, 6), (8, 16), (6, 16), (7, 7), (12, 5)]
)
@pytest.mark.parametrize("antialias", [True, False])
def test_resize(size_in: int, size_out: int, antialias: bool) -> None:
    x = torch.randn(2, 3, size_in, size_in, dtype=torch.float64)
    np.testing.assert_allclose(
        resize_image(x, size_out, antialias),
        references.resize(x.numpy(), size_out, antialias),
        atol=1e-9,
    )


# --------------------------------------------------------------------------------------------------
# Equalised layers


@pytest.mark.parametrize("lr_multiplier", [1.0, 0.01])
@pytest.mark.parametrize("activation", ["linear", "lrelu"])
def test_fully_connected(activation, lr_multiplier: float) -> None:
    layer = FullyConnected(6, 4, activation=activation, lr_multiplier=lr_multiplier).double()
    torch.nn.init.normal_(layer.bias, std=1 / lr_multiplier)
    x = torch.randn(3, 6, dtype=torch.float64)
    expected = references.linear(x.numpy(), numpy(layer.weight), numpy(layer.bias), lr_multiplier)
    np.testing.assert_allclose(
        numpy(layer(x)),
        references.lrelu(expected) if activation == "lrelu" else expected,
        rtol=1e-10,
    )
    np.testing.assert_allclose(numpy(layer(x.expand(2, 3, 6))[1]), numpy(layer(x)), rtol=1e-10)


@pytest.mark.parametrize("lr_multiplier", [1.0, 0.01])
def test_stored_weights_have_the_variance_that_equalises_learning_rates(
    lr_multiplier: float,
) -> None:
    layer = FullyConnected(300, 300, lr_multiplier=lr_multiplier, bias_init=1)
    assert layer.weight.var().item() == pytest.approx(1 / lr_multiplier**2, rel=0.03)
    torch.testing.assert_close(layer(torch.zeros(1, 300)), torch.ones(1, 300))
    assert layer(torch.randn(300, 300)).var().item() == pytest.approx(1, rel=0.05)
    conv = Conv2d(40, 50, 3)
    assert conv.weight.var().item() == pytest.approx(1, rel=0.05)
    assert conv.bias is not None
    assert torch.all(conv.bias == 0)


def conv_reference(x: np.ndarray, layer: Conv2d, down: int) -> np.ndarray:
    """The sum of products, before bias and activation."""
    weight = numpy(layer.weight)
    weight = weight / math.sqrt(weight[0].size)
    if down == 1:
        return references.correlate(x, weight, padding=weight.shape[-1] // 2)
    padding = 2 if weight.shape[-1] == 3 else 1
    filtered = references.filter_image(references.pad(x, *[padding] * 4), references.FIR)
    assert filtered.shape[-1] == x.shape[-1] + (1 if padding == 2 else -1)
    return references.correlate(
        filtered if padding == 2 else filtered[:, :, ::2, ::2],
        weight,
        stride=2 if padding == 2 else 1,
    )


@pytest.mark.parametrize("down", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize(
    "options", [{}, {"activation": "linear", "bias": False}, {"conv_clamp": 0.8}]
)
@pytest.mark.parametrize("gain", [1.0, math.sqrt(0.5)])
def test_convolution(kernel_size: int, down: int, options: dict[str, Any], gain: float) -> None:
    layer = Conv2d(3, 4, kernel_size, down=down, **options).double()
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    expected = conv_reference(x.numpy(), layer, down)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
        expected = expected + numpy(layer.bias)[:, None, None]
    expected = (
        expected * gain
        if options.get("activation") == "linear"
        else references.lrelu(expected, math.sqrt(2) * gain)
    )
    if "conv_clamp" in options:
        expected = np.clip(expected, -0.8 * gain, 0.8 * gain)
    result = numpy(layer(x, gain=gain))
    assert result.shape == (2, 4, 8 // down, 6 // down)
    np.testing.assert_allclose(result, expected, atol=1e-7)


# --------------------------------------------------------------------------------------------------
# Modulated convolution


def modulated(x: Tensor, weight: Tensor, styles: Tensor, up: int = 1) -> Tensor:
    """The convolution with the factors that it leaves to its caller."""
    y, factors = modulated_conv2d(x, weight, styles, up=up, resample_filter=FILTER)
    return y if factors is None else scale_channels(y, factors)


@pytest.mark.parametrize(("up", "kernel_size"), [(1, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize("batch", [1, 3])
def test_modulated_convolution(up: int, kernel_size: int, batch: int) -> None:
    x, styles = (
        torch.randn(batch, 4, 5, 6, dtype=torch.float64),
        torch.randn(batch, 4, dtype=torch.float64),
    )
    weight = torch.randn(2, 4, kernel_size, kernel_size, dtype=torch.float64)
    result = modulated(x, weight, styles, up)
    np.testing.assert_allclose(
        result, references.modulated(x.numpy(), weight.numpy(), styles.numpy(), True, up), atol=1e-9
    )


def test_one_large_picture_scales_its_weights_and_small_ones_their_channels() -> None:
    weight, styles = torch.randn(2, 4, 3, 3), torch.randn(1, 4)
    assert modulated_conv2d(torch.randn(1, 4, 5, 5), weight, styles)[1] is None
    assert modulated_conv2d(torch.randn(1, 4, 4, 4), weight, styles)[1] is not None
    assert modulated_conv2d(torch.randn(2, 4, 5, 5), weight, styles.expand(2, -1))[1] is not None


def test_modulated_projection() -> None:
    x, styles = torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last), torch.randn(3, 4)
    weight, bias = torch.randn(2, 4), torch.randn(2)
    expected = references.modulated(
        x.double().numpy(),
        weight[..., None, None].double().numpy(),
        styles.double().numpy(),
        demodulate=False,
    )
    result = modulated_projection(x, weight, styles, bias)
    assert result.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(result, expected + bias.numpy()[:, None, None], atol=1e-5)


def test_each_sample_has_its_own_style() -> None:
    x, weight, styles = (
        torch.randn(1, 4, 5, 5).expand(3, -1, -1, -1),
        torch.randn(2, 4, 3, 3),
        torch.randn(3, 4),
    )
    together = modulated(x, weight, styles)
    for n in range(3):
        torch.testing.assert_close(
            together[n : n + 1], modulated(x[n : n + 1], weight, styles[n : n + 1])
        )
    torch.testing.assert_close(modulated(x, weight, styles * 100), together)


@pytest.mark.parametrize("up", [1, 2])
def test_gradients_of_both_orders(up: int) -> None:
    shapes = ((2, 2, 3, 3), (2, 2, 3, 3), (2, 2))
    inputs = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)

    def convolve(x: Tensor, weight: Tensor, styles: Tensor) -> Tensor:
        return modulated(x, weight, styles, up)

    assert torch.autograd.gradcheck(convolve, inputs)
    assert torch.autograd.gradgradcheck(convolve, inputs)


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("scale", [0.1, 1.0, 1e4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.06)])
def test_low_precision_stays_close_whatever_the_magnitudes(
    dtype: torch.dtype, tolerance: float, scale: float, up: int
) -> None:
    """Inputs at the clamp of 256; weights and styles of any size, which demodulation cancels."""
    x = torch.randn(2, 64, 8, 8).clamp(-2, 2) * 128
    weight, styles = torch.randn(16, 64, 3, 3) * scale, torch.randn(2, 64) * scale
    expected = modulated(x, weight, styles, up)
    result = modulated(x.to(dtype), weight, styles, up)
    assert result.dtype == dtype
    assert result.isfinite().all()
    assert (result.float() - expected).abs().max() < tolerance * expected.abs().max()


def test_fp16_gradients_are_finite() -> None:
    x = (torch.randn(2, 16, 8, 8) * 100).half().requires_grad_()
    weight, styles = (
        (torch.randn(8, 16, 3, 3) * 1e4).requires_grad_(),
        (torch.randn(2, 16) * 1e4).requires_grad_(),
    )
    modulated(x, weight, styles).float().mean().backward()
    for tensor in (x, weight, styles):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
