"""What a frame and a training iteration should take on GPUs, from the bytes and operations of every
kernel: a roofline, no measurement.

    python -m benchmarks.cuda_expected [--batch 4] [--markdown]

The networks of the published FFHQ-512 size run on tensors without contents, in the precision that
training on CUDA has, and every operator that touches memory is counted: what it reads and writes,
and its multiplications and additions. An operator takes the longer of both times at the share of
the peak that such kernels reach, and no less than a launch does. Needs no GPU, and a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import click
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dnnlib.console import UserError, run_cli
from torch_utils.ops import library
from training.config.presets import make_config
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator

# of the peak: streaming kernels; fp16 convolutions; fp32 ones
MEMORY_SHARE, TENSOR_SHARE, CORE_SHARE = 0.8, 0.45, 0.6
FP16_DISCRIMINATOR_BLOCKS = 4
PUBLISHED = {"a frame at 512, RTX 3090": 36.0, "kimg, 8 V100": 24.0}
MAPPED_INTERVALS = {"Greg": 4, "Dreg": 16}


@dataclass(frozen=True)
class Gpu:
    """Peak rates from the maker's data sheets, and the time that starting a kernel takes."""

    name: str
    gigabytes: float  # a second
    fp32: float  # TFLOP/s
    fp16: float  # TFLOP/s of tensor cores, adding in fp32
    launch: float = 4e-6

    def seconds(self, work: Work) -> float:
        """Time of one operator."""
        peak = self.fp16 * TENSOR_SHARE if work.is_half else self.fp32 * CORE_SHARE
        return max(
            work.bytes / (self.gigabytes * 1e9 * MEMORY_SHARE),
            work.flops / (peak * 1e12),
            self.launch,
        )


@dataclass(frozen=True)
class Work:
    """What one call of an operator moves and computes."""

    name: str
    bytes: int
    flops: int
    is_half: bool


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
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if (
            not outputs
            or func.is_view
            or func.name() in ("aten::detach", "aten::empty", "aten::empty_like", "aten::new_empty")
        ):
            return result
        moved = sum(
            tensor.untyped_storage().nbytes() if 0 in tensor.stride() else tensor.nbytes
            for tensor in inputs + outputs
        )
        is_half = any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in inputs)
        self.calls.append(Work(func.name(), moved, flops_of(func, args, kwargs, result), is_half))
        return result


def flops_of(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Multiplications and additions: PyTorch's count for convolutions and products, ours for the
    renderer, none for what memory limits.
    """
    packet = func._overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=result))
    name = packet._qualified_op_name
    if name.startswith("open_eg3d::render_rays"):
        tensors = args[3:] if "backward" in name else args
        coarse, fine = tensors[10], tensors[11]
        samples = coarse.numel() + (0 if fine is None else fine.numel())
        return (
            samples
            * sample_flops(tensors[0], tensors[1], tensors[3])
            * (3 if "backward" in name else 1)
        )
    if name.startswith("open_eg3d::decode_points"):
        tensors = args[2:] if "backward" in name else args
        return (
            tensors[5][..., 0].numel()
            * sample_flops(tensors[0], tensors[1], tensors[3])
            * (3 if "backward" in name else 1)
        )
    return 0


def sample_flops(planes: Tensor, w0: Tensor, w1: Tensor) -> int:
    """Of one sample: twelve weighted texels, and both layers."""
    return 2 * (12 * planes.shape[2] + w0.numel() + w1.numel())


class Published:
    """The published FFHQ-512 networks without contents, in training's precision on CUDA."""

    def __init__(self, batch: int) -> None:
        config = make_config("ffhq", 512, "published").model
        config.superresolution.conv_clamp = config.discriminator.conv_clamp = 256.0
        self.batch = batch
        self.G, self.D = Generator(config), Discriminator(config)
        self.G.set_conv_dtype(backbone=torch.float32, superresolution=torch.float16)
        self.D.set_conv_dtype(torch.float16, highest=FP16_DISCRIMINATOR_BLOCKS)
        self.c = torch.randn(batch, 25)
        self.z = torch.randn(batch, self.G.z_dim)
        self.image, self.raw = torch.randn(batch, 3, 512, 512), torch.randn(batch, 3, 64, 64)

    def fakes(self) -> Any:
        """A batch of generated pictures."""
        return self.G.synthesis(self.G.mapping(self.z, self.c), self.c, 64)

    def frame(self) -> None:
        """One picture with cached planes."""
        with torch.no_grad():
            ws = torch.randn(1, self.G.num_ws, self.G.w_dim)
            planes = torch.randn(1, 3, 32, 256, 256).to(memory_format=torch.contiguous_format)
            with uncounted():
                planes = planes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
            self.G.render(planes, ws, self.c[:1], 64)

    def g_main(self) -> None:
        """Generator and discriminator forward and backward."""
        self.D.requires_grad_(False)
        self.G.requires_grad_(True)
        out = self.fakes()
        self.D(out.image, out.image_raw, self.c).mean().backward()

    def g_reg(self) -> None:
        """Densities at 1000 points, twice."""
        points = torch.rand(self.batch, 2000, 3)
        sigma, _ = self.G.query(points, self.G.planes(self.G.mapping(self.z, self.c)))
        sigma.mean().backward()

    def d_main(self) -> None:
        """Fakes without gradients, then fakes and reals through the discriminator."""
        self.D.requires_grad_(True)
        with torch.no_grad():
            out = self.fakes()
        for image, raw in ((out.image, out.image_raw), (self.image, self.raw)):
            self.D(image, raw, self.c).mean().backward()

    def d_reg(self) -> None:
        """R1."""
        image, raw = self.image.requires_grad_(), self.raw.requires_grad_()
        grads = torch.autograd.grad(
            self.D(image, raw, self.c).sum(), (image, raw), create_graph=True
        )
        (grads[0].square().sum() + grads[1].square().sum()).backward()


@contextmanager
def uncounted() -> Iterator[None]:
    """What happens inside is no work of the model's."""
    with torch.utils._python_dispatch._disable_current_modes():
        yield


def count(run: Callable[[], None]) -> list[Work]:
    """The operators that `run` calls."""
    with Counter() as counter:
        run()
    return counter.calls


def collect(batch: int) -> dict[str, list[Work]]:
    """The work of a frame (one picture) and of the phases of an iteration of `batch` pictures."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        networks = Published(batch)
        return {
            "frame": count(networks.frame),
            "Gmain": count(networks.g_main),
            "Greg": count(networks.g_reg),
            "Dmain": count(networks.d_main),
            "Dreg": count(networks.d_reg),
        }


def total(gpu: Gpu, calls: list[Work]) -> float:
    """Seconds of all of them, one after another."""
    return sum(gpu.seconds(work) for work in calls)


def iteration(gpu: Gpu, work: dict[str, list[Work]]) -> float:
    """Mean time of an iteration: regularisers count as often as they run."""
    return sum(
        total(gpu, work[name]) / MAPPED_INTERVALS.get(name, 1)
        for name in ("Gmain", "Greg", "Dmain", "Dreg")
    )


# What one call of a kernel moves: 4 samples, numbers read and written, and bytes a number; where
# memory does not limit, its flops.
KERNELS: dict[str, tuple[int, int, bool]] = {
    "bias_act forward, 128x512x512 fp16": (4 * 128 * 512**2 * 2 * 2, 0, True),
    "bias_act backward, the same": (4 * 128 * 512**2 * 3 * 2, 0, True),
    "modulated_lrelu forward, 128x512x512 fp16": (4 * 128 * 512**2 * 2 * 2, 0, True),
    "modulated_lrelu backward, the same": (4 * 128 * 512**2 * 3 * 2, 0, True),
    "scale_channels forward, 256x256x256 fp16": (4 * 256 * 256**2 * 2 * 2, 0, True),
    "upfirdn2d blur after up-convolution, 128x513x513 fp16": (
        4 * 128 * (513**2 + 512**2) * 2,
        0,
        True,
    ),
    "upfirdn2d 2x up, 96x128x128 to 256x256 fp32": (4 * 96 * (128**2 + 256**2) * 4, 0, False),
    "upfirdn2d 2x down, 64x512x512 fp16": (4 * 64 * (512**2 + 256**2) * 2, 0, True),
    "filtered_lrelu, 128x532x532, 12 taps, fp16": (
        4 * 128 * 532**2 * 2 * 2,
        4 * 128 * 2 * (532 * 1064 * 6 + 1064**2 * 6 * 3 + 532 * 1064 * 12),
        False,
    ),
    "render_rays forward, 64x64 rays, 96 samples, fp32": (
        4 * (3 * 32 * 256**2 + 64**2 * 34) * 4,
        4 * 64**2 * 96 * 2 * (12 * 32 + 32 * 64 + 64 * 33),
        False,
    ),
    "render_rays backward, the same": (
        4 * 2 * (3 * 32 * 256**2 + 64**2 * 34) * 4,
        4 * 64**2 * 96 * 3 * 2 * (12 * 32 + 32 * 64 + 64 * 33),
        False,
    ),
}


def kernel_rows() -> Iterator[list[str]]:
    """Bytes, operations and expected milliseconds of the kernels alone."""
    chosen = [gpu for gpu in GPUS if gpu.name in ("T4", "A100", "H100")]
    yield ["Kernel, batch 4", "MB", "GFLOP", *(f"{gpu.name}, ms" for gpu in chosen)]
    for name, (moved, flops, is_half) in KERNELS.items():
        work = Work(name, moved, flops, is_half)
        yield [
            name,
            f"{moved / 1e6:.0f}",
            f"{flops / 1e9:.1f}" if flops else "-",
            *(f"{1e3 * gpu.seconds(work):.2f}" for gpu in chosen),
        ]


def whole_rows(work: dict[str, list[Work]], batch: int) -> Iterator[list[str]]:
    """Frames and iterations."""
    yield ["", *(gpu.name for gpu in GPUS)]
    yield [
        "a frame at 512, planes cached, ms",
        *(f"{1e3 * total(gpu, work['frame']):.1f}" for gpu in GPUS),
    ]
    yield ["frames a second", *(f"{1 / total(gpu, work['frame']):.0f}" for gpu in GPUS)]
    for name in ("Gmain", "Greg", "Dmain", "Dreg"):
        yield [
            f"{name}, batch {batch}, ms",
            *(f"{1e3 * total(gpu, work[name]):.0f}" for gpu in GPUS),
        ]
    yield [f"iteration of {batch}, ms", *(f"{1e3 * iteration(gpu, work):.0f}" for gpu in GPUS)]
    yield ["s/kimg, one GPU", *(f"{1000 / batch * iteration(gpu, work):.0f}" for gpu in GPUS)]
    yield ["s/kimg, eight GPUs", *(f"{125 / batch * iteration(gpu, work):.1f}" for gpu in GPUS)]


def table(rows: Iterator[list[str]], as_markdown: bool) -> str:
    """Rows as Markdown or in columns."""
    lines = list(rows)
    if as_markdown:
        lines.insert(1, ["---"] * len(lines[0]))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Pictures of an iteration on one GPU.",
)
@click.option("--markdown", "as_markdown", is_flag=True, help="As in docs/kernels.md.")
def main(batch: int, as_markdown: bool) -> None:
    """Expected times on T4, V100, RTX 3090, A100 and H100, beside what was published."""
    if not library.load():
        raise UserError(
            f"the compiled operators are needed, whose calls are counted: {library.failure()}"
        )
    click.echo(table(kernel_rows(), as_markdown) + "\n")
    work = collect(batch)
    click.echo(table(whole_rows(work, batch), as_markdown))
    for title, calls in (
        ("frame", work["frame"]),
        (f"Gmain and Dmain of {batch}", work["Gmain"] + work["Dmain"]),
    ):
        moved, flops = sum(w.bytes for w in calls), sum(w.flops for w in calls)
        click.echo(
            f"{title}: {moved / 1e9:.2f} GB, {flops / 1e12:.2f} TFLOP, {len(calls)} operators"
        )
    click.echo(
        f"published: {PUBLISHED['a frame at 512, RTX 3090']:.0f} frames/s on an RTX 3090,"
        f" {PUBLISHED['kimg, 8 V100']:.0f} s/kimg on 8 V100"
    )


if __name__ == "__main__":
    run_cli(main)
