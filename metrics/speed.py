"""Frames per second and memory per frame, with the planes computed once or for every frame."""

from __future__ import annotations

import contextlib
import ctypes
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from metrics.sampling import GeneratorSampler
from torch_utils.memory import drop_kept_memory

FRAMES, WARM_UP = 10, 2
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def speed(sampler: GeneratorSampler, frames: int = FRAMES) -> dict[str, float]:
    """Frames per second of the median frame and, on CUDA and Linux, its peak memory in MiB."""
    c = sampler.cameras(0, 1)
    ws = sampler.ws(sampler.latents(0, 1), c)
    with torch.no_grad():
        planes = sampler.model.planes(ws)
    values: dict[str, float] = {}
    for name, kept in (("cached_planes", planes), ("every_frame", None)):

        def frame(kept: torch.Tensor | None = kept) -> None:
            sampler.render(ws, c, 0, kept)

        memory = peak_memory(frame, sampler.device)
        seconds = [_seconds(frame, sampler.device) for _ in range(WARM_UP + frames)][WARM_UP:]
        values[f"frames_per_second_{name}"] = 1 / statistics.median(seconds)
        if memory is not None:
            values[f"mebibytes_per_frame_{name}"] = memory / 2**20
    return values


def _seconds(frame: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    frame()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(frame: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that `frame` takes at its peak, beyond what is held before; None where the system does
    not tell.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        frame()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    # Freed memory that allocators keep would hide what the frame takes out of it.
    drop_kept_memory()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        CLEAR.write_text("5")  # resets the peak
        before = _resident("VmRSS")
        frame()
        return max(_resident("VmHWM") - before, 0)
    except (OSError, TypeError):
        return None


def _resident(name: str) -> int:
    match = re.search(rf"{name}:\s*(\d+) kB", STATUS.read_text(encoding="ascii", errors="replace"))
    if match is None:
        raise OSError(f"no {name} in {STATUS}")
    return int(match[1]) * 1024
