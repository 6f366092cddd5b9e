"""Resampling of images, compiled and plain, against loops over output pixels, against SciPy, and
against what resampling means.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import signal

from tests import references
from tests.operators import compiled_only
from torch_utils.ops import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d
from torch_utils.ops.upfirdn2d import upfirdn2d_reference

factors = st.tuples(st.integers(1, 3), st.integers(1, 3))
paddings = st.tuples(*[st.integers(-2, 4)] * 4)


LAYOUTS = [torch.contiguous_format, torch.channels_last]


pytestmark = pytest.mark.usefixtures("path")


def reference(
    x: np.ndarray,
    kernel: np.ndarray,
    up: tuple,
    down: tuple,
    padding: tuple,
    flip: bool,
    gain: float,
) -> np.ndarray:
    padded = references.pad(references.insert_zeros(x, *up), *padding)
    filtered = references.filter_image(padded, gain * (kernel[::-1, ::-1] if flip else kernel))
    return filtered[:, :, :: down[1], :: down[0]]


@settings(max_examples=60, derandomize=True)
@given(
    up=factors,
    down=factors,
    padding=paddings,
    flip=st.booleans(),
    gain=st.sampled_from([1.0, 4.0, -0.3]),
    taps=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    separable=st.booleans(),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    channels=st.sampled_from([1, 3, 9]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_loop(
    up, down, padding, flip, gain, taps, separable, size, channels, seed
) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((2, channels, *size))
    filter = random.standard_normal(taps[0] if separable else taps)
    kernel = np.outer(filter, filter) if separable else filter
    assume(
        size[0] * up[1] + padding[2] + padding[3] >= kernel.shape[0]
        and size[1] * up[0] + padding[0] + padding[1] >= kernel.shape[1]
    )
    assume(size[0] * up[1] + min(padding[2:]) > 0 and size[1] * up[0] + min(padding[:2]) > 0)
    expected = reference(x, kernel, up, down, padding, flip, gain)
    for layout in LAYOUTS:
        images = torch.from_numpy(x).contiguous(memory_format=layout)
        result = upfirdn2d(
            images,
            torch.from_numpy(filter),
            up=up,
            down=down,
            padding=padding,
            flip_filter=flip,
            gain=gain,
        )
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"up": 2, "padding": (2, 1, 2, 1), "gain": 4},
        {"down": 2, "padding": 1},
        {"padding": (-1, 2, 3, 0)},
    ],
)
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
    assert torch.equal(
        upfirdn2d(impulse, filter, padding=1, flip_filter=True)[0, 0, 1:4, 1:4], filter.flip(0, 1)
    )


def test_padding_forms() -> None:
    x, filter = torch.randn(1, 1, 4, 4), torch.randn(2, 2)
    assert torch.equal(upfirdn2d(x, filter, padding=1), upfirdn2d(x, filter, padding=(1, 1, 1, 1)))
    assert torch.equal(
        upfirdn2d(x, filter, padding=(2, 1)), upfirdn2d(x, filter, padding=(2, 2, 1, 1))
    )
    with pytest.raises(ValueError, match="padding has 3"):
        upfirdn2d(x, filter, padding=(1, 1, 1))
    with pytest.raises(ValueError, match="does not fit"):
        upfirdn2d(x, torch.randn(5, 5))


def test_setup_filter() -> None:
    np.testing.assert_allclose(setup_filter([1, 3, 3, 1]), references.FIR)
    np.testing.assert_allclose(
        setup_filter([1, 3, 3, 1], separable=True), np.array([1, 3, 3, 1]) / 8
    )
    np.testing.assert_allclose(
        setup_filter([1, 2], normalize=False), np.array([[1.0, 2.0], [2.0, 4.0]])
    )
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
    assert torch.all(constant[..., 0, :] < 1), (
        "zeros lie outside the picture, not copies of its edge"
    )
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    torch.testing.assert_close(
        upsample2d(ramp, filter)[0, 0, 8, 1:-1], (torch.arange(1.0, 15) + 0.5) / 2 - 0.5
    )
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    np.testing.assert_allclose(
        upsample2d(x, filter.double()), references.upsample(x.numpy()), atol=1e-12
    )


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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("up", "down", "taps"), [(1, 1, 32), (2, 1, 24), (4, 3, 32), (3, 5, 45), (7, 2, 5), (1, 6, 4)]
)
@pytest.mark.parametrize("channels", [1, 3, 9])
def test_long_filters_against_scipy(
    up: int, down: int, taps: int, channels: int, layout: torch.memory_format
) -> None:
    """scipy.signal.upfirdn of an axis starts with the filter's first tap on the first sample:
    padding taps - 1 in front.
    """
    random = np.random.default_rng(0)
    x, filter = random.standard_normal((2, channels, 11, 24)), random.standard_normal(taps)
    expected = signal.upfirdn(filter, signal.upfirdn(filter, x, up, down, axis=3), up, down, axis=2)
    # SciPy adds no zeros after the last sample, this operator up - 1
    padding = (taps - 1, taps - up) * 2
    images = torch.from_numpy(x).contiguous(memory_format=layout)
    result = upfirdn2d(images, torch.from_numpy(filter), up=up, down=down, padding=padding)
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-11)
    if layout == torch.channels_last and channels > 1:
        assert result.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_full_filter_of_32_taps(layout: torch.memory_format) -> None:
    random = np.random.default_rng(0)
    x, filter = random.standard_normal((1, 9, 6, 7)), random.standard_normal((32, 31))
    expected = reference(x, filter, (2, 3), (1, 2), (12, 11, 13, 14), False, 1.0)
    images = torch.from_numpy(x).contiguous(memory_format=layout)
    result = upfirdn2d(
        images, torch.from_numpy(filter), up=(2, 3), down=(1, 2), padding=(12, 11, 13, 14)
    )
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-11)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("channels", "width"), [(1, 4500), (3, 1500), (20, 250)])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("separable", [True, False])
def test_wide_images(
    separable: bool, up: int, down: int, channels: int, width: int, layout: torch.memory_format
) -> None:
    """Wider and higher than what a thread takes at a time."""
    random = np.random.default_rng(0)
    x = random.standard_normal((1, channels, 38, width))
    row, column = random.standard_normal(5), random.standard_normal(4)
    kernel = torch.from_numpy(np.outer(column, row))
    other = torch.from_numpy(random.standard_normal((4, 5)))
    images = torch.from_numpy(x).contiguous(memory_format=layout)
    options: dict[str, Any] = {"up": up, "down": down, "padding": (4, 5 - up, 3, 4 - up)}
    expected = signal.upfirdn(column, signal.upfirdn(row, x, up, down, axis=3), up, down, axis=2)
    result = upfirdn2d(images, kernel, **options)
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-11)
    if not separable:  # linear in the filter, and no longer an outer product
        both = upfirdn2d(images, kernel + other, **options)
        torch.testing.assert_close(
            both - result, upfirdn2d_reference(images, other, **options), atol=1e-10, rtol=0
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)],
)
@pytest.mark.parametrize(
    "options",
    [{"up": 2, "padding": (2, 1, 2, 1), "gain": 4}, {"padding": 1}, {"down": 2, "padding": 1}],
)
@pytest.mark.parametrize("channels", [3, 20])
def test_precisions(
    channels: int,
    options: dict,
    dtype: torch.dtype,
    tolerance: float,
    layout: torch.memory_format,
    path: str,
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, channels, 13, 18).to(dtype, memory_format=layout).requires_grad_()
    filter = setup_filter([1, 3, 3, 1])
    result, expected = (
        upfirdn2d(x, filter, **options),
        upfirdn2d_reference(x.double(), filter.double(), **options),
    )
    grad = torch.randn_like(result)
    assert result.dtype == dtype
    assert (result.double() - expected).abs().max() < tolerance * expected.abs().max()
    (grad_x,), (expected_grad,) = (
        torch.autograd.grad(result, x, grad),
        torch.autograd.grad(expected, x, grad.double()),
    )
    assert grad_x.dtype == dtype
    if path == "reference" and dtype == torch.float16:
        # On some processors PyTorch's convolutions go back through fp16 with more than one
        # rounding; forward they have one.
        tolerance *= 2
    assert (
        grad_x.double() - expected_grad.double()
    ).abs().max() < tolerance * expected_grad.abs().max()


VIEWS = {
    "crop": lambda x: x[:, :, 1:-2, 2:-1],
    "channels": lambda x: x[:, 1:4],
    "every other pixel": lambda x: x[:, :, ::2, ::2],
    "transposed": lambda x: x.transpose(2, 3),
    "samples and channels exchanged": lambda x: x.transpose(0, 1),
    "expanded": lambda x: x[:, :1, :1, :1].expand(2, 5, 9, 8),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("view", VIEWS)
def test_strides(view: str, layout: torch.memory_format) -> None:
    x = VIEWS[view](torch.randn(2, 12, 15, 14).contiguous(memory_format=layout))
    filter = torch.rand(3, 4)
    result = upfirdn2d(x, filter, up=(2, 1), padding=3)
    torch.testing.assert_close(
        result, upfirdn2d_reference(x.contiguous(), filter, up=(2, 1), padding=3)
    )


@compiled_only
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("view", [lambda x: x, VIEWS["crop"]], ids=["whole", "crop"])
def test_no_copies(view, layout: torch.memory_format) -> None:
    x = view(torch.randn(2, 12, 15, 14).contiguous(memory_format=layout)).requires_grad_()
    with torch.autograd.profiler.profile() as profile:
        result = upfirdn2d(x, torch.rand(4, dtype=torch.float64), up=2, padding=(2, 1))
        torch.autograd.grad(result, x, torch.ones_like(result))
    assert result.is_contiguous(memory_format=layout)
    names = {event.name for event in profile.function_events}
    assert "open_eg3d::upfirdn2d" in names
    assert not names & {"aten::copy_", "aten::clone", "aten::contiguous"}


def test_empty_batch() -> None:
    x = torch.zeros(0, 3, 8, 6, requires_grad=True)
    result = upfirdn2d(x, setup_filter([1, 3, 3, 1]), down=2, padding=1)
    assert result.shape == (0, 3, 4, 3)
    assert torch.autograd.grad(result.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("separable", [True, False])
def test_a_filter_that_is_learned_gets_its_gradient(separable: bool) -> None:
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    filter = torch.randn(3 if separable else (3, 3), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, f: upfirdn2d(x, f, up=2, padding=1, gain=3.0), (x, filter)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_filter_that_is_almost_an_outer_product(dtype: torch.dtype) -> None:
    filter = setup_filter([1, 3, 3, 1]).to(dtype)
    filter[1, 2] *= 1 + 64 * torch.finfo(dtype).eps
    impulse = torch.zeros(1, 1, 7, 7, dtype=dtype)
    impulse[0, 0, 3, 3] = 1
    result = upfirdn2d(impulse, filter)[0, 0].flip(0, 1)
    np.testing.assert_allclose(
        result.numpy(), filter.flip(0, 1).numpy(), rtol=4 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "options", [{"up": 2, "padding": (2, 1, 2, 1)}, {"padding": 1}, {"down": 2, "padding": 1}]
)
def test_one_bad_pixel_spoils_what_the_filter_reaches_and_no_more(
    options: dict, value: float, layout: torch.memory_format
) -> None:
    x = torch.randn(1, 9, 9, 10).contiguous(memory_format=layout)
    x[0, 4, 3, 5] = value
    touched = torch.zeros(1, 9, 9, 10)
    touched[0, 4, 3, 5] = 1
    filter = setup_filter([1, 3, 3, 1])
    result, reach = (
        upfirdn2d(x, filter, **options),
        upfirdn2d_reference(touched, filter, **options) > 0,
    )
    assert torch.equal(~result.isfinite(), reach)


@compiled_only
def test_the_number_of_threads_changes_nothing() -> None:
    x, filter = torch.randn(3, 20, 70, 65), torch.rand(5, 4)
    alone = upfirdn2d(x, filter, up=2, padding=4)
    try:
        torch.set_num_threads(3)
        assert torch.equal(alone, upfirdn2d(x, filter, up=2, padding=4))
    finally:
        torch.set_num_threads(1)


@compiled_only
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("size", [(2, 3, 5, 6), (0, 3, 5, 6), (1, 1, 1, 1)])
def test_opcheck(size: tuple, dtype: torch.dtype, layout: torch.memory_format) -> None:
    x = torch.randn(size).to(dtype, memory_format=layout).requires_grad_()
    args = (x, setup_filter([1, 3, 3, 1]), (2, 1), (1, 3), (3, 2, 1, 4), False, 1.5)
    torch.library.opcheck(torch.ops.open_eg3d.upfirdn2d.default, args)


def test_compiles_without_graph_breaks() -> None:
    filter = setup_filter([1, 3, 3, 1])
    compiled = torch.compile(
        lambda x: upsample2d(x, filter).square(), fullgraph=True, backend="aot_eager"
    )
    x = torch.randn(1, 2, 5, 4, requires_grad=True)
    result, expected = compiled(x), upsample2d(x, filter).square()
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(
        torch.autograd.grad(result.sum(), x), torch.autograd.grad(expected.sum(), x)
    )
