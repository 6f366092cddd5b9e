"""Bias, activation, gain and clamp against their formulas written out with NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from torch_utils.ops.bias_act import ACTIVATIONS, bias_act

SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805
FORMULAS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "lrelu": lambda x: np.where(x > 0, x, 0.2 * x),
    "tanh": lambda x: (np.exp(2 * x) - 1) / (np.exp(2 * x) + 1),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "elu": lambda x: np.where(x > 0, x, np.exp(x) - 1),
    "selu": lambda x: SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * (np.exp(x) - 1)),
    "softplus": lambda x: np.log(1 + np.exp(x)),
    "swish": lambda x: x / (1 + np.exp(-x)),
}
GAINS = {"relu": math.sqrt(2), "lrelu": math.sqrt(2), "swish": math.sqrt(2)}


def test_no_activation_is_left_untested() -> None:
    assert set(FORMULAS) == set(ACTIVATIONS)


@pytest.mark.parametrize("act", FORMULAS)
@pytest.mark.parametrize("gain", [None, 0.5])
@pytest.mark.parametrize("clamp", [None, 0.7])
@pytest.mark.parametrize(("shape", "dim"), [((3, 4), 1), ((2, 3, 4, 5), 1), ((2, 3, 4, 5), -1), ((2, 3, 4), 0)])
def test_formula(act, gain: float | None, clamp: float | None, shape: tuple[int, ...], dim: int) -> None:
    x, bias = torch.randn(shape, dtype=torch.float64) * 2, torch.randn(shape[dim], dtype=torch.float64)
    along = [1] * len(shape)
    along[dim] = -1
    expected = FORMULAS[act](x.numpy() + bias.numpy().reshape(along)) * (GAINS.get(act, 1) if gain is None else gain)
    if clamp is not None:
        expected = np.minimum(np.maximum(expected, -clamp), clamp)
    result = bias_act(x, bias, dim=dim, act=act, gain=gain, clamp=clamp)
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


def test_the_clamp_bounds_what_the_gain_made() -> None:
    x = torch.tensor([[-300.0, 200.0, 100.0]])
    torch.testing.assert_close(bias_act(x, gain=2.0, clamp=256), torch.tensor([[-256.0, 256.0, 200.0]]))


def test_slope_and_missing_bias() -> None:
    x = torch.tensor([[-2.0, 3.0]])
    torch.testing.assert_close(bias_act(x, act="lrelu", alpha=0.5, gain=1), torch.tensor([[-1.0, 3.0]]))
    assert torch.equal(bias_act(x), x)


@pytest.mark.parametrize("act", FORMULAS)
def test_gradients_of_both_orders(act) -> None:
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, b: bias_act(x, b, act=act, clamp=5), (x, bias))
    assert torch.autograd.gradgradcheck(lambda x, b: bias_act(x, b, act=act, clamp=5), (x, bias))


def test_the_input_keeps_its_values_dtype_and_layout() -> None:
    x = torch.randn(2, 4, 3, 3).to(torch.bfloat16, memory_format=torch.channels_last)
    before = x.clone()
    result = bias_act(x, torch.randn(4), act="lrelu", clamp=1)
    assert result.dtype == torch.bfloat16
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before)


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match=r"unknown activation 'gelu'.*lrelu"):
        bias_act(torch.zeros(1, 1), act="gelu")  # type: ignore[arg-type]
