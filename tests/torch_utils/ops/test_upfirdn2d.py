"""Resampling of images against loops over output pixels, and against what resampling means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests import references
from torch_utils.ops import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

factors = st.tuples(st.integers(1, 3), st.integers(1, 3))
paddings = st.tuples(*[st.integers(-2, 4)] * 4)


def reference(x: np.ndarray, kernel: np.ndarray, up: tuple, down: tuple, padding: tuple, flip: bool, gain: float) -> np.ndarray:
    padded = references.pad(references.insert_zeros(x, *up), *padding)
    filtered = references.filter_image(padded, gain * (kernel[::-1, ::-1] if flip else kernel))
    return filtered[:, :, :: down[1], :: down[0]]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    up=factors,
    down=factors,
    padding=paddings,
    flip=st.booleans(),
    gain=st.sampled_from([1.0, 4.0, -0.3]),
    taps=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    separable=st.booleans(),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 2**16),
)
def test_equals_the_loop(up, down, padding, flip, gain, taps, separable, size, seed) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((2, 3, *size))
    filter = random.standard_normal(taps[0] if separable else taps)
    kernel = np.outer(filter, filter) if separable else filter
    assume(size[0] * up[1] + padding[2] + padding[3] >= kernel.shape[0] and size[1] * up[0] + padding[0] + padding[1] >= kernel.shape[1])
    assume(size[0] * up[1] + min(padding[2:]) > 0 and size[1] * up[0] + min(padding[:2]) > 0)
    expected = reference(x, kernel, up, down, padding, flip, gain)
    for layout in (torch.contiguous_format, torch.channels_last):
        images = torch.from_numpy(x).contiguous(memory_format=layout)
        result = upfirdn2d(images, torch.from_numpy(filter), up=up, down=down, padding=padding, flip_filter=flip, gain=gain)
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("options", [{"up": 2, "padding": (2, 1, 2, 1), "gain": 4}, {"down": 2, "padding": 1}, {"padding": (-1, 2, 3, 0)}])
@pytest.mark.parametrize("separable", [False, True])
def test_gradients_of_both_orders(options: dict, separable: bool) -> None:
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    filter = torch.randn(3 if separable else (2, 3), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: upfirdn2d(x, filter, **options), x)
    assert torch.autograd.gradgradcheck(lambda x: upfirdn2d(x, filter, **options), x)


def test_an_impulse_shows_the_filter_unturned_and_its_mirror_when_flipped() -> None:
    impulse = torch.zeros(1, 1, 5, 5)
    impulse[0, 0, 2, 2] = 1
    filter = torch.arange(1.0, 10.0).view(3, 3)
    assert torch.equal(upfirdn2d(impulse, filter, padding=1)[0, 0, 1:4, 1:4], filter)
    assert torch.equal(upfirdn2d(impulse, filter, padding=1, flip_filter=True)[0, 0, 1:4, 1:4], filter.flip(0, 1))


def test_padding_forms() -> None:
    x, filter = torch.randn(1, 1, 4, 4), torch.randn(2, 2)
    assert torch.equal(upfirdn2d(x, filter, padding=1), upfirdn2d(x, filter, padding=(1, 1, 1, 1)))
    assert torch.equal(upfirdn2d(x, filter, padding=(2, 1)), upfirdn2d(x, filter, padding=(2, 2, 1, 1)))
    with pytest.raises(ValueError, match="padding has 3"):
        upfirdn2d(x, filter, padding=(1, 1, 1))
    with pytest.raises(ValueError, match="does not fit"):
        upfirdn2d(x, torch.randn(5, 5))


def test_setup_filter() -> None:
    np.testing.assert_allclose(setup_filter([1, 3, 3, 1]), references.FIR)
    np.testing.assert_allclose(setup_filter([1, 3, 3, 1], separable=True), np.array([1, 3, 3, 1]) / 8)
    np.testing.assert_allclose(setup_filter([1, 2], normalize=False), np.array([[1.0, 2.0], [2.0, 4.0]]))
    taps = torch.arange(1.0, 7.0).view(2, 3)
    torch.testing.assert_close(setup_filter(taps), taps / 21)


def test_a_missing_filter_passes_pixels_on() -> None:
    x = torch.randn(2, 3, 4, 6)
    assert torch.equal(upfirdn2d(x, None), x)
    assert torch.equal(upfirdn2d(x, None, down=2, gain=2.0), x[:, :, ::2, ::2] * 2)


def test_upsampling_keeps_brightness_and_place() -> None:
    filter = setup_filter([1, 3, 3, 1])
    constant = upsample2d(torch.ones(1, 1, 6, 6), filter)
    torch.testing.assert_close(constant[..., 1:-1, 1:-1], torch.ones(1, 1, 10, 10))
    assert torch.all(constant[..., 0, :] < 1), "zeros lie outside the picture, not copies of its edge"
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    torch.testing.assert_close(upsample2d(ramp, filter)[0, 0, 8, 1:-1], (torch.arange(1.0, 15) + 0.5) / 2 - 0.5)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    np.testing.assert_allclose(upsample2d(x, filter.double()), references.upsample(x.numpy()), atol=1e-12)


def test_downsampling_keeps_brightness_and_place() -> None:
    filter = setup_filter([1, 3, 3, 1])
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    torch.testing.assert_close(downsample2d(ramp, filter)[0, 0, 1, 1:-1], torch.tensor([2.5, 4.5]))


@pytest.mark.parametrize("taps", [3, 4, 5])
@pytest.mark.parametrize("separable", [False, True])
def test_filtering_keeps_the_size(taps: int, separable: bool) -> None:
    x = torch.randn(1, 2, 7, 6)
    result = filter2d(x, setup_filter(torch.rand(taps), separable=separable))
    assert result.shape == x.shape
    if taps % 2:
        identity = torch.zeros(taps)
        identity[taps // 2] = 1
        torch.testing.assert_close(filter2d(x, setup_filter(identity, separable=separable)), x)


def test_dtype_and_memory_format_are_kept() -> None:
    x = torch.randn(2, 8, 6, 6).to(torch.bfloat16, memory_format=torch.channels_last)
    result = upsample2d(x, setup_filter([1, 3, 3, 1]))
    assert result.dtype == torch.bfloat16
    assert result.is_contiguous(memory_format=torch.channels_last)
