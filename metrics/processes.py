"""Work shared between processes, with results that do not depend on how many there are."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from dnnlib.console import UserError, progress
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


def run_processes(count: int, device: str, work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(device, *arguments)` in this process, or in `count` new ones that form a process group.

    Args:
        device: cpu, mps or cuda; with several processes on cuda, process i has GPU i.
        work: A function of a module, so that new processes can import it.

    Raises:
        UserError: the first one of any process.
    """
    if count == 1:
        work(torch.device(device), *arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder)
        address = f"tcp://127.0.0.1:{_free_port()}"
        logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it tells of every process that it ends
        try:
            torch.multiprocessing.spawn(_worker, (count, device, address, errors, work, arguments), nprocs=count)
        except (torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException) as error:
            # Where one process met a mistake of the user, the others fail too, for lack of an answer from it.
            messages = [path.read_text(encoding="utf-8") for path in sorted(errors.iterdir())]
            if not messages and isinstance(error, torch.multiprocessing.ProcessRaisedException):
                raise
            raise UserError(messages[0] if messages else f"a process died: {error}; try fewer --procs or a smaller --batch") from error


def _worker(
    process: int, count: int, device: str, address: str, errors: Path, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    own = torch.device("cuda", process) if device == "cuda" else torch.device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    else:
        torch.set_num_threads(max(torch.get_num_threads() // count, 1))
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo", init_method=address, rank=process, world_size=count)
    try:
        work(own, *arguments)
    except UserError as error:
        (errors / f"{process:05d}").write_text(str(error), encoding="utf-8")
        os._exit(1)  # without waiting for the others, which may wait for this process
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
