"""Estimate times on GPUs that nobody has measured here: python -m benchmarks.gpu_estimates.

A roofline: every operator that the published FFHQ-512 networks call takes the longer of its memory
traffic and its arithmetic, at the share of the peak that such kernels reach, and at least the time
of a launch. Networks run on fake tensors in the precision of training on CUDA. Scaling adds a ring
all-reduce of the gradients. Prints the tables of docs/kernels.md and docs/scaling.md; needs no GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import click
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.kernel_work import KernelWork, filtered_lrelu, render_rays, sample_flops, upfirdn2d
from dnnlib.console import HELP, UserError, run_cli
from torch_utils.ops import library
from training.config.presets import make_config
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator

# of the peak: streaming kernels; fp16 convolutions; fp32 ones
MEMORY_SHARE, TENSOR_SHARE, CORE_SHARE = 0.8, 0.45, 0.6
FP16_DISCRIMINATOR_BLOCKS = 4
INTERVALS = {"Gmain": 1, "Greg": 4, "Dmain": 1, "Dreg": 16}  # steps between two runs of a phase
NO_WORK = ("aten::detach", "aten::empty", "aten::empty_like", "aten::new_empty")

# --------------------------------------------------------------------------------------------------
# One GPU


@dataclass(frozen=True)
class Work:
    """Bytes moved and operations done by one call of an operator."""

    name: str
    bytes: int
    flops: int
    is_half: bool


@dataclass(frozen=True)
class Gpu:
    """Peak rates from the maker's data sheets."""

    name: str
    gigabytes: float  # per second
    fp32: float  # TFLOP/s
    fp16: float  # TFLOP/s of tensor cores, adding in fp32
    launch: float = 4e-6  # seconds

    def seconds(self, work: Work) -> float:
        """Time of one operator."""
        peak = self.fp16 * TENSOR_SHARE if work.is_half else self.fp32 * CORE_SHARE
        memory = work.bytes / (self.gigabytes * 1e9 * MEMORY_SHARE)
        return max(memory, work.flops / (peak * 1e12), self.launch)

    def total(self, calls: list[Work]) -> float:
        """Time of operators one after another."""
        return sum(map(self.seconds, calls))


GPUS = (
    Gpu("T4", 320, 8.1, 65),
    Gpu("V100", 900, 15.7, 125),
    Gpu("RTX 3090", 936, 35.6, 71),
    Gpu("A100", 2039, 19.5, 312),
    Gpu("H100", 3350, 67, 989),
)


@dataclass
class Counter(TorchDispatchMode):
    """Records every operator that is not a view."""

    calls: list[Work] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if outputs and not func.is_view and func.name() not in NO_WORK:
            moved = sum(
                t.untyped_storage().nbytes() if 0 in t.stride() else t.nbytes
                for t in inputs + outputs
            )
            is_half = any(t.dtype in (torch.float16, torch.bfloat16) for t in inputs)
            flops = flops_of(func, args, kwargs or {}, result)
            self.calls.append(Work(func.name(), moved, flops, is_half))
        return result


def flops_of(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Multiplications and additions: PyTorch's count for convolutions and products, ours for the
    renderer, none for what memory limits.
    """
    if func._overloadpacket in flop_registry:
        return int(flop_registry[func._overloadpacket](*args, **kwargs, out_val=result))
    name = func.name()
    if "render_rays" not in name and "decode_points" not in name:
        return 0
    is_backward = "backward" in name
    tensors = args[(3 if "render" in name else 2) if is_backward else 0 :]
    (hidden, features), outputs = tensors[1].shape, len(tensors[3])
    if "render" in name:
        samples = sum(t.numel() for t in tensors[10:12] if t is not None)
        return samples * sample_flops(features, hidden, outputs - 1, backward=is_backward)
    samples = tensors[5][..., 0].numel()
    # per sample: twelve weighted texels, and both layers
    return (3 if is_backward else 1) * samples * 2 * (12 * features + hidden * (features + outputs))


class Published:
    """The published FFHQ-512 networks without contents, in training's precision on CUDA."""

    def __init__(self, batch: int) -> None:
        config = make_config("ffhq", 512, "published").model
        config.superresolution.conv_clamp = config.discriminator.conv_clamp = 256.0
        self.G, self.D = Generator(config), Discriminator(config)
        self.G.set_conv_dtype(backbone=torch.float32, superresolution=torch.float16)
        self.D.set_conv_dtype(torch.float16, highest=FP16_DISCRIMINATOR_BLOCKS)
        self.c, self.z = torch.randn(batch, 25), torch.randn(batch, self.G.z_dim)
        self.image, self.raw = torch.randn(batch, 3, 512, 512), torch.randn(batch, 3, 64, 64)

    def fakes(self) -> Any:
        """A batch of generated pictures."""
        return self.G.synthesis(self.G.mapping(self.z, self.c), self.c, 64)

    @torch.no_grad()
    def frame(self) -> None:
        """One picture with cached planes."""
        ws = torch.randn(1, self.G.num_ws, self.G.w_dim)
        with _disable_current_modes():
            planes = torch.randn(1, 3, 256, 256, 32).permute(0, 1, 4, 2, 3)
        self.G.render(planes, ws, self.c[:1], 64)

    def g_main(self) -> None:
        """Generator and discriminator, forward and backward."""
        self.D.requires_grad_(False)
        out = self.fakes()
        self.D(out.image, out.image_raw, self.c).mean().backward()

    def g_reg(self) -> None:
        """Densities at 1000 points, twice."""
        planes = self.G.planes(self.G.mapping(self.z, self.c))
        self.G.query(torch.rand(len(self.z), 2000, 3), planes)[0].mean().backward()

    def d_main(self) -> None:
        """Fakes without gradients, then fakes and reals through the discriminator."""
        self.D.requires_grad_(True)
        with torch.no_grad():
            out = self.fakes()
        for image, raw in ((out.image, out.image_raw), (self.image, self.raw)):
            self.D(image, raw, self.c).mean().backward()

    def d_reg(self) -> None:
        """R1."""
        images = self.image.requires_grad_(), self.raw.requires_grad_()
        grads = torch.autograd.grad(self.D(*images, self.c).sum(), images, create_graph=True)
        (grads[0].square().sum() + grads[1].square().sum()).backward()


def count(run: Callable[[], None]) -> list[Work]:
    """The operators that `run` calls."""
    with Counter() as counter:
        run()
    return counter.calls


def collect(batch: int) -> dict[str, list[Work]]:
    """The work of a frame (one picture) and of the phases of an iteration of `batch` pictures."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        nets = Published(batch)
        phases = (nets.frame, nets.g_main, nets.g_reg, nets.d_main, nets.d_reg)
        return dict(zip(("frame", *INTERVALS), map(count, phases), strict=True))


# What one call of a kernel moves and computes for 4 samples. Elementwise kernels read and write
# each number once; of the others benchmarks/kernel_work.py counts what their tiles take.
def elementwise(numbers: int, tensors: int) -> KernelWork:
    """Of fp16 tensors."""
    return KernelWork(2 * numbers * tensors, 2 * numbers * tensors, 0)


KERNELS = {
    "bias_act forward, 128x512x512 fp16": elementwise(4 * 128 * 512**2, 2),
    "bias_act backward, the same": elementwise(4 * 128 * 512**2, 3),
    "modulated_lrelu forward, 128x512x512 fp16": elementwise(4 * 128 * 512**2, 2),
    "modulated_lrelu backward, the same": elementwise(4 * 128 * 512**2, 3),
    "scale_channels forward, 256x256x256 fp16": elementwise(4 * 256 * 256**2, 2),
    "upfirdn2d blur, 128x513x513 fp16": upfirdn2d(4, 128, 513, 512, itemsize=2),
    "upfirdn2d 2x up, 96x128x128 fp32": upfirdn2d(4, 96, 128, 256, up=2),
    "upfirdn2d 2x down, 64x512x512 fp16": upfirdn2d(4, 64, 512, 256, down=2, itemsize=2),
    "filtered_lrelu, 128x532x532, 12 taps, fp16": filtered_lrelu(4, 128, 532),
    "render_rays forward, 64x64 rays, 96 samples, fp32": render_rays(4, 64**2, 96, 32, 256),
    "render_rays backward, the same": render_rays(4, 64**2, 96, 32, 256, backward=True),
}


def kernel_rows() -> Iterator[list[str]]:
    """Bytes, operations and expected milliseconds of the kernels alone."""
    chosen = [gpu for gpu in GPUS if gpu.name in ("T4", "A100", "H100")]
    yield ["Kernel, batch 4", "MB", "by blocks", "GFLOP", *(f"{gpu.name}, ms" for gpu in chosen)]
    for name, work in KERNELS.items():
        flops = f"{work.flops / 1e9:.1f}" if work.flops else "-"
        call = Work(name, work.bytes, work.flops, is_half=False)  # sums are formed in fp32
        times = (f"{1e3 * gpu.seconds(call):.2f}" for gpu in chosen)
        yield [name, f"{work.bytes / 1e6:.0f}", f"{work.moved / 1e6:.0f}", flops, *times]


def network_rows(work: dict[str, list[Work]], batch: int) -> Iterator[list[str]]:
    """Frames and iterations."""

    def row(title: str, value: Callable[[Gpu], float], form: str) -> list[str]:
        return [title, *(format(value(gpu), form) for gpu in GPUS)]

    def iteration(gpu: Gpu) -> float:
        return sum(gpu.total(work[phase]) / steps for phase, steps in INTERVALS.items())

    yield ["", *(gpu.name for gpu in GPUS)]
    yield row("a frame at 512, planes cached, ms", lambda g: 1e3 * g.total(work["frame"]), ".1f")
    yield row("frames per second", lambda g: 1 / g.total(work["frame"]), ".0f")
    for name in INTERVALS:
        yield row(f"{name}, batch {batch}, ms", lambda g, n=name: 1e3 * g.total(work[n]), ".0f")  # type: ignore[misc]
    yield row(f"iteration of {batch}, ms", lambda g: 1e3 * iteration(g), ".0f")
    yield row("s/kimg, one GPU", lambda g: 1000 / batch * iteration(g), ".0f")
    yield row("s/kimg, eight GPUs", lambda g: 125 / batch * iteration(g), ".1f")


# --------------------------------------------------------------------------------------------------
# Many GPUs

# of the published networks in fp32
GRADIENT_BYTES = {"G": 4 * 30662136, "D": 4 * 31359744}
PUBLISHED_STEP = 24 * 32 / 1000  # seconds: 24 s/kimg on 8 V100, batch 32
PER_GPU, PER_NODE = 4, 8  # samples per GPU, GPUs per node
LATENCY = 20e-6  # seconds of a collective operation over two processes


@dataclass(frozen=True)
class Cluster:
    """Nodes of eight GPUs; bytes per second of a link, one direction."""

    name: str
    peak: float  # FLOP/s of a GPU, of the precision that training uses most
    nvlink: float  # per GPU
    network: float  # per node

    def reduction(self, gpus: int) -> float:
        """Seconds to reduce a step's gradients: inside nodes, then between them."""
        size = sum(
            (1 / INTERVALS[f"{name}main"] + 1 / INTERVALS[f"{name}reg"]) * number
            for name, number in GRADIENT_BYTES.items()
        )
        inside, nodes = min(gpus, PER_NODE), -(-gpus // PER_NODE)
        return ring_seconds(size, inside, self.nvlink) + ring_seconds(size, nodes, self.network)

    def compute(self) -> float:
        """Seconds that the samples of one GPU take, at the published run's share of the peak."""
        published = (PUBLISHED_STEP - CLUSTERS[0].reduction(PER_NODE)) * CLUSTERS[0].peak
        return published / self.peak


def ring_seconds(size: float, members: int, bandwidth: float) -> float:
    """Ring all-reduce of `size` bytes."""
    if members < 2:
        return 0.0
    return 2 * (members - 1) / members * size / bandwidth + LATENCY * math.log2(members)


CLUSTERS = (
    Cluster("V100, 4 x 100 Gb/s", 125e12, 120e9, 4 * 12.5e9),
    Cluster("A100, 8 x 200 Gb/s", 312e12, 300e9, 8 * 25e9),
    Cluster("H100, 8 x 400 Gb/s", 989e12, 450e9, 8 * 50e9),
    Cluster("A100, one 25 Gb/s", 312e12, 300e9, 3.1e9),
)


def scaling_rows() -> Iterator[list[str]]:
    """A batch of four samples per GPU."""
    yield ["Nodes of 8", "GPUs", "Batch", "Step, ms", "Gradients", "img/s", "Days for 25,000 kimg"]
    for cluster in CLUSTERS:
        for gpus in (8, 64, 512):
            reduction = cluster.reduction(gpus)
            step, batch = cluster.compute() + reduction, PER_GPU * gpus
            yield [
                cluster.name, f"{gpus}", f"{batch}", f"{1e3 * step:.0f}",
                f"{100 * reduction / step:.1f} %", f"{batch / step:,.0f}",
                f"{25e6 / (batch / step) / 86400:.2g}",
            ]  # fmt: skip


def table(rows: Iterable[list[str]]) -> str:
    """Rows as Markdown."""
    lines = list(rows)
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@click.command(context_settings=HELP)
def main() -> None:
    """Print expected times of kernels, networks and clusters as in the documentation."""
    if not library.load():
        reason = library.failure()
        raise UserError(f"the compiled operators are needed, whose calls are counted: {reason}")
    work = collect(4)
    for rows in (kernel_rows(), network_rows(work, 4), scaling_rows()):
        click.echo(table(rows) + "\n")
    for title, calls in work.items():
        moved, flops = sum(w.bytes for w in calls) / 1e9, sum(w.flops for w in calls) / 1e12
        click.echo(f"{title}: {moved:.2f} GB, {flops:.2f} TFLOP, {len(calls)} operators")


if __name__ == "__main__":
    run_cli(main)
