"""Whether the compiled operators compute what their references do: every operator on a small
input, for people who ask (`python -m torch_utils.ops`), and once for each kind of GPU before it is
trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from torch_utils.ops import cuda_builder, library
from torch_utils.ops.builder import Built

MODULES = (
    "bias_act",
    "upfirdn2d",
    "filtered_lrelu",
    "modulation",
    "render_rays",
    "decode_points",
    "rasterize_gaussians",
)


def checks(device: torch.device = library.CPU) -> Iterator[tuple[str, library.SelfCheck]]:
    """The checks of all operators on `device`, against references on the CPU, by the operator's
    name.
    """
    for name in MODULES:
        for check in importlib.import_module(f"{__package__}.{name}").self_checks(device):
            yield name, check


@library.check_gpus
def problem(gpu: int, built: Built) -> str | None:
    """Why the library `built` must not serve the GPU of that number, or None. That it may is
    remembered beside the library, for GPUs of that kind in this machine.
    """
    properties = torch.cuda.get_device_properties(gpu)
    if not cuda_builder.runs_on(built.flags, (properties.major, properties.minor)):
        return (
            f"{properties.name} is of compute capability {properties.major}.{properties.minor},"
            " older than the CUDA operators are compiled for"
        )
    kind = f"{platform.node()} {properties.name} {properties.major}.{properties.minor}"
    mark = Path(built.library).parent / f"checked-{hashlib.sha256(kind.encode()).hexdigest()[:16]}"
    if mark.exists():
        return None
    found = first_mismatch(torch.device("cuda", gpu))
    if found is not None:
        return f"{found} on {properties.name}; please report this"
    with contextlib.suppress(OSError):  # then the next process checks again
        mark.write_text(f"{kind}\n", encoding="utf-8")
    return None


def first_mismatch(device: torch.device) -> str | None:
    """The first check on `device` that fails, or None."""
    try:
        with torch.inference_mode(mode=False), torch.enable_grad():
            for _, check in checks(device):
                if not check.error <= check.tolerance:
                    return (
                        f"{check.name} differs from its reference by {check.error:.2g} of the"
                        f" largest value, more than {check.tolerance:.2g}"
                    )
    except RuntimeError as error:  # a launch that the driver refuses, say
        return f"an operator fails ({str(error).strip().splitlines()[0]})"
    return None
