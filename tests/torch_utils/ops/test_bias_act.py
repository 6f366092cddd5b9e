"""Bias, activation, gain and clamp: formulas written out with NumPy on either path, and the
compiled operator against its reference.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torch_utils.ops import library
from torch_utils.ops.bias_act import ACTIVATIONS, bias_act, bias_act_reference, self_checks

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
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def test_no_activation_is_left_untested() -> None:
    assert set(FORMULAS) == set(ACTIVATIONS)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("act", FORMULAS)
@pytest.mark.parametrize("gain", [None, 0.5])
@pytest.mark.parametrize("clamp", [None, 0.7])
@pytest.mark.parametrize(
    ("shape", "dim"), [((3, 4), 1), ((2, 3, 4, 5), 1), ((2, 3, 4, 5), -1), ((2, 3, 4), 0)]
)
def test_formula(
    act, gain: float | None, clamp: float | None, shape: tuple[int, ...], dim: int
) -> None:
    x, bias = (
        torch.randn(shape, dtype=torch.float64) * 2,
        torch.randn(shape[dim], dtype=torch.float64),
    )
    along = [1] * len(shape)
    along[dim] = -1
    expected = FORMULAS[act](x.numpy() + bias.numpy().reshape(along)) * (
        GAINS.get(act, 1) if gain is None else gain
    )
    if clamp is not None:
        expected = np.minimum(np.maximum(expected, -clamp), clamp)
    result = bias_act(x, bias, dim=dim, act=act, gain=gain, clamp=clamp)
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("path")
def test_the_clamp_bounds_what_the_gain_made() -> None:
    x = torch.tensor([[-300.0, 200.0, 100.0]])
    torch.testing.assert_close(
        bias_act(x, gain=2.0, clamp=256), torch.tensor([[-256.0, 256.0, 200.0]])
    )


@pytest.mark.usefixtures("path")
def test_slope_and_missing_bias() -> None:
    x = torch.tensor([[-2.0, 3.0]])
    torch.testing.assert_close(
        bias_act(x, act="lrelu", alpha=0.5, gain=1), torch.tensor([[-1.0, 3.0]])
    )
    assert torch.equal(bias_act(x), x)


def away_from_kinks(
    act: str, shape: tuple[int, ...], alpha: float, gain: float, clamp: float | None
) -> tuple[Tensor, Tensor]:
    """Inputs and biases where finite differences see no kink, of activation or clamp."""
    generator = torch.Generator().manual_seed(len(act))
    while True:
        x = torch.randn(shape, dtype=torch.float64, generator=generator) * 1.5
        bias = torch.randn(shape[1], dtype=torch.float64, generator=generator)
        total = x + bias.reshape(-1, *[1] * (x.ndim - 2))
        value = bias_act_reference(total, None, 1, act, alpha, gain, None)  # type: ignore[arg-type]
        if total.abs().min() > 1e-3 and (clamp is None or (value.abs() - clamp).abs().min() > 1e-3):
            return x.requires_grad_(), bias.requires_grad_()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("act", FORMULAS)
@pytest.mark.parametrize("clamp", [None, 0.8])
@pytest.mark.parametrize(("alpha", "gain"), [(0.2, 1.4), (-0.3, 1.0), (0.2, -0.7)])
def test_gradients_of_both_orders(act, clamp: float | None, alpha: float, gain: float) -> None:
    x, bias = away_from_kinks(act, (2, 3, 2), alpha, gain, clamp)

    def run(x: Tensor, bias: Tensor) -> Tensor:
        return bias_act(x, bias, act=act, alpha=alpha, gain=gain, clamp=clamp)

    def without_bias(x: Tensor) -> Tensor:
        return bias_act(x, act=act, alpha=alpha, gain=gain, clamp=clamp)

    total = (x + bias[:, None]).detach().requires_grad_()
    assert torch.autograd.gradcheck(run, (x, bias))
    assert torch.autograd.gradgradcheck(run, (x, bias))
    assert torch.autograd.gradcheck(without_bias, total)
    assert torch.autograd.gradgradcheck(without_bias, total)


@pytest.mark.usefixtures("path")
def test_the_input_keeps_its_values_dtype_and_layout() -> None:
    x = torch.randn(2, 4, 3, 3).to(torch.bfloat16, memory_format=torch.channels_last)
    before = x.clone()
    result = bias_act(x, torch.randn(4), act="lrelu", clamp=1)
    assert result.dtype == torch.bfloat16
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before)


@pytest.mark.usefixtures("path")
def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"unknown activation 'gelu'.*lrelu"):
        bias_act(torch.zeros(1, 1), act="gelu")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"bias of shape \(4,\) for dimension 1 of an input of shape \(2, 3\)"
    ):
        bias_act(torch.zeros(2, 3), torch.zeros(4))


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same numbers in other memory layouts, dense and not."""
    views = {
        "contiguous": x.contiguous(),
        "reversed": (
            x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
        ),
        "sliced": torch.stack([x, x + 1], dim=-1)[..., 0],
        "padded": torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
        "expanded": x[:1].expand(x.shape),
    }
    if x.ndim == 4:
        views["channels-last"] = x.contiguous(memory_format=torch.channels_last)
    return views


def same_layout(a: Tensor, b: Tensor) -> bool:
    """True if strides agree where they matter."""
    return a.numel() == 0 or all(
        i == j for i, j, size in zip(a.stride(), b.stride(), a.shape, strict=True) if size > 1
    )


def value_and_gradients(
    x: Tensor, bias: Tensor | None, grad: Tensor, **options: object
) -> list[Tensor]:
    leaf = x.detach().requires_grad_()
    leaves = (leaf,) if bias is None else (leaf, bias.detach().requires_grad_())
    y = bias_act(*leaves, **options)  # type: ignore[arg-type]
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


@pytest.mark.usefixtures("kernels")
@settings(max_examples=150)
@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    dim=st.integers(0, 4),
    act=st.sampled_from(list(FORMULAS)),
    dtype=st.sampled_from(list(ROUNDING)),
    alpha=st.sampled_from([0.2, 0.0, -0.3]),
    gain=st.sampled_from([1.0, 1.4, -0.6]),
    clamp=st.sampled_from([None, 0.9]),
    has_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_kernel_against_the_reference_in_double_precision(
    shape, dim, act, dtype, alpha, gain, clamp, has_bias, seed
) -> None:
    dim %= len(shape)
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator).to(dtype)
    bias = torch.randn(shape[dim], generator=generator).to(dtype) if has_bias else None
    for name, x in layouts(base).items():
        exact_x, exact_bias = x.double(), None if bias is None else bias.double()
        unclamped = bias_act_reference(exact_x, exact_bias, dim, act, alpha, gain, None)
        distance = (
            torch.ones_like(unclamped) if clamp is None else (unclamped.abs() / clamp - 1).abs()
        )
        # at the bound rounding decides
        grad = (distance > 0.05).to(dtype) * torch.randn(shape, generator=generator).to(dtype)
        options = {"dim": dim, "act": act, "alpha": alpha, "gain": gain, "clamp": clamp}
        results = value_and_gradients(x, bias, grad, **options)
        with library.path("reference"):
            expected = value_and_gradients(exact_x, exact_bias, grad.double(), **options)
        assert same_layout(results[0], bias_act_reference(x, bias, dim, act, alpha, gain, clamp)), (
            name
        )
        for result, exact in zip(results, expected, strict=True):
            assert result.dtype == dtype
            scale = float(exact.abs().max()) if exact.numel() else 1.0
            torch.testing.assert_close(
                result.double(), exact, rtol=ROUNDING[dtype], atol=ROUNDING[dtype] * (scale + 0.1)
            )


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        ((2, 3, 200, 301), 1),
        ((5, 700, 3, 3), 1),
        ((60_001, 3), 1),
        ((3, 60_001), 1),
        ((2, 513, 17, 31), 1),
        ((70_001,), 0),
        ((2, 2, 70_001), 0),
    ],
)
def test_sizes_that_are_cut_into_pieces(
    shape: tuple[int, ...], dim: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype)
    bias, grad = (
        torch.randn(shape[dim], generator=generator).to(dtype),
        torch.randn(shape, generator=generator).to(dtype),
    )
    for name in ("contiguous", "reversed"):
        results = value_and_gradients(layouts(x)[name], bias, grad, dim=dim, act="lrelu")
        with library.path("reference"):
            expected = value_and_gradients(
                x.double(), bias.double(), grad.double(), dim=dim, act="lrelu"
            )
        for result, exact in zip(results, expected, strict=True):
            bound = ROUNDING[dtype] * float(exact.abs().max())
            torch.testing.assert_close(result.double(), exact, rtol=0, atol=bound)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sums_do_not_depend_on_the_number_of_threads(layout: torch.memory_format) -> None:
    x, bias = torch.randn(3, 5, 150, 151).contiguous(memory_format=layout), torch.randn(5)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(value_and_gradients(x, bias, x.cos(), act="lrelu"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("act", FORMULAS)
@pytest.mark.parametrize("clamp", [None, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nan_and_infinities_go_where_the_reference_has_them(
    act, clamp: float | None, dtype: torch.dtype
) -> None:
    special = torch.tensor(
        [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e4, -1e4, 88.0, -88.0, 20.5, 1.0], dtype=dtype
    )
    x = special.repeat(7)[None]  # also beyond one vector
    with library.path("reference"):
        expected = bias_act(x, act=act, clamp=clamp)
    torch.testing.assert_close(bias_act(x, act=act, clamp=clamp), expected, equal_nan=True)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("act", ["linear", "relu", "lrelu"])
@pytest.mark.parametrize("clamp", [None, 2.0])
def test_infinite_gradients_stop_at_the_clamp_only(act, clamp: float | None) -> None:
    x = torch.tensor([[-30.0, -1.0, 0.5, 30.0]] * 3)
    grad = torch.tensor([[math.nan] * 4, [math.inf] * 4, [-math.inf] * 4])
    with library.path("reference"):
        expected = value_and_gradients(x, None, grad, act=act, clamp=clamp)
    torch.testing.assert_close(
        value_and_gradients(x, None, grad, act=act, clamp=clamp), expected, equal_nan=True
    )


@pytest.mark.usefixtures("path")
def test_scalars_and_nothing() -> None:
    torch.testing.assert_close(
        bias_act(torch.tensor(-2.0), act="lrelu", gain=1), torch.tensor(-0.4)
    )
    for shape in ((0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)):
        x, bias = torch.zeros(shape, requires_grad=True), torch.zeros(shape[1], requires_grad=True)
        y = bias_act(x, bias, act="lrelu", clamp=1)
        grads = torch.autograd.grad(y.sum(), (x, bias))
        assert y.shape == grads[0].shape == shape
        assert torch.equal(grads[1], torch.zeros(shape[1]))


@pytest.mark.usefixtures("path")
def test_a_bias_of_another_dtype_is_rounded_and_gets_its_own_gradient() -> None:
    x, bias = (
        torch.zeros(1, 2, dtype=torch.bfloat16),
        torch.tensor([1.001, 2.0], requires_grad=True),
    )
    y = bias_act(x, bias)
    assert torch.equal(y.detach(), torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16))
    (grad,) = torch.autograd.grad(y.sum(), bias)
    assert grad.dtype == torch.float32


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("options", "saved"),
    [
        ({"act": "linear", "gain": 0.5}, "nothing"),
        ({"act": "linear", "clamp": 1.0}, "output"),
        ({"act": "lrelu", "clamp": 1.0}, "output"),
        ({"act": "relu"}, "output"),
        ({"act": "lrelu", "gain": -1.0}, "input"),
        ({"act": "lrelu", "alpha": -0.1}, "input"),
        ({"act": "swish"}, "input"),
    ],
)
def test_what_is_kept_for_the_backward_pass(options: dict, saved: str) -> None:
    x, bias = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(3)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = bias_act(x, bias, **options)
    large = [t.data_ptr() for t in kept if t is not None and t.numel() > 3]
    assert large == {"nothing": [], "output": [y.data_ptr()], "input": [x.data_ptr()]}[saved]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("act", ["linear", "lrelu", "swish"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("has_bias", [True, False])
def test_registration(act, layout: torch.memory_format, has_bias: bool) -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=layout).requires_grad_()
    bias = torch.randn(3, requires_grad=True) if has_bias else None
    common = (1, act, 0.2, 1.5, 1.0)
    torch.library.opcheck(torch.ops.open_eg3d.bias_act.default, (x, bias, *common))
    grad = torch.randn_like(x).requires_grad_()
    is_output = act != "swish"
    saved = torch.ops.open_eg3d.bias_act(x, bias, *common).detach() if is_output else x
    backward = (grad, bias, saved, None if is_output else bias, *common, is_output, has_bias)
    torch.library.opcheck(torch.ops.open_eg3d.bias_act_backward.default, backward)
    fixed_bias = None if bias is None else bias.detach()
    second = (grad.detach(), fixed_bias, grad.detach(), x.detach(), fixed_bias, *common, has_bias)
    torch.library.opcheck(torch.ops.open_eg3d.bias_act_double_backward.default, second)


@pytest.mark.usefixtures("kernels")
def test_piecewise_linear_ones_have_all_derivatives_and_smooth_ones_say_where_they_end() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    (first,) = torch.autograd.grad(bias_act(x, act="lrelu").pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    (third,) = torch.autograd.grad(second.sum(), x)
    slope = torch.where(x > 0, math.sqrt(2), 0.2 * math.sqrt(2))
    torch.testing.assert_close(third, 6 * slope**3)
    (first,) = torch.autograd.grad(bias_act(x, act="swish").sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="OPEN_EG3D_OPS=reference"):
        torch.autograd.grad(second.sum(), x)


@pytest.mark.usefixtures("path")
def test_torch_compile_passes_through_without_a_break() -> None:
    def layer(x: Tensor, bias: Tensor) -> Tensor:
        return bias_act(x * 2, bias, act="lrelu", clamp=1).square()

    x, bias = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(3, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, bias), layer(x, bias))
    expected = torch.autograd.grad(layer(x, bias).sum(), (x, bias))
    torch.testing.assert_close(torch.autograd.grad(compiled(x, bias).sum(), (x, bias)), expected)


BUSY_THREADS = """
import os, time, torch
from torch_utils.ops import library

def processor_times():
    tasks = os.listdir("/proc/self/task")
    return {{
        task: int(open(f"/proc/self/task/{{task}}/schedstat").read().split()[0]) for task in tasks
    }}

torch.set_num_threads({threads})
x = torch.ones(1 << 20)
assert library.load()
time.sleep(0.3)
before = processor_times()
for _ in range(100):
    torch.ops.open_eg3d.bias_act(x, None, 0, "tanh", 0.0, 1.0, None)
print(sum(t - before.get(task, 0) > 1e7 for task, t in processor_times().items()))
"""


@pytest.mark.usefixtures("kernels")
@pytest.mark.skipif(sys.platform != "linux", reason="reads processor times from /proc")
@pytest.mark.parametrize("threads", [1, 2])
def test_as_many_threads_work_as_torch_is_set_to(threads: int) -> None:
    command = [sys.executable, "-c", BUSY_THREADS.format(threads=threads)]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, library.VARIABLE: "cpp"},
    )
    assert int(run.stdout) == threads


@pytest.mark.usefixtures("kernels")
def test_self_checks_compare_every_activation_in_every_dtype() -> None:
    checks = list(self_checks())
    for act in ACTIVATIONS:
        for dtype in ("float32", "bfloat16", "float16", "float64"):
            assert any(f" {act} {dtype}" in check.name for check in checks)
    assert all(check.error <= check.tolerance for check in checks)
