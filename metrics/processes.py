"""Work shared between processes, with results that do not depend on how many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from dnnlib.console import progress
from torch_utils.distributed.collectives import (
    note_progress,
    rank,
    sum_over_processes,
    world_size,
)

CPU = torch.device("cpu")
T = TypeVar("T")


class Cancelled(Exception):
    """The work was given up because the group was told so."""


class OtherProcessFailed(Exception):
    """The work was given up because another process of the group failed."""


def never() -> bool:
    """False."""
    return False


@dataclass(frozen=True)
class WorkerGroup:
    """The processes that compute together.

    Attributes:
        rank, size: index of this process, number of processes.
        device: where numbers are exchanged; a GPU for NCCL.
        is_cancelled: asked before each batch; if true the work is given up (`Cancelled`).
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    is_cancelled: Callable[[], bool] = field(default=never, repr=False)

    @classmethod
    def of_group(
        cls, device: torch.device, is_cancelled: Callable[[], bool] = never
    ) -> WorkerGroup:
        """All processes of the running group, each of which must then make the same calls."""
        return cls(rank(), world_size(), device if device.type == "cuda" else CPU, is_cancelled)

    def together(self, work: Callable[[], T]) -> T:
        """Result of `work()`, which shares work by way of this group; no process is left waiting
        for one in which it fails.

        Raises:
            OtherProcessFailed: where `work` failed in another process; there its own exception.
        """
        try:
            result = work()
        except OtherProcessFailed:
            raise
        except Exception:
            self._meet(has_failed=True)
            raise
        self._meet()
        return result

    def _meet(self, has_failed: bool = False) -> None:
        """Before numbers are exchanged, all processes say whether they can go on."""
        if self.size == 1:
            return
        failures = sum_over_processes(torch.tensor([int(has_failed)], device=self.device))
        if int(failures) and not has_failed:
            raise OtherProcessFailed("another process failed and has told why")

    def sum(self, values: Tensor) -> Tensor:
        """Sum of all processes' `values` (same shape and type), on the CPU."""
        if self.size == 1:
            return values.cpu()
        self._meet()
        return sum_over_processes(values.to(self.device, copy=True)).cpu()

    def agree(self, value: bool) -> bool:
        """Whether `value` is true in every process."""
        return int(self.sum(torch.tensor([int(value)]))) == self.size

    def batches(self, count: int, batch: int) -> Iterator[tuple[int, int]]:
        """(start, length) of this process's share of items 0..count-1. The batches are the same for
        any number of processes.
        """
        for index, start in enumerate(range(0, count, batch)):
            if index % self.size == self.rank:
                if self.is_cancelled():
                    raise Cancelled("told to stop")
                note_progress()
                yield start, min(batch, count - start)

    def shown_batches(self, count: int, batch: int, description: str) -> Iterator[tuple[int, int]]:
        """`batches` with a progress bar in the first process."""
        own = self.batches(count, batch)
        total = len(range(self.rank, -(-count // batch), self.size))
        yield from own if self.rank else progress(own, description, total=total, unit="batch")


ALONE = WorkerGroup()
