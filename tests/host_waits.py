"""Finds where the host waits for a GPU, without one: tensors of device "meta" stand for a GPU's,
and every operation on them is looked at.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torch_utils import sample_random

DEVICE = torch.device("meta")
aten = torch.ops.aten
# What reads a number off a device, or a size that its numbers decide.
READS = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.nonzero,
    aten.masked_select,
    aten.unique_dim,
    aten._unique2,
    aten._linalg_check_errors,
    aten.repeat_interleave,
    aten.bincount,
}


CONSTRUCTORS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)


class _Constructors(TorchFunctionMode):
    """Fails where numbers of Python's become a tensor on the device: they are copied there."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        if function in CONSTRUCTORS and result.device == DEVICE:
            is_there = isinstance(arguments[-1], Tensor) and arguments[-1].device == DEVICE
            assert is_there, f"{function} copies from the host and waits"
        return result


class HostWaits(TorchDispatchMode):
    """Fails at the first operation for which the host would wait.

    Copies from the host are none where they are said not to block; an index on the host is copied
    first, and a mask is looked through for its size. Numbers on the host, of no dimension, travel
    with a kernel's arguments.
    """

    def __enter__(self) -> Any:
        self._constructors = _Constructors()
        self._constructors.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._constructors.__exit__(*error)

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        options = options or {}
        tensors = [x for x in tree_leaves((arguments, options)) if isinstance(x, Tensor)]
        there = [x for x in tensors if x.device == DEVICE]
        operation = function.overloadpacket
        if there and operation in READS:
            raise AssertionError(f"{function} waits for its result")
        if there and options.get("device", DEVICE) != DEVICE:
            raise AssertionError(f"{function} copies to the host")
        if there and operation in (aten.index, aten.index_put, aten.index_put_):
            for index in arguments[1]:
                assert index is None or index.dtype != torch.bool, f"{function} looks into a mask"
                assert index is None or index.device == DEVICE, f"{function} copies an index"
        result = function(*arguments, **options)
        found = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if there and any(x.device != DEVICE for x in found):
            raise AssertionError(f"{function} copies to the host")
        sent = [x for x in tensors if x.device != DEVICE]
        if sent and any(x.device == DEVICE for x in found):
            is_number = all(x.ndim == 0 for x in sent) and there and operation != aten.copy_
            may_wait = not options.get("non_blocking") and not any(x is True for x in arguments[2:])
            assert is_number or not may_wait, f"{function} copies from the host and waits"
        return result


@pytest.fixture
def meta_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What "meta" lacks to stand for a GPU in training: generators, and leave of fused Adam."""

    def draw(_: Any, kind: Any, shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
        return kind(shape, dtype=dtype, device=device)

    monkeypatch.setattr(sample_random.SampleStreams, "draw", draw)
    adam = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_, **__: None)
