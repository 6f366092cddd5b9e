"""Averages of gradients over processes, sent while the backward pass still runs (Li et al. 2020,
"PyTorch Distributed").

Gradients are sent in buckets, the last layers' first. All processes send the same buckets in the
same order, whatever the order in which their gradients come; so a process in which some layer had
nothing to do cannot mix them up.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torch_utils.distributed.collectives import (
    is_distributed,
    note_collective,
    sum_over_processes,
)

BUCKET_BYTES = 4 << 20  # benchmarks/gradient_overlap.py


class GradientAverage:
    """Averages the gradients of some parameters over all processes. Without a process group it does
    nothing.
    """

    def __init__(self, parameters: list[nn.Parameter], bucket_bytes: int = BUCKET_BYTES) -> None:
        """Prepare for `parameters`; they may require gradients only at times."""
        self.parameters = parameters
        self.buckets = make_buckets(parameters, bucket_bytes)
        self._bucket_of = {p: index for index, bucket in enumerate(self.buckets) for p in bucket}
        self._is_hooked = False
        self._is_last = False
        self._missing: list[set[nn.Parameter]] = []
        self._sent: list[tuple[Tensor, dist.Work | None]] = []

    def begin(self) -> None:
        """Begin an update; the parameters require gradients by now."""
        self._is_last = False
        self._missing = [set(bucket) for bucket in self.buckets]
        self._sent = []
        if is_distributed() and not self._is_hooked:
            self._is_hooked = True
            for p in self.parameters:
                p.register_post_accumulate_grad_hook(self._arrived)

    def expect_last(self) -> None:
        """Say that the next backward pass is the last one of this update: what it gives may be
        sent.
        """
        self._is_last = True

    def finish(self, counts: Tensor) -> Tensor:
        """Replace all gradients by their mean; returns the sums of `counts` (n,) over all
        processes.

        A process that has no gradient for a parameter counts as zero; a parameter for which no
        process has one keeps none, so that an optimiser leaves it alone, as with a single process.
        """
        if not is_distributed() or not self.parameters:
            return sum_over_processes(counts)
        while len(self._sent) < len(self.buckets):
            self._send()
        has_gradient = torch.tensor([float(p.grad is not None) for p in self.parameters])
        if counts.device.type == "cpu":
            sums, shares = sum_over_processes(torch.cat([counts, has_gradient])).split(
                [len(counts), len(has_gradient)]
            )
        else:  # the host asks the others, for it would have to wait for its GPU's answer
            sums, shares = sum_over_processes(counts), sum_over_processes(has_gradient)
        is_used = dict(zip(self.parameters, (shares > 0).tolist(), strict=True))
        for bucket, (flat, work) in zip(self.buckets, self._sent, strict=True):
            if work is not None:
                work.wait()
            flat /= dist.get_world_size()
            for p, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                p.grad = part.view_as(p) if is_used[p] else None
        self._sent = []
        return sums

    def _arrived(self, p: Tensor) -> None:
        if not self._is_last:
            return
        self._missing[self._bucket_of[p]].discard(p)  # type: ignore[index]
        while len(self._sent) < len(self.buckets) and not self._missing[len(self._sent)]:
            self._send()

    def _send(self) -> None:
        bucket = self.buckets[len(self._sent)]
        flat = torch.cat(
            [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in bucket]
        )
        note_collective()
        self._sent.append((flat, dist.all_reduce(flat, async_op=True)))


def make_buckets(parameters: list[nn.Parameter], size: int) -> list[list[nn.Parameter]]:
    """Parameters, the last first, in groups of up to `size` bytes; larger ones stand alone."""
    buckets: list[list[nn.Parameter]] = []
    filled = 0
    for p in reversed(parameters):
        number = p.numel() * p.element_size()
        if not buckets or filled + number > size:
            buckets.append([])
            filled = 0
        buckets[-1].append(p)
        filled += number
    return buckets
