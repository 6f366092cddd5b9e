"""What more GPUs give: python -m benchmarks.scaling_model [--measure] [--json FILE] [--plot
FILE.png]. docs/scaling.md explains it.

A model of one training step, of four parts: arithmetic, reduction of gradients, small collective
operations, and pictures and checkpoints that may keep the step waiting. Counted here:
floating-point operations, parameters, checkpoint bytes, milliseconds to decode a picture. Taken
from elsewhere: the published 24 s a kimg on 8 V100, which gives the share of a GPU's peak that
training reaches, and data sheets.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import show
from benchmarks.training_step import random_labels
from torch_utils.ops import library
from training.config.presets import make_config
from training.config.settings import Config
from training.gan.trainer import Trainer

METHODS = {
    "Gmain": "_generator_main",
    "Greg": "_generator_regularisation",
    "Dmain": "_discriminator_main",
    "Dreg": "_discriminator_regularisation",
}
PUBLISHED_SECONDS_PER_KIMG, PUBLISHED_GPUS = 24.0, 8  # EG3D on V100, 512 pixels
# a step: finite or not in each phase, mean latent, ADA, whether to stop, whether pictures could be
# read
SMALL_COLLECTIVES = 12


@dataclass(frozen=True)
class Model:
    """What is counted, a sample, for one network size."""

    flops: dict[str, float]  # of each phase
    generator_parameters: int
    discriminator_parameters: int
    checkpoint_bytes: int
    decode_seconds: float  # a picture, on one core

    def flops_per_image(self, g_interval: int = 4, d_interval: int = 16) -> float:
        """Mean over steps of lazy regularisation."""
        return (
            self.flops["Gmain"]
            + self.flops["Greg"] / g_interval
            + self.flops["Dmain"]
            + self.flops["Dreg"] / d_interval
        )

    def reduced_bytes(self, g_interval: int = 4, d_interval: int = 16) -> float:
        """Gradients that a step reduces, in fp32, mean over steps."""
        return 4 * (
            self.generator_parameters * (1 + 1 / g_interval)
            + self.discriminator_parameters * (1 + 1 / d_interval)
        )


@dataclass(frozen=True)
class Machine:
    """A cluster of nodes. Bandwidths in bytes a second, one direction."""

    name: str
    peak_flops: float  # a GPU, of the precision that training uses most
    gpus_per_node: int = 8
    nvlink: float = 300e9  # a GPU, inside a node
    network: float = 8 * 25e9  # a node, to others
    latency: float = 20e-6  # of a collective operation over two processes
    cores_per_gpu: int = 12
    disk: float = 2e9  # shared storage, one writer
    host_copy: float = 10e9  # GPU to the host's memory


V100 = Machine("V100", 125e12, nvlink=120e9, network=4 * 12.5e9, cores_per_gpu=6)
A100 = Machine("A100, 8 x 200 Gb/s", 312e12)
H100 = Machine("H100, 8 x 400 Gb/s", 989e12, nvlink=450e9, network=8 * 50e9)
SLOW = Machine("A100, one 25 Gb/s", 312e12, network=3.1e9)
MACHINES = (V100, A100, H100, SLOW)


# What --measure found on a CPU for the published networks at 512 pixels.
MEASURED = Model(
    flops={
        "Gmain": 1132687322112.0,
        "Greg": 280906104832.0,
        "Dmain": 1042334159872.0,
        "Dreg": 749976844288.0,
    },
    generator_parameters=30662136,
    discriminator_parameters=31359744,
    checkpoint_bytes=873562020,
    decode_seconds=0.0395,  # on a busy machine
)


# --------------------------------------------------------------------------------------------------
# Counting


def published_config(batch: int = 1) -> Config:
    """The ffhq preset at 512 pixels with all phases in every step, in fp32 on a CPU."""
    config = make_config("ffhq", 512, "published")
    config.training.batch, config.training.blur_sigma = batch, 0.0
    config.training.g_reg_interval = config.training.d_reg_interval = 1
    return config


def count() -> Model:
    """Operations of one sample in each phase (plain operators, which the counter knows), sizes, and
    the time to decode a picture.
    """
    trainer = Trainer(published_config(), random_labels(64), torch.device("cpu"))
    flops: dict[str, float] = {}

    def counted(name: str) -> None:
        phase = getattr(trainer, METHODS[name])

        def run(*arguments: object) -> object:
            with FlopCounterMode(display=False) as counter:
                result = phase(*arguments)
            flops[name] = float(counter.get_total_flops())
            return result

        setattr(trainer, METHODS[name], run)

    for name in METHODS:
        counted(name)
    with library.path("reference"):
        trainer.step(torch.rand(1, 3, 512, 512) * 2 - 1, random_labels(1))
    sizes = [sum(p.numel() for p in network.parameters()) for network in (trainer.G, trainer.D)]
    return Model(flops, sizes[0], sizes[1], tensor_bytes(trainer.state_dict()), decode_seconds())


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    items = (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, (list, tuple))
        else ()
    )
    return sum(tensor_bytes(item) for item in items)


def decode_seconds(size: int = 512, repeats: int = 20) -> float:
    """Time to decode a PNG as large as a photograph's: smooth content with noise."""
    random = np.random.RandomState(0)
    coarse = Image.fromarray(random.randint(0, 256, (32, 32, 3)).astype(np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    picture = np.clip(np.asarray(coarse) + random.randn(size, size, 3) * 3, 0, 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    start = time.perf_counter()
    for _ in range(repeats):
        np.array(Image.open(BytesIO(file.getvalue())).convert("RGB"))
    return (time.perf_counter() - start) / repeats


# --------------------------------------------------------------------------------------------------
# The model


def efficiency(model: Model) -> float:
    """Share of the peak that the published run reached, its reduction of gradients taken out."""
    step = PUBLISHED_SECONDS_PER_KIMG * 32 / 1000 - reduction_seconds(model, V100, PUBLISHED_GPUS)
    return model.flops_per_image() * 32 / PUBLISHED_GPUS / step / V100.peak_flops


def ring_seconds(size: float, count: int, bandwidth: float, latency: float) -> float:
    """All-reduce of `size` bytes over `count` members: 2 (n - 1) / n of the data, and a latency
    that grows with log2.
    """
    if count < 2:
        return 0.0
    return 2 * (count - 1) / count * size / bandwidth + latency * np.log2(count)


def reduction_seconds(model: Model, machine: Machine, gpus: int) -> float:
    """Reduction of a step's gradients: inside nodes, then between them."""
    inside, nodes = min(gpus, machine.gpus_per_node), -(-gpus // machine.gpus_per_node)
    size = model.reduced_bytes()
    return ring_seconds(size, inside, machine.nvlink, machine.latency) + ring_seconds(
        size, nodes, machine.network, machine.latency
    )


def step_parts(
    model: Model, machine: Machine, gpus: int, batch: int, snapshot_kimg: float = 200.0
) -> dict[str, float]:
    """Seconds of each part of a step of `batch` samples."""
    share = batch / gpus
    seconds = {
        "compute": model.flops_per_image() * share / (machine.peak_flops * efficiency(model)),
        "gradients": reduction_seconds(model, machine, gpus),
        "small": SMALL_COLLECTIVES * machine.latency * float(np.log2(max(gpus, 1))),
    }
    # beside the step: counts where it is longer
    loading = model.decode_seconds * share / machine.cores_per_gpu
    seconds["waiting for pictures"] = max(0.0, loading - sum(seconds.values()))
    steps_between = snapshot_kimg * 1000 / batch
    # A copy to the host stalls; writing goes on beside training, unless the next one is due before
    # it has ended.
    writing = model.checkpoint_bytes / machine.disk
    stall = model.checkpoint_bytes / machine.host_copy + max(
        0.0, writing - steps_between * sum(seconds.values())
    )
    seconds["checkpoint"] = stall / steps_between
    return seconds


def row(model: Model, machine: Machine, gpus: int, batch: int) -> dict[str, Any]:
    """One line of the table."""
    parts = step_parts(model, machine, gpus, batch)
    step = sum(parts.values())
    one = model.flops_per_image() / (machine.peak_flops * efficiency(model))
    speed = batch / step
    return {
        "machine": machine.name,
        "GPUs": gpus,
        "batch": batch,
        "step ms": step * 1000,
        **{f"{name} %": 100 * value / step for name, value in parts.items()},
        "img/s": speed,
        "efficiency %": 100 * speed * one / gpus,
        "days for 25,000 kimg": 25e6 / speed / 86400,
        "steps": round(25e6 / batch),
    }


def table(model: Model) -> list[dict[str, Any]]:
    """The published batch as far as it goes, and four samples a GPU."""
    rows = []
    for machine in MACHINES:
        rows += [row(model, machine, gpus, 4 * gpus) for gpus in (8, 64, 512)]
        rows += [row(model, machine, 64, 512)] if machine is SLOW else []
    return rows


def overlap_gain(model: Model, machine: Machine, gpus: int) -> float:
    """Share of a step that hiding all of the reduction behind the backward pass could save at
    most.
    """
    parts = step_parts(model, machine, gpus, 4 * gpus)
    return parts["gradients"] / sum(parts.values())


def plot(path: Path, model: Model) -> None:
    """Images a second over GPUs, with four samples each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4.5))
    counts = [2**power for power in range(10)]
    for machine in MACHINES:
        speeds = [row(model, machine, gpus, 4 * gpus)["img/s"] for gpus in counts]
        (line,) = axis.plot(counts, speeds, "o-", markersize=3, label=machine.name)
        axis.plot(
            counts, [gpus * speeds[0] for gpus in counts], ":", color=line.get_color(), linewidth=1
        )
    axis.set(xscale="log", yscale="log", xlabel="GPUs (4 samples each)", ylabel="images/s")
    axis.axvline(8, color="grey", linewidth=0.5)
    axis.text(8.3, axis.get_ylim()[0] * 1.3, "batch 32 ends here", fontsize=8, color="grey")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--measure",
    is_flag=True,
    help="Count on this machine instead of taking the figures recorded here (minutes, 12 GB).",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path),
    help="Also write the table to this file.",
)
@click.option(
    "--plot", "plot_path", type=click.Path(path_type=Path), help="Draw images a second over GPUs."
)
def main(measure: bool, json_path: Path | None, plot_path: Path | None) -> None:
    """Show what 8, 64 and 512 GPUs give."""
    model = count() if measure else MEASURED
    click.echo(json.dumps(dataclasses.asdict(model)))
    click.echo(
        f"{model.flops_per_image() / 1e12:.2f} TFLOP an image; {100 * efficiency(model):.1f} % of"
        " the peak in the published run"
    )
    for machine in MACHINES:
        gains = ", ".join(
            f"{100 * overlap_gain(model, machine, gpus):.1f} % on {gpus}" for gpus in (8, 64, 512)
        )
        click.echo(f"{machine.name}: hiding the reduction of gradients would save at most {gains}")
    show("Four samples a GPU", table(model), json_path)
    if plot_path is not None:
        plot(plot_path, model)


if __name__ == "__main__":
    main()
