"""The filtered leaky ReLU against loops over pixels, and against what it is for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import signal

from tests import references
from torch_utils.ops import filtered_lrelu

LOWPASS = torch.from_numpy(signal.firwin(12, 0.5, width=0.3))


def reference(x: np.ndarray, filters: list[np.ndarray], bias: np.ndarray, up: int, down: int, padding: tuple, **options) -> np.ndarray:
    """One output pixel after another, filters as full kernels (h, w)."""
    clamp = options.get("clamp") or math.inf
    fine = references.pad(references.insert_zeros(x + bias[:, None, None], up, up), *padding)
    fine = references.filter_image(fine, up**2 * filters[0])
    fine = np.where(fine < 0, options["slope"], 1.0) * fine * options["gain"]
    return references.filter_image(np.clip(fine, -clamp, clamp), filters[1])[:, :, ::down, ::down]


def make_filter(random: np.random.Generator, taps: int, separable: bool) -> tuple[torch.Tensor, np.ndarray]:
    """A filter as the operator takes it and as a full kernel."""
    values = random.standard_normal(taps if separable else (taps, taps + 1))
    return torch.from_numpy(values), np.outer(values, values) if separable else values


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    up=st.integers(1, 3),
    down=st.integers(1, 3),
    padding=st.tuples(*[st.integers(-2, 5)] * 4),
    taps=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    separable=st.tuples(st.booleans(), st.booleans()),
    options=st.fixed_dictionaries({
        "gain": st.sampled_from([1.0, 1.5]), "slope": st.sampled_from([0.2, 0.0, 0.7]), "clamp": st.sampled_from([None, 0.6]),
    }),
    flip=st.booleans(),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_equals_the_loop(up, down, padding, taps, separable, options, flip, seed) -> None:
    random = np.random.default_rng(seed)
    x, bias = random.standard_normal((2, 3, 5, 4)), random.standard_normal(3)
    (up_filter, up_kernel), (down_filter, down_kernel) = (make_filter(random, *pair) for pair in zip(taps, separable, strict=True))
    height, width = 5 * up + padding[2] + padding[3], 4 * up + padding[0] + padding[1]
    assume(height >= taps[0] + taps[1] + 1 and width >= taps[0] + taps[1] + 1)
    kernels = [kernel[::-1, ::-1] if flip else kernel for kernel in (up_kernel, down_kernel)]
    expected = reference(x, kernels, bias, up, down, padding, **options)
    result = filtered_lrelu(
        torch.from_numpy(x), up_filter, down_filter, torch.from_numpy(bias), up=up, down=down, padding=padding, flip_filter=flip, **options
    )
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-11)


def test_defaults_are_a_plain_leaky_relu() -> None:
    x = torch.tensor([[[[-1.0, 2.0]]]])
    torch.testing.assert_close(filtered_lrelu(x, None, None), torch.tensor([[[[-0.2, 2.0]]]]) * math.sqrt(2))


@pytest.mark.parametrize(("up", "down", "padding"), [(2, 2, 5), (1, 2, (3, 2)), (4, 1, (3, 4, -1, 6))])
@pytest.mark.parametrize("clamp", [None, 0.8])
def test_gradients_of_both_orders(up: int, down: int, padding: int | tuple, clamp: float | None) -> None:
    torch.manual_seed(0)
    x, bias = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True), torch.randn(2, dtype=torch.float64, requires_grad=True)
    filters = torch.rand(2, 4, dtype=torch.float64)

    def call(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return filtered_lrelu(x, filters[0], filters[1], bias, up=up, down=down, padding=padding, clamp=clamp)

    assert torch.autograd.gradcheck(call, (x, bias))
    assert torch.autograd.gradgradcheck(call, (x, bias))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.03), (torch.float16, 0.004)])
@pytest.mark.parametrize("up", [2, 4, 8])
def test_precisions_and_memory_formats(up: int, dtype: torch.dtype, tolerance: float, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x, bias = torch.randn(2, 16, 24, 24, dtype=torch.float64), torch.randn(16, dtype=torch.float64)
    up_filter = torch.from_numpy(signal.firwin(6 * up, 1 / up, width=0.6 / up))
    expected = filtered_lrelu(x, up_filter, LOWPASS, bias, up=up, down=2, padding=10)
    images = x.to(dtype, memory_format=layout).requires_grad_()
    result = filtered_lrelu(images, up_filter, LOWPASS, bias, up=up, down=2, padding=10)
    assert result.dtype == dtype
    assert torch.autograd.grad(result.sum(), images)[0].isfinite().all()
    assert (result.double() - expected).abs().max() < tolerance * expected.abs().max()


def test_brightness_is_kept_away_from_the_border() -> None:
    result = filtered_lrelu(torch.full((1, 1, 24, 24), 3.0), LOWPASS, LOWPASS, up=2, down=2, padding=10, gain=1.0)
    torch.testing.assert_close(result[..., 8:-8, 8:-8], torch.full_like(result[..., 8:-8, 8:-8], 3.0))


def test_it_moves_with_its_input_where_a_plain_leaky_relu_does_not() -> None:
    """A wave of 0.19 cycles a sample: its second harmonic is under the Nyquist frequency, the fourth is folded back onto 0.24."""
    positions = torch.arange(64, dtype=torch.float64)
    wave, moved = (torch.cos(2 * math.pi * 0.19 * (positions - shift)).expand(1, 1, 64, 64) for shift in (0.0, 0.5))
    frequencies = torch.fft.rfftfreq(48, dtype=torch.float64)
    window = torch.hann_window(48, dtype=torch.float64)

    def error(function) -> float:
        """Difference of the spectrum's magnitudes, which a pure shift leaves alone, relative to the signal."""
        spectra = [torch.fft.rfft(function(x)[0, 0, 32, -56:-8] * window).abs() for x in (wave, moved)]
        return float((spectra[0] - spectra[1])[frequencies > 0.05].norm() / spectra[0][frequencies > 0.05].norm())

    filtered = error(lambda x: filtered_lrelu(x, LOWPASS, LOWPASS, up=2, down=2, padding=10))
    plain = error(lambda x: filtered_lrelu(x, None, None))
    assert filtered < plain / 10


def test_bad_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="padding has 3 numbers"):
        filtered_lrelu(torch.zeros(1, 1, 8, 8), LOWPASS, LOWPASS, up=2, down=2, padding=(1, 2, 3))
