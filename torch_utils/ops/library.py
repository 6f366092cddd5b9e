"""Chooses between compiled operators and their plain PyTorch references: the one dispatch point of
all operators.

An operator's module looks like this:

    def scale(x, factor):                       # public: documentation, checks, dispatch
        if library.use_kernels(x):
            return torch.ops.open_eg3d.scale(x, factor)
        return scale_reference(x, factor)

    @library.on_load
    def _register():                            # runs once, after the shared library is there
        library.register("scale", fake, backward, setup_context)

    def self_checks(device=library.CPU):        # what self_check.py compares
        yield library.SelfCheck("scale, fp32", result, expected, tolerance=1e-6)

Its schema is in csrc/schemas.cpp; its kernels are in csrc/cpu/<operator>_cpu.cpp:
`TORCH_LIBRARY_IMPL(open_eg3d, CPU, m)`, and in csrc/cuda, a library of its own that is built where
CUDA tensors first ask for it.

The environment variable OPEN_EG3D_OPS forces a path: `reference` (plain PyTorch), `cpp` (compiled,
for the CPU; plain PyTorch on CUDA) or `cuda` (insists on CUDA kernels; on the CPU as without the
variable). Without it the compiled operators serve wherever they can be built, which happens on
first use.
"""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor

from dnnlib.console import UserError
from torch_utils.ops import builder, cuda_builder

VARIABLE = "OPEN_EG3D_OPS"
PATHS = ("reference", "cpp", "cuda")
KERNEL_DEVICES = ("cpu", "cuda")
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

CPU = torch.device("cpu")

Device = Literal["cpu", "cuda"]
Hook = TypeVar("Hook", bound=Callable[[], None])


@dataclass(frozen=True)
class SelfCheck:
    """One comparison of a compiled operator with its reference; `tolerance` bounds the difference
    relative to the largest magnitude.
    """

    name: str
    result: Tensor
    expected: Tensor
    tolerance: float

    @property
    def error(self) -> float:
        """Largest difference, relative to the largest magnitude that is expected; infinite where
        shape or dtype differ.
        """
        if self.result.dtype != self.expected.dtype or self.result.shape != self.expected.shape:
            return math.inf
        if self.expected.numel() == 0:
            return 0.0
        result, expected = (x.detach().cpu().double() for x in (self.result, self.expected))
        error = float((result - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
        return math.inf if math.isnan(error) else error


@dataclass
class _Part:
    """The library of one kind of device."""

    is_loaded: bool = False
    failure: str | None = None  # why the operators are not available; None = not tried, or loaded
    built: builder.Built | None = None
    enabled: bool = False  # what `use_kernels` answers while torch.compile traces


@dataclass
class _State:
    parts: dict[str, _Part] = field(
        default_factory=lambda: {device: _Part() for device in KERNEL_DEVICES}
    )
    forced: str | None = None  # by `path`, which goes before the environment variable
    hooks: list[Callable[[], None]] = field(default_factory=list)
    # by number of the GPU: why plain PyTorch serves it, or None; first asked for when it is used
    gpus: dict[int, str | None] = field(default_factory=dict)


_state = _State()
GpuCheck = Callable[[int, builder.Built], str | None]
_gpu_checks: list[GpuCheck] = []


def use_kernels(*tensors: Tensor) -> bool:
    """True if the compiled operators are to serve these tensors; builds and loads them on first
    use.

    While torch.compile traces, nothing is built: what an earlier call or `load` found counts.

    Raises:
        UserError: if OPEN_EG3D_OPS forces operators that are missing, or has an unknown value, or
            OPEN_EG3D_ARCH has.
    """
    device = tensors[0].device.type
    for tensor in tensors:
        if (
            tensor.device.type != device
            or device not in KERNEL_DEVICES
            or tensor.dtype not in KERNEL_DTYPES
        ):
            return False
    gpu = tensors[0].device.index if device == "cuda" else None
    if torch.compiler.is_compiling():
        return _state.parts[device].enabled and (gpu is None or _state.gpus.get(gpu) is None)
    return load(cast(Device, device)) and (gpu is None or _serves_gpu(gpu))


def compiled_path(device: torch.device) -> str:
    """The path of the compiled operators for `device`."""
    return "cuda" if device.type == "cuda" else "cpp"


def load(device: Device = "cpu") -> bool:
    """Build and load the operators for `device` unless that has been done; True if they are to be
    used.

    To be called before torch.compile.

    Raises:
        UserError: as `use_kernels`.
    """
    wanted = _wanted_path()
    is_refused = wanted == "reference" or (wanted == "cpp" and device == "cuda")
    is_forced = wanted == ("cuda" if device == "cuda" else "cpp")
    part = _state.parts[device]
    part.enabled = not is_refused and _is_available(device, is_forced)
    if not part.enabled or device == "cpu":
        return part.enabled
    return _serves_gpu(torch.cuda.current_device())


def _serves_gpu(gpu: int) -> bool:
    """Whether the operators serve the GPU of that number: looked into when it is first used.

    Raises:
        UserError: if they do not and OPEN_EG3D_OPS insists on them.
    """
    if gpu not in _state.gpus:
        _state.gpus[gpu] = None  # for the checks, which call operators
        built = _state.parts["cuda"].built
        assert built is not None
        problems = (check(gpu, built) for check in _gpu_checks)
        _state.gpus[gpu] = next((text for text in problems if text), None)
        if _state.gpus[gpu] is not None and _wanted_path() != "cuda":
            _warn_of_plain_path(f" on GPU {gpu}", str(_state.gpus[gpu]))
    problem = _state.gpus[gpu]
    if problem is not None and _wanted_path() == "cuda":
        raise UserError(f"the CUDA operators were asked for and cannot serve: {problem}")
    return problem is None


def _warn_of_plain_path(where: str, reason: str) -> None:
    warnings.warn(
        f"plain PyTorch operators serve{where}, which are slower: {reason}. {VARIABLE}=reference"
        " silences this.",
        RuntimeWarning,
        stacklevel=5,
    )


def details(device: Device = "cpu") -> builder.Built | None:
    """How the loaded library for `device` was built, or None where none is loaded."""
    return _state.parts[device].built


def failure(device: Device = "cpu") -> str | None:
    """Why the operators for `device` could not be loaded, or do not serve one of its GPUs, or
    None.
    """
    problems = _state.gpus.values() if device == "cuda" else ()
    return _state.parts[device].failure or next((text for text in problems if text), None)


@contextlib.contextmanager
def path(name: str) -> Iterator[None]:
    """Force "reference", "cpp" or "cuda" for a while, whatever OPEN_EG3D_OPS says.

    Raises:
        UserError: as `use_kernels`.
    """
    before = _state.forced, {device: part.enabled for device, part in _state.parts.items()}
    _state.forced = name
    try:
        load("cuda" if name == "cuda" else "cpu")
        if name != "cuda":
            _state.parts["cuda"].enabled = False
        yield
    finally:
        _state.forced, enabled = before
        for device, part in _state.parts.items():
            part.enabled = enabled[device]


def on_load(hook: Hook) -> Hook:
    """Decorator: run `hook` once the shared library is loaded, at once if it is already."""
    _state.hooks.append(hook)
    if _state.parts["cpu"].is_loaded:
        hook()
    return hook


def check_gpus(check: GpuCheck) -> GpuCheck:
    """Decorator: ask `check` why the library must not serve the GPU of a number, None = it may,
    when that GPU is used first.
    """
    _gpu_checks.append(check)
    return check


def register(
    operator: str,
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
) -> None:
    """Tell PyTorch the result's shape and the derivative of `open_eg3d::<operator>`, as
    torch.library's `register_fake` and `register_autograd` take them.
    """
    name = f"open_eg3d::{operator}"
    torch.library.register_fake(name, fake)
    torch.library.register_autograd(name, backward, setup_context=setup_context)


def _wanted_path() -> str | None:
    name = _state.forced or os.environ.get(VARIABLE) or None
    if name is not None and name not in PATHS:
        raise UserError(
            f"{VARIABLE}={name} is not one of {', '.join(PATHS)}; leave it unset for the fastest"
            " path that this machine has"
        )
    return name


def _is_available(device: Device, is_forced: bool) -> bool:
    part = _state.parts[device]
    if not part.is_loaded and part.failure is None:
        part.failure = _try_to_load(device)
        if part.failure is not None and not is_forced:
            _warn_of_plain_path(" on CUDA" if device == "cuda" else "", part.failure)
    if is_forced and not part.is_loaded:
        kind = "CUDA operators" if device == "cuda" else "compiled operators"
        raise UserError(f"the {kind} were asked for and cannot be had: {part.failure}")
    return part.is_loaded


def _try_to_load(device: Device) -> str | None:
    """Why it failed, or None."""
    part = _state.parts[device]
    try:
        if device == "cuda":
            _check_for_cuda()
        part.built = cuda_builder.build() if device == "cuda" else builder.build()
        torch.ops.load_library(part.built.library)
    except (builder.BuildError, OSError) as error:
        return " ".join(str(error).split())
    part.is_loaded = True
    if device == "cpu":
        for hook in _state.hooks:
            hook()
    return None


def _check_for_cuda() -> None:
    """Raises BuildError without a GPU, or without the C++ library, which has the schemas."""
    if not torch.cuda.is_available():
        raise builder.BuildError("there is no CUDA device")
    if not _is_available("cpu", is_forced=False):
        raise builder.BuildError(f"they need the C++ operators: {failure()}")
