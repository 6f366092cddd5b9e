"""The filtered leaky ReLU, compiled and plain, against loops over pixels, and against what it is
for.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import signal

from tests import references
from tests.operators import compiled_only
from torch_utils.ops import filtered_lrelu, library, setup_filter

LAYOUTS = [torch.contiguous_format, torch.channels_last]
LOWPASS = torch.from_numpy(signal.firwin(12, 0.5, width=0.3))


pytestmark = pytest.mark.usefixtures("path")


def reference(
    x: np.ndarray,
    filters: list[np.ndarray],
    bias: np.ndarray,
    up: int,
    down: int,
    padding: tuple,
    **options,
) -> np.ndarray:
    """One output pixel after another, filters as full kernels (h, w)."""
    clamp = options.get("clamp") or math.inf
    fine = references.pad(references.insert_zeros(x + bias[:, None, None], up, up), *padding)
    fine = references.filter_image(fine, up**2 * filters[0])
    fine = np.where(fine < 0, options["slope"], 1.0) * fine * options["gain"]
    return references.filter_image(np.clip(fine, -clamp, clamp), filters[1])[:, :, ::down, ::down]


def make_filter(
    random: np.random.Generator, taps: int, separable: bool
) -> tuple[torch.Tensor, np.ndarray]:
    """A filter as the operator takes it and as a full kernel."""
    values = random.standard_normal(taps if separable else (taps, taps + 1))
    return torch.from_numpy(values), np.outer(values, values) if separable else values


@settings(max_examples=40, derandomize=True)
@given(
    up=st.integers(1, 3),
    down=st.integers(1, 3),
    padding=st.tuples(*[st.integers(-2, 5)] * 4),
    taps=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    separable=st.tuples(st.booleans(), st.booleans()),
    options=st.fixed_dictionaries({
        "gain": st.sampled_from([1.0, 1.5]), "slope": st.sampled_from([0.2, 0.0, 0.7]),
        "clamp": st.sampled_from([None, 0.6]),
    }),
    flip=st.booleans(),
    channels=st.sampled_from([1, 3, 17]),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_equals_the_loop(
    up, down, padding, taps, separable, options, flip, channels, layout, seed
) -> None:
    random = np.random.default_rng(seed)
    x, bias = random.standard_normal((2, channels, 5, 4)), random.standard_normal(channels)
    (up_filter, up_kernel), (down_filter, down_kernel) = (
        make_filter(random, *pair) for pair in zip(taps, separable, strict=True)
    )
    height, width = 5 * up + padding[2] + padding[3], 4 * up + padding[0] + padding[1]
    assume(height >= taps[0] + taps[1] + 1 and width >= taps[0] + taps[1] + 1)
    kernels = [kernel[::-1, ::-1] if flip else kernel for kernel in (up_kernel, down_kernel)]
    expected = reference(x, kernels, bias, up, down, padding, **options)
    images = torch.from_numpy(x).contiguous(memory_format=layout)
    result = filtered_lrelu(
        images,
        up_filter,
        down_filter,
        torch.from_numpy(bias),
        up=up,
        down=down,
        padding=padding,
        flip_filter=flip,
        **options,
    )
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-11)


def test_defaults_are_a_plain_leaky_relu() -> None:
    x = torch.tensor([[[[-1.0, 2.0]]]])
    torch.testing.assert_close(
        filtered_lrelu(x, None, None), torch.tensor([[[[-0.2, 2.0]]]]) * math.sqrt(2)
    )


@pytest.mark.parametrize(
    ("up", "down", "padding"), [(2, 2, 5), (1, 2, (3, 2)), (4, 1, (3, 4, -1, 6))]
)
@pytest.mark.parametrize("clamp", [None, 0.8])
def test_gradients_of_both_orders(
    up: int, down: int, padding: int | tuple, clamp: float | None
) -> None:
    torch.manual_seed(0)
    x, bias = (
        torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True),
        torch.randn(2, dtype=torch.float64, requires_grad=True),
    )
    filters = torch.rand(2, 4, dtype=torch.float64)

    def call(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return filtered_lrelu(
            x, filters[0], filters[1], bias, up=up, down=down, padding=padding, clamp=clamp
        )

    assert torch.autograd.gradcheck(call, (x, bias))
    assert torch.autograd.gradgradcheck(call, (x, bias))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.03), (torch.float16, 0.004)]
)
@pytest.mark.parametrize("up", [2, 4, 8])
def test_precisions_and_memory_formats(
    up: int, dtype: torch.dtype, tolerance: float, layout: torch.memory_format
) -> None:
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
    result = filtered_lrelu(
        torch.full((1, 1, 24, 24), 3.0), LOWPASS, LOWPASS, up=2, down=2, padding=10, gain=1.0
    )
    torch.testing.assert_close(
        result[..., 8:-8, 8:-8], torch.full_like(result[..., 8:-8, 8:-8], 3.0)
    )


def test_it_moves_with_its_input_where_a_plain_leaky_relu_does_not() -> None:
    """A wave of 0.19 cycles a sample: its second harmonic is under the Nyquist frequency, the
    fourth is folded back onto 0.24.
    """
    positions = torch.arange(64, dtype=torch.float64)
    wave, moved = (
        torch.cos(2 * math.pi * 0.19 * (positions - shift)).expand(1, 1, 64, 64)
        for shift in (0.0, 0.5)
    )
    frequencies = torch.fft.rfftfreq(48, dtype=torch.float64)
    window = torch.hann_window(48, dtype=torch.float64)

    def error(function) -> float:
        """Difference of the spectrum's magnitudes, which a pure shift leaves alone, relative to the
        signal.
        """
        spectra = [
            torch.fft.rfft(function(x)[0, 0, 32, -56:-8] * window).abs() for x in (wave, moved)
        ]
        return float(
            (spectra[0] - spectra[1])[frequencies > 0.05].norm()
            / spectra[0][frequencies > 0.05].norm()
        )

    filtered = error(lambda x: filtered_lrelu(x, LOWPASS, LOWPASS, up=2, down=2, padding=10))
    plain = error(lambda x: filtered_lrelu(x, None, None))
    assert filtered < plain / 10


def test_bad_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="padding has 3 numbers"):
        filtered_lrelu(torch.zeros(1, 1, 8, 8), LOWPASS, LOWPASS, up=2, down=2, padding=(1, 2, 3))


# --------------------------------------------------------------------------------------------------
# The compiled operator beside the chain of operators that defines it


def filtered_lrelu_reference(*args: Any, **options: Any) -> torch.Tensor:
    with library.path("reference"):
        return filtered_lrelu(*args, **options)


def both_paths(x: torch.Tensor, *args, **options) -> list[list[torch.Tensor]]:
    """Result, gradient, and gradient of the gradient's norm with respect to the result's gradient;
    compiled and plain.
    """
    answers = []
    for function in (filtered_lrelu, filtered_lrelu_reference):
        images = x.detach().requires_grad_()
        result = function(images, *args, **options)
        weight = (
            torch.linspace(-1, 1, result.numel(), dtype=x.dtype)
            .sin()
            .view(result.shape)
            .requires_grad_()
        )
        (grad,) = torch.autograd.grad(result, images, weight, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), weight)
        answers.append([result.detach(), grad.detach(), second])
    return answers


@compiled_only
@settings(max_examples=60, derandomize=True)
@given(
    up=st.integers(1, 4),
    down=st.integers(1, 4),
    padding=st.tuples(*[st.integers(-2, 14)] * 4),
    shapes=st.tuples(
        *[st.one_of(st.tuples(st.integers(1, 13)), st.tuples(st.integers(1, 6), st.integers(1, 6)))]
        * 2
    ),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.sampled_from([1, 5, 16, 19]),
    clamp=st.sampled_from([None, 0.5]),
    flip=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**16),
)
def test_gradients_equal_those_of_the_chain(
    up, down, padding, shapes, size, channels, clamp, flip, layout, seed
) -> None:
    height, width = size[0] * up + padding[2] + padding[3], size[1] * up + padding[0] + padding[1]
    assume(
        height - shapes[0][0] - shapes[1][0] >= -1 and width - shapes[0][-1] - shapes[1][-1] >= -1
    )
    assume(size[0] * up + min(padding[2:]) > 0 and size[1] * up + min(padding[:2]) > 0)
    torch.manual_seed(seed)
    filters = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    x = torch.randn(2, channels, *size, dtype=torch.float64).contiguous(memory_format=layout)
    ours, expected = both_paths(
        x,
        *filters,
        torch.randn(channels),
        up=up,
        down=down,
        padding=padding,
        clamp=clamp,
        flip_filter=flip,
    )
    for result, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(result, other, rtol=1e-9, atol=1e-9)


@compiled_only
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("channels", "up", "down"), [(3, 2, 2), (20, 4, 2), (16, 2, 1), (16, 1, 3)]
)
def test_large_images(channels: int, up: int, down: int, layout: torch.memory_format) -> None:
    """Several bands of rows and stretches of columns."""
    torch.manual_seed(0)
    up_filter, down_filter = (
        torch.rand(6 * up, dtype=torch.float64) - 0.4,
        torch.rand(6 * down, dtype=torch.float64) - 0.4,
    )
    x = torch.randn(
        1, channels, 150 * down // up, 155 * down // up, dtype=torch.float64
    ).contiguous(memory_format=layout)
    ours, expected = both_paths(
        x, up_filter, down_filter, torch.randn(channels), up=up, down=down, padding=9, clamp=1.0
    )
    for result, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(result, other, rtol=1e-9, atol=1e-9)
    assert ours[0].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, :, 1:, 2:-1],
        lambda x: x[:, 2:7],
        lambda x: x.transpose(2, 3),
        lambda x: x[:, :1].expand(2, 8, 9, 8),
    ],
)
def test_strides(view, layout: torch.memory_format) -> None:
    x = view(torch.randn(2, 24, 9, 8).contiguous(memory_format=layout))
    options: dict[str, Any] = {"up": 2, "down": 2, "padding": 10}
    torch.testing.assert_close(
        filtered_lrelu(x, LOWPASS, LOWPASS, **options),
        filtered_lrelu_reference(x.contiguous(), LOWPASS, LOWPASS, **options),
    )


def test_empty_batch() -> None:
    x, bias = torch.zeros(0, 3, 8, 8, requires_grad=True), torch.ones(3, requires_grad=True)
    result = filtered_lrelu(x, LOWPASS, LOWPASS, bias, up=2, down=2, padding=10)
    assert result.shape == (0, 3, 7, 7)
    grads = torch.autograd.grad(result.sum(), (x, bias))
    assert grads[0].shape == x.shape
    assert torch.equal(grads[1], torch.zeros(3))


def test_a_bias_of_another_precision() -> None:
    x, bias = (
        torch.randn(2, 5, 8, 8).to(torch.bfloat16).requires_grad_(),
        torch.randn(5, requires_grad=True),
    )
    result = filtered_lrelu(x, LOWPASS, LOWPASS, bias, up=2, down=2, padding=10)
    grads = torch.autograd.grad(result.float().sum(), (x, bias))
    assert [grad.dtype for grad in grads] == [torch.bfloat16, torch.float32]
    exact, exact_bias = x.detach().double(), bias.detach().double().requires_grad_()
    expected = filtered_lrelu_reference(
        exact, LOWPASS, LOWPASS, exact_bias, up=2, down=2, padding=10
    )
    expected_grad = torch.autograd.grad(expected.sum(), exact_bias)[0]
    assert (grads[1].double() - expected_grad).abs().max() < 0.02 * expected_grad.abs().max()


def test_a_filter_that_is_learned_gets_its_gradient() -> None:
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64)
    filters = [torch.rand(4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(
        lambda f, g: filtered_lrelu(x, f, g, up=2, down=2, padding=4), filters
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("clamp", [None, 2.0])
def test_one_bad_pixel_spoils_as_much_as_in_the_chain(value: float, clamp: float | None) -> None:
    x = torch.randn(2, 17, 12, 11)
    x[1, 16, 5, 5] = value
    filter = torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1])
    options: dict[str, Any] = {"up": 2, "down": 2, "padding": 4, "clamp": clamp}
    result, expected = (
        function(x, filter, filter, **options)
        for function in (filtered_lrelu, filtered_lrelu_reference)
    )
    torch.testing.assert_close(result, expected, equal_nan=True)


@compiled_only
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_bits_a_fine_pixel_are_all_that_is_kept(layout: torch.memory_format) -> None:
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    x = torch.randn(2, 32, 40, 40).contiguous(memory_format=layout).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = filtered_lrelu(x, LOWPASS, LOWPASS, torch.zeros(32), up=2, down=2, padding=10)
    assert result.requires_grad
    fine = (result.shape[2] - 1) * 2 + 12
    assert sum(saved.values()) == 2 * 32 * fine * fine * 2 // 8 + LOWPASS.nbytes


@compiled_only
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_copies(layout: torch.memory_format) -> None:
    x = torch.randn(2, 16, 20, 20).contiguous(memory_format=layout).requires_grad_()
    with torch.autograd.profiler.profile() as profile:
        result = filtered_lrelu(x, LOWPASS, LOWPASS, torch.zeros(16), up=2, down=2, padding=10)
        result.backward(torch.ones_like(result))
    names = {event.name for event in profile.function_events}
    assert {"open_eg3d::filtered_lrelu", "open_eg3d::filtered_lrelu_by_signs"} <= names
    assert not names & {"aten::copy_", "aten::clone", "aten::contiguous"}


@compiled_only
def test_the_number_of_threads_changes_nothing() -> None:
    x, bias = torch.randn(1, 20, 120, 70), torch.randn(20)
    options: dict[str, Any] = {"up": 2, "down": 2, "padding": 10}
    alone = both_paths(x, LOWPASS, LOWPASS, bias, **options)[0]
    try:
        torch.set_num_threads(3)
        several = both_paths(x, LOWPASS, LOWPASS, bias, **options)[0]
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(alone, several, strict=True))


@compiled_only
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("size", [(2, 3, 5, 6), (1, 18, 4, 5), (0, 3, 5, 6)])
def test_opcheck(size: tuple, dtype: torch.dtype, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.randn(size).to(dtype, memory_format=layout).requires_grad_()
    bias = torch.randn(size[1], requires_grad=True)
    up_filter, down_filter = torch.rand(4), setup_filter([1, 3, 3, 1])
    args = (x, up_filter, down_filter, bias, 2, 2, (3, 4, 5, 2), 1.4, 0.2, 0.5, False, True)
    torch.library.opcheck(torch.ops.open_eg3d.filtered_lrelu.default, args)
    y, signs = (tensor.detach() for tensor in torch.ops.open_eg3d.filtered_lrelu(*args))
    back = (
        y.requires_grad_(),
        signs,
        down_filter,
        up_filter,
        2,
        2,
        (3, 3),
        (0, -2),
        (size[3], size[2]),
        1.4,
        0.2,
        True,
    )
    torch.library.opcheck(torch.ops.open_eg3d.filtered_lrelu_by_signs.default, back)


@compiled_only
def test_without_signs_there_is_no_gradient() -> None:
    x, one = torch.randn(1, 1, 3, 3, requires_grad=True), torch.ones(1)
    result, signs = torch.ops.open_eg3d.filtered_lrelu(
        x, one, one, None, 1, 1, (0, 0, 0, 0), 1.0, 0.2, None, False, False
    )
    assert signs.numel() == 0
    with pytest.raises(RuntimeError, match="without keep_signs"):
        result.sum().backward()


def test_compiles_without_graph_breaks() -> None:
    filter = LOWPASS.float()
    compiled = torch.compile(
        lambda x: filtered_lrelu(x, filter, filter, up=2, down=2, padding=10),
        fullgraph=True,
        backend="aot_eager",
    )
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    result, expected = compiled(x), filtered_lrelu(x, filter, filter, up=2, down=2, padding=10)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(
        torch.autograd.grad(result.sum(), x), torch.autograd.grad(expected.sum(), x)
    )
