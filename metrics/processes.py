"""Work shared between processes, with results that do not depend on how many there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dnnlib.console import progress
from torch_utils.distributed import rank, sum_over_processes, world_size

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Team:
    """The processes that compute together.

    Attributes:
        rank, size: index of this process, number of processes.
        device: where numbers are exchanged; a GPU for NCCL.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @classmethod
    def of_group(cls, device: torch.device) -> Team:
        """All processes of the running process group; each of them must then make the same calls."""
        return cls(rank(), world_size(), device if device.type == "cuda" else CPU)

    def sum(self, values: Tensor) -> Tensor:
        """Sum of all processes' `values` (same shape and type), on the CPU."""
        if self.size == 1:
            return values.cpu()
        return sum_over_processes(values.to(self.device, copy=True)).cpu()

    def agree(self, value: bool) -> bool:
        """Whether `value` is true in every process."""
        return int(self.sum(torch.tensor([int(value)]))) == self.size

    def batches(self, count: int, batch: int) -> Iterator[tuple[int, int]]:
        """(start, length) of this process's share of items 0..count-1. The batches are the same for any number of processes."""
        for index, start in enumerate(range(0, count, batch)):
            if index % self.size == self.rank:
                yield start, min(batch, count - start)

    def shown_batches(self, count: int, batch: int, description: str) -> Iterator[tuple[int, int]]:
        """`batches` with a progress bar in the first process."""
        own = list(self.batches(count, batch))
        yield from own if self.rank else progress(own, description, unit="batch")


ALONE = Team()
