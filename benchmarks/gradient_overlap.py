"""Reducing gradients once after the backward pass, or in buckets during it: python -m
benchmarks.gradient_overlap [--json FILE].

Training sends a bucket of gradients as soon as it is full (torch_utils.distributed.reduction). The
alternative sends all after the backward pass. Both are timed in a phase of the discriminator, and
so is one without any reduction; the results are compared.
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
from torch import nn

from benchmarks.timing import json_option, resolution_option, show
from benchmarks.training_step import random_labels
from dnnlib.console import HELP
from torch_utils.distributed.collectives import rank
from torch_utils.distributed.processes import run_processes
from torch_utils.distributed.reduction import BUCKET_BYTES, GradientAverage
from training.config.presets import make_config
from training.networks.discriminator import Discriminator


def time_phase(
    device: torch.device,
    sizes: Literal["laptop", "published"],
    resolution: int,
    bucket_bytes: int,
    rounds: int,
    path: Path,
) -> None:
    """Seconds of forward, backward and reduction, of both ways in turn; process 0 writes them."""
    config = make_config("ffhq", resolution, sizes).model
    torch.manual_seed(0)
    networks = {kind: Discriminator(config).to(device) for kind in ("once", "buckets")}
    networks["buckets"].load_state_dict(networks["once"].state_dict())
    parameters = {kind: list(network.parameters()) for kind, network in networks.items()}
    # One bucket that nothing fills before the end is sent after the backward pass, at once.
    averages = {
        "once": GradientAverage(parameters["once"], 1 << 40),
        "buckets": GradientAverage(parameters["buckets"], bucket_bytes),
    }
    torch.manual_seed(rank())
    image, raw, c = (
        torch.rand(4, 3, resolution, resolution),
        torch.rand(4, 3, 32, 32),
        random_labels(4),
    )
    times: dict[str, list[float]] = {"once": [], "buckets": [], "no reduction": []}
    for _ in range(rounds + 1):
        for kind in times:
            network = networks["buckets" if kind == "buckets" else "once"]
            network.zero_grad(set_to_none=True)
            if kind in averages:
                averages[kind].begin()
            if kind == "buckets":
                averages[kind].expect_last()
            dist.barrier()
            start = time.perf_counter()
            network(image.to(device), raw.to(device), c.to(device)).square().mean().backward()
            if kind in averages:
                averages[kind].finish(torch.zeros(1))
            times[kind].append(time.perf_counter() - start)
            if kind == "buckets":
                compare(parameters)
    if rank() == 0:
        count = sum(p.numel() for p in parameters["once"])
        path.write_text(
            json.dumps(
                {
                    "MB": count * 4 / 1e6,
                    **{kind: statistics.median(values[1:]) for kind, values in times.items()},
                }
            )
        )


def compare(parameters: dict[str, list[nn.Parameter]]) -> None:
    """Raise unless both ways gave the same gradients; `once` has just run."""
    for first, second in zip(parameters["once"], parameters["buckets"], strict=True):
        assert first.grad is not None
        torch.testing.assert_close(first.grad, second.grad)


@click.command(context_settings=HELP)
@click.option(
    "--sizes",
    type=click.Choice(["laptop", "published"]),
    default="laptop",
    help="Of the discriminator.",
)
@resolution_option(64, 64, 128, 256, 512)
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="cpu: gloo; cuda: NCCL."
)
@click.option("--procs", type=click.IntRange(2), default=2, help="Processes.")
@click.option(
    "--bucket-mb",
    type=click.FloatRange(0, min_open=True),
    default=BUCKET_BYTES / 2**20,
    help="Of a bucket.",
)
@click.option("--rounds", type=click.IntRange(1), default=20, help="Phases timed.")
@json_option
def main(
    sizes: str,
    resolution: str,
    device: str,
    procs: int,
    bucket_mb: float,
    rounds: int,
    json_path: Path | None,
) -> None:
    """Time one phase with its gradients reduced in either way."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "times.json"
        run_processes(
            procs,
            device,
            time_phase,
            sizes,
            int(resolution),
            round(bucket_mb * 2**20),
            rounds,
            path,
            hint="try fewer --procs",
        )
        show(f"One phase, {procs} processes, seconds", [json.loads(path.read_text())], json_path)


if __name__ == "__main__":
    main()
