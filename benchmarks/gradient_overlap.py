"""Reducing gradients once after the backward pass, or in buckets during it: python -m benchmarks.gradient_overlap [--json FILE].

Training reduces once (torch_utils.distributed.average_gradients). The alternative, as torch's DistributedDataParallel has it, starts the
transfer of a bucket as soon as its gradients are there. Both are timed in the discriminator's main phase; their results are compared.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Literal

import click
import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.timing import show
from benchmarks.training_step import random_labels
from torch_utils.distributed import average_gradients, rank, world_size
from torch_utils.processes import run_processes
from training.networks.discriminator import Discriminator
from training.presets import make_config

MB = 1 << 20


class BucketedAverage:
    """Averages gradients over processes in buckets, each as soon as its last gradient is there."""

    def __init__(self, parameters: list[nn.Parameter], bucket_bytes: int) -> None:
        self.buckets: list[list[nn.Parameter]] = [[]]
        size = 0
        for p in reversed(parameters):  # gradients come from the last layer first
            if size and size + p.numel() * 4 > bucket_bytes:
                self.buckets.append([])
                size = 0
            self.buckets[-1].append(p)
            size += p.numel() * 4
        self.place = {p: index for index, bucket in enumerate(self.buckets) for p in bucket}
        self.missing = [len(bucket) for bucket in self.buckets]
        self.running: list[tuple[int, Tensor, dist.Work | None]] = []
        for p in parameters:
            p.register_post_accumulate_grad_hook(self._ready)

    def _ready(self, p: Tensor) -> None:
        index = self.place[p]  # type: ignore[index]
        self.missing[index] -= 1
        if self.missing[index] == 0:
            flat = torch.cat([q.grad.flatten() for q in self.buckets[index] if q.grad is not None])
            self.running.append((index, flat, dist.all_reduce(flat, async_op=True)))

    def finish(self) -> None:
        """Wait for the transfers and hand the averages out."""
        for index, flat, work in self.running:
            if work is not None:
                work.wait()
            flat /= world_size()
            for p, part in zip(self.buckets[index], flat.split([q.numel() for q in self.buckets[index]]), strict=True):
                p.grad = part.view_as(p)
        self.running = []
        self.missing = [len(bucket) for bucket in self.buckets]


def time_phase(device: torch.device, sizes: Literal["laptop", "published"], resolution: int, rounds: int, path: Path) -> None:
    """Seconds of forward, backward and reduction, of both ways in turn; process 0 writes them."""
    config = make_config("ffhq", resolution, sizes).model
    torch.manual_seed(0)
    networks = {kind: Discriminator(config).to(device) for kind in ("once", "buckets")}
    networks["buckets"].load_state_dict(networks["once"].state_dict())
    parameters = {kind: list(network.parameters()) for kind, network in networks.items()}
    buckets = BucketedAverage(parameters["buckets"], (25 if sizes == "published" else 1) * MB)
    torch.manual_seed(rank())
    image, raw, c = torch.rand(4, 3, resolution, resolution), torch.rand(4, 3, 32, 32), random_labels(4)
    times: dict[str, list[float]] = {"once": [], "buckets": [], "no reduction": []}
    for _ in range(rounds + 1):
        for kind in times:
            network = networks["buckets" if kind == "buckets" else "once"]
            network.zero_grad(set_to_none=True)
            dist.barrier()
            start = time.perf_counter()
            network(image.to(device), raw.to(device), c.to(device)).square().mean().backward()
            if kind == "once":
                average_gradients(parameters["once"])
            elif kind == "buckets":
                buckets.finish()
            times[kind].append(time.perf_counter() - start)
            if kind == "buckets":
                compare(parameters)
    if rank() == 0:
        count = sum(p.numel() for p in parameters["once"])
        path.write_text(json.dumps({"MB": count * 4 / 1e6, **{kind: statistics.median(values[1:]) for kind, values in times.items()}}))


def compare(parameters: dict[str, list[nn.Parameter]]) -> None:
    """Raise unless both ways gave the same gradients; `once` has just run."""
    for first, second in zip(parameters["once"], parameters["buckets"], strict=True):
        assert first.grad is not None
        torch.testing.assert_close(first.grad, second.grad)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--sizes", type=click.Choice(["laptop", "published"]), default="laptop", show_default=True, help="Of the discriminator.")
@click.option("--resolution", type=click.Choice(["64", "128", "256", "512"]), default="64", show_default=True, help="Of the pictures.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="cpu: gloo; cuda: NCCL.")
@click.option("--procs", type=click.IntRange(2), default=2, show_default=True, help="Processes.")
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="Phases timed.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the figures to this file.")
def main(sizes: str, resolution: str, device: str, procs: int, rounds: int, json_path: Path | None) -> None:
    """Time one phase with its gradients reduced in either way."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "times.json"
        run_processes(procs, device, time_phase, sizes, int(resolution), rounds, path, hint="try fewer --procs")
        show(f"One phase, {procs} processes, seconds", [json.loads(path.read_text())], json_path)


if __name__ == "__main__":
    main()
