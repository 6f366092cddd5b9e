"""The process group as plain functions that also work in a single process."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass
class Progress:
    """What this process has done so far, by which the others tell whether it hangs.

    Attributes:
        collectives: collective operations begun; equal in all processes that are at the same point.
        steps: other steps of long work.
    """

    collectives: int = 0
    steps: int = 0


_progress = Progress()


def progress_so_far() -> Progress:
    """The counters of this process; later calls of `note_...` change them."""
    return _progress


def note_progress() -> None:
    """Count a step of long work that one process does while others may wait for it."""
    _progress.steps += 1


def note_collective() -> None:
    """Count a collective operation that begins now."""
    _progress.collectives += 1


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
        note_collective()
        dist.all_reduce(values)
    return values


def any_process(value: bool) -> bool:
    """Whether `value` is true in any process. Hosts ask each other; no GPU is waited for."""
    if not is_distributed():
        return value
    return bool(sum_over_processes(torch.tensor(float(value))) > 0)


def gather_batch(share: Tensor) -> Tensor:
    """Gather the batch (B, ...) from the shares (B / N, ...) of all processes, in the order of the
    samples.
    """
    if not is_distributed():
        return share
    note_collective()
    shares = [torch.empty_like(share) for _ in range(world_size())]
    dist.all_gather(shares, share.contiguous())
    return torch.stack(shares, dim=1).flatten(0, 1)


def copy_from_first(module: nn.Module) -> None:
    """Give every process the parameters and buffers of process 0."""
    if is_distributed():
        note_collective()
        for value in [*module.parameters(), *module.buffers()]:
            dist.broadcast(value.data, src=0)
