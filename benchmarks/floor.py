"""The convolutions and matrix products of some work, recorded and run again alone: what the work
would take if all else cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from benchmarks.timing import median_seconds

aten = torch.ops.aten
PRODUCTS = {
    aten.convolution.default,
    aten.convolution_backward.default,
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
}


class Like(NamedTuple):
    """A tensor in a recorded call: everything but its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> Tensor:
        """A tensor of that kind with ordinary numbers."""
        reach = sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return torch.randn(reach + 1).to(self.dtype).as_strided(self.shape, self.stride)


class Call(NamedTuple):
    """One recorded call."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


class Recorder(TorchDispatchMode):
    """Notes convolutions and matrix products, forward and backward, while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        if func in PRODUCTS:
            self.calls.append(Call(func, tree_map(_like, args), tree_map(_like, options)))
        return func(*args, **options)


def _like(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return Like(tuple(value.shape), value.stride(), value.dtype)


def replay(calls: list[Call]) -> Callable[[], None]:
    """A function that runs the calls one after the other, with numbers made beforehand; those of
    equal tensors are shared.
    """
    made: dict[Like, Tensor] = {}

    def tensor(value: Any) -> Any:
        return made.setdefault(value, value.make()) if isinstance(value, Like) else value

    def walk(value: Any) -> Any:
        if isinstance(value, Like) or not isinstance(value, (tuple, list)):
            return tensor(value)
        return type(value)(map(walk, value))

    ready = [
        (call.function, walk(call.arguments), {k: walk(v) for k, v in call.options.items()})
        for call in calls
    ]

    @torch.no_grad()
    def run() -> None:
        for function, arguments, options in ready:
            function(*arguments, **options)

    return run


class Floor(NamedTuple):
    """Work beside its convolutions and matrix products alone.

    Attributes:
        work, alone: median seconds. ratio: work / alone.
    """

    work: float
    alone: float

    @property
    def ratio(self) -> float:
        """How many times as long the whole takes."""
        return self.work / self.alone


def products_alone(work: Callable[[], object]) -> Callable[[], None]:
    """What repeats the convolutions and matrix products of `work`, outside of inference mode.

    Raises:
        ValueError: if there are none.
    """
    with Recorder() as recorder:
        work()
    if not recorder.calls:
        raise ValueError("no convolution and no matrix product was made, or in inference mode")
    return replay(recorder.calls)


def measure_floor(work: Callable[[], object], repeats: int) -> Floor:
    """Time `work` and its products in turns."""
    seconds = median_seconds({"work": work, "alone": products_alone(work)}, repeats)
    return Floor(seconds["work"], seconds["alone"])
