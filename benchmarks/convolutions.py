"""The convolutions inside a computation, alone: what is left when everything around them is
free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = (torch.conv2d, torch.conv_transpose2d)


class _Recorder(TorchFunctionMode):
    """Notes the calls of ungrouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in CONVOLUTIONS and kwargs.get("groups", 1) == 1:
            self.calls.append((func, args, kwargs))
        return func(*args, **kwargs)


def bare_convolutions(run: Callable[[], object]) -> Callable[[], None]:
    """A function that repeats, one after the other, the convolutions that `run` makes, on
    channels-last tensors of the same sizes.
    """
    recorder = _Recorder()
    with recorder:
        run()
    calls = [
        (func, _copy(args[0]), _copy(args[1]), args[2:], kwargs)
        for func, args, kwargs in recorder.calls
    ]

    def repeat() -> None:
        for func, x, weight, rest, kwargs in calls:
            func(x, weight, *rest, **kwargs)

    return repeat


def _copy(value: Tensor) -> Tensor:
    return torch.empty_like(value, memory_format=torch.channels_last).normal_()
