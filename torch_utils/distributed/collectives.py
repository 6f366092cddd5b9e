"""The process group as plain functions that also work in a single process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_distributed() -> bool:
    """Whether a process group is running."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Index of this process, 0 without a group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes, 1 without a group."""
    return dist.get_world_size() if is_distributed() else 1


def sum_over_processes(values: Tensor) -> Tensor:
    """Add `values` of all processes in place and return it."""
    if is_distributed():
        dist.all_reduce(values)
    return values


def any_process(value: bool, device: torch.device) -> bool:
    """Whether `value` is true in any process; `device` is where processes exchange numbers."""
    if not is_distributed():
        return value
    return bool(sum_over_processes(torch.tensor(float(value), device=device)) > 0)


def gather_batch(share: Tensor) -> Tensor:
    """The whole batch (B, ...) of which every process has a share (B / N, ...), in the order in
    which samples are dealt out.
    """
    if not is_distributed():
        return share
    shares = [torch.empty_like(share) for _ in range(world_size())]
    dist.all_gather(shares, share.contiguous())
    return torch.stack(shares, dim=1).flatten(0, 1)


def copy_from_first(module: nn.Module) -> None:
    """Give every process the parameters and buffers of process 0."""
    if is_distributed():
        for value in [*module.parameters(), *module.buffers()]:
            dist.broadcast(value.data, src=0)
