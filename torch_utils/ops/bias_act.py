"""Bias, activation, gain and clamp in one call (Karras et al. 2020, "Analyzing and improving the
image quality of StyleGAN").

`bias_act_reference` is the definition. The compiled operator computes half-precision numbers in
fp32 and rounds once. For the backward pass it keeps the output where that tells the slope (which
the next layer keeps anyway), else the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils.ops import library

ActivationName = Literal[
    "linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish"
]


@dataclass(frozen=True)
class Activation:
    """A nonlinearity `function(x, alpha)`, its usual `alpha` and the `gain` that keeps the variance
    of its output near one.
    """

    function: Callable[[Tensor, float], Tensor]
    alpha: float = 0.0
    gain: float = 1.0


ACTIVATIONS: dict[ActivationName, Activation] = {
    "linear": Activation(lambda x, _: x),
    "relu": Activation(lambda x, _: F.relu(x), gain=math.sqrt(2)),
    "lrelu": Activation(lambda x, alpha: F.leaky_relu(x, alpha), alpha=0.2, gain=math.sqrt(2)),
    "tanh": Activation(lambda x, _: torch.tanh(x)),
    "sigmoid": Activation(lambda x, _: torch.sigmoid(x)),
    "elu": Activation(lambda x, _: F.elu(x)),
    "selu": Activation(lambda x, _: F.selu(x)),
    "softplus": Activation(lambda x, _: F.softplus(x)),
    "swish": Activation(lambda x, _: F.silu(x), gain=math.sqrt(2)),
}


def bias_act(
    x: Tensor,  # any shape
    bias: Tensor | None = None,  # (x.shape[dim],)
    dim: int = 1,
    act: ActivationName = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """clamp(gain * act(x + bias)), of the shape, dtype and layout of `x`.

    Derivatives of any order, but on the compiled path only two for activations that are not
    piecewise linear. At the bounds of the clamp themselves the gradient may be passed on or not.

    Args:
        x: Input of any shape.
        bias: One value for every index of dimension `dim`, or None.
        act: Name in `ACTIVATIONS`.
        alpha: Slope of `lrelu`; None = its usual value.
        gain: Factor after the activation; None = the usual one of the activation.
        clamp: Bound on the magnitude of the result, or None.

    Raises:
        ValueError: for an unknown activation, or a bias of another shape.
    """
    if act not in ACTIVATIONS:
        raise ValueError(f"unknown activation {act!r}; known are {', '.join(ACTIVATIONS)}")
    if bias is not None and bias.shape != (x.shape[dim],):
        raise ValueError(
            f"bias of shape {tuple(bias.shape)} for dimension {dim} of an input of shape"
            f" {tuple(x.shape)}"
        )
    alpha = ACTIVATIONS[act].alpha if alpha is None else alpha
    gain = ACTIVATIONS[act].gain if gain is None else gain
    is_identity = bias is None and act == "linear" and gain == 1 and clamp is None
    if is_identity or not library.use_kernels(x):
        return bias_act_reference(x, bias, dim, act, alpha, gain, clamp)
    bias = None if bias is None else bias.to(x.dtype)
    return torch.ops.open_eg3d.bias_act(x, bias, dim % max(x.ndim, 1), act, alpha, gain, clamp)


def bias_act_reference(
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    act: ActivationName,
    alpha: float,
    gain: float,
    clamp: float | None,
) -> Tensor:
    """What `bias_act` means, in plain PyTorch."""
    if bias is not None:
        x = x + bias.to(x.dtype).reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])
    x = ACTIVATIONS[act].function(x, alpha)
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def self_checks(device: torch.device = library.CPU) -> Iterator[library.SelfCheck]:
    """Every activation forward, and lrelu's gradients, against the reference in several dtypes and
    layouts.
    """
    generator = torch.Generator().manual_seed(0)
    for dtype, tolerance in (
        (torch.float32, 1e-5),
        (torch.bfloat16, 2e-2),
        (torch.float16, 3e-3),
        (torch.float64, 1e-12),
    ):
        x = torch.randn(2, 5, 19, 17, generator=generator, dtype=torch.float64).mul(2).to(dtype)
        bias = torch.randn(5, generator=generator, dtype=torch.float64).to(dtype)
        for act in ACTIVATIONS:
            for layout in (torch.contiguous_format, torch.channels_last):
                yield from _compare(
                    f"bias_act {act} {dtype}".replace("torch.", ""),
                    x.to(memory_format=layout),
                    bias,
                    act,
                    tolerance,
                    device,
                )


def _compare(
    name: str,
    x: Tensor,
    bias: Tensor,
    act: ActivationName,
    tolerance: float,
    device: torch.device,
) -> Iterator[library.SelfCheck]:
    """Output and both gradients, the reference in fp64. The gradient flows where rounding does not
    decide whether the clamp acts.
    """
    clamp = 2.7
    unclamped = bias_act_reference(
        x.double(), bias.double(), 1, act, ACTIVATIONS[act].alpha, ACTIVATIONS[act].gain, None
    )
    grad = ((unclamped.abs() / clamp - 1).abs() > 0.05).to(x.dtype) * x
    results = []
    for path, dtype, where in (
        (library.compiled_path(device), x.dtype, device),
        ("reference", torch.float64, library.CPU),
    ):
        with library.path(path):
            leaf, bias_leaf = (v.detach().to(where, dtype).requires_grad_() for v in (x, bias))
            output = bias_act(leaf, bias_leaf, act=act, clamp=clamp)
            gradients = torch.autograd.grad(output, (leaf, bias_leaf), grad.to(where, dtype))
            results.append((output, *gradients))
    for part, result, expected in zip(
        ("output", "gradient of x", "gradient of bias"), *results, strict=True
    ):
        yield library.SelfCheck(f"{name}, {part}", result, expected.to(x.dtype), tolerance)


PIECEWISE_LINEAR = ("linear", "relu", "lrelu")
Settings = tuple[int, ActivationName, float, float, float | None]  # dim, act, alpha, gain, clamp


def _output_tells_slope(settings: Settings) -> bool:
    _, act, alpha, gain, _ = settings
    return (
        act == "linear"
        or (act == "relu" and gain > 0)
        or (act == "lrelu" and gain > 0 and alpha >= 0)
    )


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, *settings = inputs
    ctx.settings = tuple(settings)
    ctx.has_bias = bias is not None
    _, act, _, _, clamp = ctx.settings
    if act == "linear" and clamp is None:
        ctx.save_for_backward()
    elif _output_tells_slope(ctx.settings):
        ctx.save_for_backward(output)
    else:
        ctx.save_for_backward(x, bias)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dim, act, _, gain, clamp = ctx.settings
    if act == "linear" and clamp is None:
        grad_x = grad if gain == 1 else grad * gain
        others = [d for d in range(grad.ndim) if d != dim]  # PyTorch takes no dimensions for all
        grad_bias = grad_x.sum(others) if others else grad_x
    else:
        is_output = len(ctx.saved_tensors) == 1
        saved, bias = (*ctx.saved_tensors, None) if is_output else ctx.saved_tensors
        grad_x, grad_bias = torch.ops.open_eg3d.bias_act_backward(
            grad, None, saved, bias, *ctx.settings, is_output, ctx.has_bias
        )
    return grad_x, grad_bias if ctx.has_bias else None, None, None, None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    del output
    grad, shift, saved, bias, *settings, ctx.is_output, ctx.wants_sum = inputs
    ctx.settings = tuple(settings)
    ctx.has_shift, ctx.has_bias = shift is not None, bias is not None
    is_linear_in_pieces = ctx.settings[1] in PIECEWISE_LINEAR
    ctx.save_for_backward(saved, bias, *([] if is_linear_in_pieces else [grad, shift]))


def _double_backward(
    ctx: Any, grad_of_grad_x: Tensor, grad_of_grad_bias: Tensor
) -> tuple[Tensor | None, ...]:
    """Derivative of `bias_act_backward`: it is linear in (grad + shift), and the slope depends on x
    + bias.
    """
    saved, bias, *rest = ctx.saved_tensors
    factors = grad_of_grad_x, grad_of_grad_bias if ctx.wants_sum else None
    grad_grad, grad_shift = torch.ops.open_eg3d.bias_act_backward(
        *factors, saved, bias, *ctx.settings, ctx.is_output, ctx.has_shift
    )
    grad_x = grad_bias = None
    if rest:
        grad, shift = rest
        if shift is not None:
            grad = grad + shift.reshape(
                [-1 if i == ctx.settings[0] else 1 for i in range(grad.ndim)]
            )
        grad_x, grad_bias = torch.ops.open_eg3d.bias_act_double_backward(
            *factors, grad, saved, bias, *ctx.settings, ctx.has_bias
        )
    return (
        grad_grad,
        grad_shift if ctx.has_shift else None,
        grad_x,
        grad_bias if ctx.has_bias else None,
        *[None] * 7,
    )


def _third_derivative(ctx: Any, *grads: Tensor) -> None:
    del ctx, grads
    raise NotImplementedError(
        "bias_act: third derivatives of smooth activations are not compiled; set"
        f" {library.VARIABLE}=reference for them"
    )


def _fake_forward(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _fake_backward(
    grad: Tensor, shift: Tensor | None, saved: Tensor, bias: Tensor | None, dim: int, *rest: Any
) -> tuple[Tensor, Tensor]:
    del grad, shift, bias
    wants_sum = rest[-1]
    return torch.empty_like(saved), saved.new_empty(saved.shape[dim] if wants_sum else 0)


def _fake_double_backward(
    factor: Tensor, shift: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    del factor
    grad, *rest_of_backward = rest
    return _fake_backward(grad, shift, *rest_of_backward)


@library.on_load
def _register() -> None:
    library.register("bias_act", _fake_forward, _backward, _save_forward)
    library.register("bias_act_backward", _fake_backward, _double_backward, _save_backward)
    library.register("bias_act_double_backward", _fake_double_backward, _third_derivative)
