"""Element-wise parts of modulated convolutions: compiled and plain, against formulas in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torch_utils.ops.modulation import (
    modulated_lrelu,
    modulated_lrelu_reference,
    scale_channels,
    scale_channels_reference,
)


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype=dtype, memory_format=torch.channels_last)


def formula(
    x: Tensor, scale: Tensor, noise: Tensor, bias: Tensor, slope: float, gain: float, clamp: float
) -> np.ndarray:
    z = (
        x.double().numpy() * scale.double().numpy()[:, :, None, None]
        + noise.double().numpy()
        + bias.double().numpy()[:, None, None]
    )
    return np.clip(np.where(z > 0, z, slope * z) * gain, -clamp, clamp)


@pytest.mark.usefixtures("path")
@given(
    batch=st.integers(0, 3),
    channels=st.sampled_from([1, 3, 16, 33]),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    noises=st.booleans(),
    clamp=st.sampled_from([0.5, 100.0]),
)
@settings(max_examples=40)
def test_formula(
    batch: int, channels: int, height: int, width: int, noises: bool, clamp: float
) -> None:
    x, scale, bias = (
        images(batch, channels, height, width),
        torch.randn(batch, channels),
        torch.randn(channels),
    )
    noise = torch.randn(batch if noises else 1, 1, height, width)
    y = modulated_lrelu(x, scale, noise, bias, 0.1, 1.5, clamp)
    np.testing.assert_allclose(
        y, formula(x, scale, noise, bias, 0.1, 1.5, clamp), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        scale_channels(x, scale), x.numpy() * scale.numpy()[:, :, None, None], rtol=1e-6
    )


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("absent", ["scale", "noise", "bias", "all"])
def test_operands_may_be_absent(absent: str) -> None:
    x = images(2, 5, 3, 4).requires_grad_()
    operands = {
        "scale": torch.randn(2, 5),
        "noise": torch.randn(2, 1, 3, 4),
        "bias": torch.randn(5),
    }
    given: list[Any] = [
        None if absent in (name, "all") else value.requires_grad_()
        for name, value in operands.items()
    ]
    wanted = [x, *(value for value in given if value is not None)]
    functions: list[Any] = [modulated_lrelu, modulated_lrelu_reference]
    results = [f(x, *given, 0.2, 1.4, 1.0) for f in functions]
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad(y.square().sum(), wanted) for y in results]
    torch.testing.assert_close(*gradients)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("noises", [1, 2])
def test_gradients_of_first_and_second_order(noises: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = draw(2, 3, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    operands = [
        draw(2, 3).requires_grad_(),
        draw(noises, 1, 2, 2).requires_grad_(),
        draw(3).requires_grad_(),
    ]

    def function(x: Tensor, scale: Tensor, noise: Tensor, bias: Tensor) -> Tensor:
        return modulated_lrelu(x, scale, noise, bias, 0.3, 1.2, 1.7)

    assert torch.autograd.gradcheck(function, (x, *operands))
    assert torch.autograd.gradgradcheck(function, (x, *operands))
    assert torch.autograd.gradcheck(scale_channels, (x, operands[0]))
    assert torch.autograd.gradgradcheck(scale_channels, (x, operands[0]))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_halves_are_computed_in_fp32(dtype: torch.dtype, tolerance: float) -> None:
    x, scale, noise, bias = (
        images(2, 32, 5, 3, dtype=dtype),
        torch.rand(2, 32),
        torch.randn(2, 1, 5, 3),
        torch.randn(32),
    )
    y = modulated_lrelu(x, scale, noise, bias, clamp=2.0)
    exact = torch.from_numpy(formula(x, scale, noise, bias, 0.2, 2**0.5, 2.0))
    assert y.dtype == dtype
    torch.testing.assert_close(y, exact.to(dtype), rtol=tolerance / 4, atol=1e-3)
    x.requires_grad_(), scale.requires_grad_(), noise.requires_grad_(), bias.requires_grad_()
    wide = x.detach().float().requires_grad_()
    weights = torch.randn(2, 32, 5, 3)
    gradients = torch.autograd.grad(
        (modulated_lrelu(x, scale, noise, bias).float() * weights).sum(), (x, scale, noise, bias)
    )
    expected = torch.autograd.grad(
        (modulated_lrelu_reference(wide, scale, noise, bias, 0.2, 2**0.5, None) * weights).sum(),
        (wide, scale, noise, bias),
    )
    for gradient, exact_gradient in zip(gradients, expected, strict=True):
        error = (gradient.float() - exact_gradient).norm() / exact_gradient.norm()
        assert error < tolerance


@pytest.mark.usefixtures("kernels")
def test_special_values_survive() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e30, -1e30]).reshape(
        1, 1, 2, 3
    )
    for dtype in (torch.float32, torch.bfloat16):
        result = modulated_lrelu(x.to(dtype), gain=1.0, clamp=3.0)
        torch.testing.assert_close(
            result,
            modulated_lrelu_reference(x.to(dtype), None, None, None, 0.2, 1.0, 3.0),
            equal_nan=True,
        )
        result = modulated_lrelu(x.to(dtype), gain=1.0)
        torch.testing.assert_close(
            result,
            modulated_lrelu_reference(x.to(dtype), None, None, None, 0.2, 1.0, None),
            equal_nan=True,
        )


@pytest.mark.usefixtures("kernels")
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    x, scale, noise, bias = (
        images(2, 48, 40, 40),
        torch.randn(2, 48),
        torch.randn(2, 1, 40, 40),
        torch.randn(48),
    )
    for value in (x, scale, noise, bias):
        value.requires_grad_()

    def gradients() -> tuple[Tensor, ...]:
        y = modulated_lrelu(scale_channels(x, scale), scale, noise, bias)
        return y, *torch.autograd.grad(y.square().sum(), (x, scale, noise, bias))

    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.usefixtures("kernels")
def test_other_layouts_take_the_plain_path_and_keep_theirs() -> None:
    x = torch.randn(2, 4, 3, 3)
    assert modulated_lrelu(x, torch.ones(2, 4)).is_contiguous()
    assert scale_channels(x, torch.ones(2, 4)).is_contiguous()
    assert modulated_lrelu(images(2, 4, 3, 3)).is_contiguous(memory_format=torch.channels_last)


CASES: dict[str, Callable[[], tuple]] = {
    "modulated_lrelu": lambda: (
        images(2, 3, 4, 4).requires_grad_(),
        torch.randn(2, 3),
        torch.randn(1, 1, 4, 4),
        torch.randn(3),
        0.2,
        1.4,
        None,
    ),
    "modulated_lrelu_backward": lambda: (
        images(2, 3, 4, 4),
        images(2, 3, 4, 4),
        torch.randn(2, 3),
        None,
        None,
        0.2,
        1.4,
        1.0,
    ),
    "scale_channels": lambda: (
        images(2, 3, 4, 4).requires_grad_(),
        torch.randn(2, 3).requires_grad_(),
    ),
    "scale_channels_backward": lambda: (images(2, 3, 4, 4), images(2, 3, 4, 4), torch.randn(2, 3)),
}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", list(CASES))
def test_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.open_eg3d, name).default, CASES[name]())


def test_references_are_what_they_say() -> None:
    x, scale = images(2, 3, 2, 2), torch.randn(2, 3)
    torch.testing.assert_close(
        modulated_lrelu_reference(x, scale, None, None, 1.0, 1.0, None),
        scale_channels_reference(x, scale),
    )
