"""Devices to compute on, and what they are fast at."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor


def choose_device(name: str) -> torch.device:
    """The device of that name; auto = CUDA where there is a GPU, else the CPU.

    Raises:
        ValueError: if this machine has none.
    """
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if not available[name]:
        raise ValueError(f"this machine has no {name} device; choose --device cpu")
    return torch.device(name)


def is_asynchronous(device: torch.device) -> bool:
    """Whether `device` computes while the host goes on, so that reading a number from it means
    waiting.

    MPS does, too, but lacks the float64 in which decisions are then made there. Tensors on "meta"
    stand for a GPU's where there is none.
    """
    return device.type in ("cuda", "meta")


def upload(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`; the host does not wait for work that is queued there."""
    if x.device.type == "cpu" and device.type == "cuda":
        x = x.pin_memory()  # the copy of pageable memory makes the host wait
    return x.to(device, non_blocking=device.type != "cpu")


class Uploader:
    """Sends batches to a device while it computes: a GPU copies them on a stream of their own, and
    the host, which is ahead of it by a step, waits for neither.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, *tensors: Tensor) -> list[Tensor]:
        """`tensors` on the device, for operations that are queued there from now on."""
        if self._stream is None:
            return [upload(x, self.device) for x in tensors]
        with torch.cuda.stream(self._stream):
            sent = [upload(x, self.device) for x in tensors]
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        for x in sent:
            x.record_stream(current)  # its memory is not reused before those operations are done
        return sent


def has_fast_bf16(device: str = "cpu") -> bool:
    """Whether a kind of device computes bf16 convolutions in hardware: NVIDIA's GPUs from Ampere
    on, and CPUs as far as Linux tells.
    """
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(False)
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return bool(re.search(r"\b(amx_bf16|avx512_bf16)\b", flags))
