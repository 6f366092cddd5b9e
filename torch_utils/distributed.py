"""The process group as plain functions that also work in a single process."""

from __future__ import annotations

from collections.abc import Iterable

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


def average_gradients(parameters: Iterable[nn.Parameter], counts: Tensor | None = None) -> Tensor:
    """Replace gradients by their mean over all processes, in one transfer, and add up `counts` (n,), which travel with them.

    A process that has no gradient for a parameter counts as zero; a parameter for which no process has one keeps none, so that an
    optimiser leaves it alone, as with a single process.

    Returns:
        The sums of `counts` over all processes (n,); empty without.
    """
    chosen = list(parameters)
    counts = torch.zeros(0) if counts is None else counts
    if not is_distributed() or not chosen:
        return sum_over_processes(counts)
    has_gradient = chosen[0].new_tensor([p.grad is not None for p in chosen])
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in chosen]
    flat = torch.cat([counts.to(has_gradient), has_gradient, *(g.flatten() for g in gradients)])
    dist.all_reduce(flat)
    sums, shares, *parts = flat.split([len(counts), len(chosen), *(p.numel() for p in chosen)])
    for p, share, part in zip(chosen, shares.tolist(), parts, strict=True):
        p.grad = part.div_(dist.get_world_size()).view_as(p) if share > 0 else None
    return sums


def gather_batch(share: Tensor) -> Tensor:
    """The whole batch (B, ...) of which every process has a share (B / N, ...), in the order in which samples are dealt out."""
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
