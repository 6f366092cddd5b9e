"""Bias, activation, gain and clamp in one call (Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN")."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ActivationName = Literal["linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish"]


@dataclass(frozen=True)
class Activation:
    """A nonlinearity `function(x, alpha)`, its usual `alpha` and the `gain` that keeps the variance of its output near one."""

    function: Callable[[Tensor, float], Tensor]
    alpha: float = 0.0
    gain: float = 1.0


ACTIVATIONS: dict[str, Activation] = {
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
    """clamp(gain * act(x + bias)), of the shape and dtype of `x`.

    Args:
        x: Input of any shape.
        bias: One value for every index of dimension `dim`, or None.
        act: Name in `ACTIVATIONS`.
        alpha: Slope of `lrelu`; None = its usual value.
        gain: Factor after the activation; None = the usual one of the activation.
        clamp: Bound on the magnitude of the result, or None.

    Raises:
        ValueError: for an unknown activation.
    """
    if act not in ACTIVATIONS:
        raise ValueError(f"unknown activation {act!r}; known are {', '.join(ACTIVATIONS)}")
    activation = ACTIVATIONS[act]
    if bias is not None:
        x = x + bias.to(x.dtype).reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])
    x = activation.function(x, activation.alpha if alpha is None else alpha)
    gain = activation.gain if gain is None else gain
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)
