"""Chooses between compiled operators and their plain PyTorch references: the one dispatch point of all operators.

An operator's module looks like this:

    def scale(x, factor):                       # public: documentation, checks, dispatch
        if library.use_kernels(x):
            return torch.ops.open_eg3d.scale(x, factor)
        return scale_reference(x, factor)

    @library.on_load
    def _register():                            # runs once, after the shared library is there
        torch.library.register_fake("open_eg3d::scale", ...)
        torch.library.register_autograd("open_eg3d::scale", ...)

    def self_checks():                          # what `python -m torch_utils.ops` compares
        yield library.SelfCheck("scale, fp32", result, expected, tolerance=1e-6)

Its schema is in csrc/<operator>.cpp: `TORCH_LIBRARY_FRAGMENT(open_eg3d, m)`; its kernels in csrc/cpu/<operator>_cpu.cpp:
`TORCH_LIBRARY_IMPL(open_eg3d, CPU, m)`.

The environment variable OPEN_EG3D_OPS forces a path: `reference` (plain PyTorch), `cpp` (compiled, for the CPU) or `cuda`. Without it
the compiled operators serve wherever they can be built, which happens on first use.
"""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from dnnlib.console import UserError
from torch_utils.ops import builder

VARIABLE = "OPEN_EG3D_OPS"
PATHS = ("reference", "cpp", "cuda")
KERNEL_DEVICES = ("cpu",)
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

Hook = TypeVar("Hook", bound=Callable[[], None])


@dataclass(frozen=True)
class SelfCheck:
    """One comparison of a compiled operator with its reference; `tolerance` bounds the difference relative to the largest magnitude."""

    name: str
    result: Tensor
    expected: Tensor
    tolerance: float

    @property
    def error(self) -> float:
        """Largest difference, relative to the largest magnitude that is expected; infinite where shape or dtype differ."""
        if self.result.dtype != self.expected.dtype or self.result.shape != self.expected.shape:
            return math.inf
        if self.expected.numel() == 0:
            return 0.0
        result, expected = self.result.detach().double(), self.expected.detach().double()
        error = float((result - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
        return math.inf if math.isnan(error) else error


@dataclass
class _State:
    is_loaded: bool = False
    failure: str | None = None  # why the operators cannot be had; None = not tried, or loaded
    built: builder.Built | None = None
    forced: str | None = None  # by `path`, which goes before the environment variable
    enabled: bool = False  # what `use_kernels` answers while torch.compile traces
    hooks: list[Callable[[], None]] = field(default_factory=list)


_state = _State()


def use_kernels(*tensors: Tensor) -> bool:
    """True if the compiled operators are to serve these tensors; builds and loads them on first use.

    While torch.compile traces, nothing is built: what an earlier call or `load` found counts.

    Raises:
        UserError: if OPEN_EG3D_OPS forces operators that cannot be had, or has an unknown value.
    """
    for tensor in tensors:
        if tensor.device.type not in KERNEL_DEVICES or tensor.dtype not in KERNEL_DTYPES:
            return False
    return _state.enabled if torch.compiler.is_compiling() else load()


def load() -> bool:
    """Build and load the operators unless that has been done; True if they are to be used. To be called before torch.compile.

    Raises:
        UserError: as `use_kernels`.
    """
    wanted = _wanted_path()
    _state.enabled = wanted != "reference" and _is_available(is_forced=wanted is not None)
    return _state.enabled


def details() -> builder.Built | None:
    """How the loaded library was built, or None where none is loaded."""
    return _state.built


def failure() -> str | None:
    """Why the operators could not be loaded, or None."""
    return _state.failure


@contextlib.contextmanager
def path(name: str) -> Iterator[None]:
    """Force "reference" or "cpp" for a while, whatever OPEN_EG3D_OPS says.

    Raises:
        UserError: as `use_kernels`.
    """
    before = _state.forced, _state.enabled
    _state.forced = name
    try:
        load()
        yield
    finally:
        _state.forced, _state.enabled = before


def on_load(hook: Hook) -> Hook:
    """Decorator: run `hook` once the shared library is loaded, at once if it is already."""
    _state.hooks.append(hook)
    if _state.is_loaded:
        hook()
    return hook


def _wanted_path() -> str | None:
    name = _state.forced or os.environ.get(VARIABLE) or None
    if name is not None and name not in PATHS:
        raise UserError(f"{VARIABLE}={name} is not one of {', '.join(PATHS)}; leave it unset for the fastest path that this machine has")
    if name == "cuda":
        raise UserError(f"{VARIABLE}=cuda: there are no CUDA kernels yet; leave it unset, or set it to cpp or reference")
    return name


def _is_available(is_forced: bool) -> bool:
    if not _state.is_loaded and _state.failure is None:
        _try_to_load()
        if _state.failure is not None and not is_forced:
            warnings.warn(
                f"plain PyTorch operators serve, which are slower: {_state.failure}. {VARIABLE}=reference silences this.",
                RuntimeWarning,
                stacklevel=4,
            )
    if is_forced and not _state.is_loaded:
        raise UserError(f"the compiled operators were asked for and cannot be had: {_state.failure}")
    return _state.is_loaded


def _try_to_load() -> None:
    try:
        _state.built = builder.build()
        torch.ops.load_library(_state.built.library)
    except (builder.BuildError, OSError) as error:
        _state.failure = " ".join(str(error).split())
        return
    _state.is_loaded = True
    for hook in _state.hooks:
        hook()
