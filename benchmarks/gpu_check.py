"""Everything that only a GPU can tell, in one command: make gpu-check, or python -m
benchmarks.gpu_check [--dry].

Builds the CUDA operators, runs the GPU tests, times operators and networks beside plain PyTorch,
compares the gradients of two GPUs with those of one, trains 100 iterations, and writes all of it
into one JSON file. A part that this machine cannot run is skipped with a reason. With --dry every
part runs as far as it can without a GPU, on tiny sizes.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

from benchmarks import timing
from dnnlib.console import HELP, UserError, run_cli
from dnnlib.files import atomic_write
from torch_utils.distributed.processes import BACKENDS
from torch_utils.distributed.reduction import GradientAverage
from torch_utils.ops import (
    bias_act,
    builder,
    cuda_builder,
    filtered_lrelu,
    library,
    setup_filter,
    upfirdn2d,
)
from torch_utils.ops.modulation import modulated_lrelu, scale_channels
from training.config.presets import make_config
from training.networks.layers import Conv2d

ITERATIONS, BATCH = 100, 4
ADVICE = """What to do with {path}:
  all passed         attach it to an issue "GPU figures", for docs/kernels.md
  something failed   open an issue with the file; until it is mended, OPEN_EG3D_OPS=reference
                     trains and renders without these kernels"""


class Skipped(Exception):
    """This machine cannot run a part. The message says why."""


@dataclass
class Part:
    """What became of one part."""

    status: str  # passed, failed or skipped
    seconds: float
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """Where the parts run: `device` is "cpu" in a dry run."""

    is_dry: bool

    @property
    def device(self) -> str:
        return "cuda" if torch.cuda.is_available() and not self.is_dry else "cpu"

    def require_gpu(self) -> None:
        """Raises Skipped without one."""
        if self.device == "cpu":
            raise Skipped("a dry run" if torch.cuda.is_available() else "there is no CUDA device")

    def finish(self) -> None:
        """Wait until the device has done what it was told."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def describe() -> dict[str, Any]:
    """The machine, for the report."""
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "gpus": [
            {
                "name": gpu.name,
                "memory_gb": gpu.total_memory / 1e9,
                "capability": [gpu.major, gpu.minor],
            }
            for gpu in gpus
        ],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


# --------------------------------------------------------------------------------------------------
# Parts


def build(machine: Machine) -> dict[str, Any]:
    """The CUDA operators of this machine's GPUs; in a dry run those of one architecture, which
    shows that they compile and link.
    """
    if machine.device == "cuda":
        if not library.load("cuda"):
            raise UserError(f"the CUDA operators cannot be had: {library.failure('cuda')}")
        built = library.details("cuda")
    else:
        try:
            built = builder.build_recipe(cuda_builder.recipe(("80",), cuda_builder.find_toolkit()))
        except builder.BuildError as error:
            if "no nvcc" in str(error):
                raise Skipped(str(error)) from None
            raise
    assert built is not None
    return asdict(built)


def tests(machine: Machine) -> dict[str, Any]:
    """pytest on tests/gpu."""
    machine.require_gpu()
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "tests/gpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    counts = {
        word: int(number)
        for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", run.stdout)
    }
    if run.returncode:
        raise UserError(
            f"GPU tests: {counts}; {' '.join(re.findall(r'FAILED .*', run.stdout)[:5])}"
        )
    return counts


def operator_cases(machine: Machine) -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """Operators at FFHQ-512 sizes, batch 4, in fp16; tiny and in fp32 without a GPU."""
    scale, batch, dtype = (
        (1, BATCH, torch.float16) if machine.device == "cuda" else (16, 1, torch.float32)
    )

    def images(channels: int, size: int) -> Tensor:
        x = torch.randn(batch, channels, size // scale, size // scale, device=machine.device)
        return x.to(dtype, memory_format=torch.channels_last)

    wide, small = images(128, 512), images(256, 256)
    bias, style = (
        torch.randn(128, device=machine.device),
        torch.randn(batch, 256, device=machine.device),
    )
    blur, taps = (
        setup_filter([1, 3, 3, 1]).to(machine.device),
        setup_filter([1] * 12, separable=True).to(machine.device),
    )
    return {
        "bias_act": (lambda x, b: bias_act(x, b, act="lrelu", clamp=256), [wide, bias]),
        "upfirdn2d blur": (lambda x: upfirdn2d(x, blur, padding=1, gain=4), [wide]),
        "upfirdn2d up": (lambda x: upfirdn2d(x, blur, up=2, padding=(2, 1, 2, 1), gain=4), [small]),
        "upfirdn2d down": (lambda x: upfirdn2d(x, blur, down=2, padding=1), [wide]),
        "filtered_lrelu": (
            lambda x, b: filtered_lrelu(x, taps, taps, b, up=2, down=2, padding=11),
            [wide, bias],
        ),
        "modulated_lrelu": (lambda x, b: modulated_lrelu(x, bias=b), [wide, bias]),
        "scale_channels": (scale_channels, [small, style]),
    }


def operator_times(machine: Machine) -> dict[str, Any]:
    """Milliseconds forward, and forward and backward, on compiled operators and on plain
    PyTorch.
    """
    figures: dict[str, Any] = {}
    compiled = "cuda" if machine.device == "cuda" else "cpp"
    for name, (function, inputs) in operator_cases(machine).items():
        runs = {}
        for path in (compiled, "reference"):
            runs[f"{path} forward"] = on_path(path, machine, function, inputs, with_gradients=False)
            runs[f"{path} both"] = on_path(path, machine, function, inputs, with_gradients=True)
        figures[name] = {
            key: 1e3 * seconds
            for key, seconds in timing.median_seconds(
                runs, 20 if machine.device == "cuda" else 2
            ).items()
        }
    return figures


def on_path(
    path: str,
    machine: Machine,
    function: Callable[..., Tensor],
    inputs: list[Tensor],
    *,
    with_gradients: bool,
) -> Callable[[], None]:
    """What is timed."""
    leaves = [tensor.detach().requires_grad_(with_gradients) for tensor in inputs]

    def run() -> None:
        with library.path(path):
            output = function(*leaves)
            if with_gradients:
                torch.autograd.grad(output, leaves, torch.ones_like(output))
        machine.finish()

    return run


def frame_times(machine: Machine) -> dict[str, Any]:
    """Milliseconds of a frame with cached planes on both paths: the published FFHQ-512 networks, a
    small preset without a GPU.
    """
    from training.cameras import orbit_pose, pack_label, pinhole_intrinsics
    from training.networks.generator import Generator

    is_large = machine.device == "cuda"
    config = make_config(
        "ffhq", 512 if is_large else 64, "published" if is_large else "laptop"
    ).model
    config.superresolution.conv_clamp = 256.0
    G = Generator(config).eval().requires_grad_(False).to(machine.device)
    if is_large:
        G.set_conv_dtype(backbone=torch.float32, superresolution=torch.float16)
    c = (
        pack_label(orbit_pose(0.2, 0.1, 2.7), pinhole_intrinsics(4.2647))[None]
        .float()
        .to(machine.device)
    )
    ws = G.mapping(torch.randn(1, G.z_dim, device=machine.device), c)
    planes = G.planes(ws)
    runs = {}
    for path in ("cuda" if is_large else "cpp", "reference"):
        runs[path] = on_path(
            path,
            machine,
            lambda: G.render(planes, ws, c, config.rendering.resolution).image,
            [],
            with_gradients=False,
        )
    with torch.no_grad():
        return {
            f"{path}, ms": 1e3 * seconds
            for path, seconds in timing.median_seconds(runs, 20 if is_large else 1).items()
        }


def stack(device: torch.device) -> nn.Module:
    """Layers with operators in them, the same in every process."""
    torch.manual_seed(0)
    return nn.Sequential(Conv2d(3, 16, 3, down=2), Conv2d(16, 8, 3, conv_clamp=1.0)).to(device)


def gradients(device: torch.device, images: Tensor) -> list[Tensor]:
    """Of the mean over `images`; over all processes' where a group is running."""
    network = stack(device)
    average = GradientAverage(list(network.parameters()))
    average.begin()
    average.expect_last()
    network(images.to(device, memory_format=torch.channels_last)).square().mean().backward()
    average.finish(torch.zeros(0, device=device))
    return [
        parameter.grad.cpu() for parameter in network.parameters() if parameter.grad is not None
    ]


def halves_worker(index: int, device: str, port: str, folder: str) -> None:
    """One of two processes, each with half of the batch."""
    where = torch.device(device, index) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(where)
    torch.set_num_threads(1)
    dist.init_process_group(
        BACKENDS if device == "cuda" else "gloo",
        init_method=f"file://{port}",
        rank=index,
        world_size=2,
    )
    torch.save(gradients(where, batch_of_images().chunk(2)[index]), Path(folder) / f"{index}.pt")
    dist.destroy_process_group()


def batch_of_images() -> Tensor:
    """(8, 3, 32, 32), the same in every process."""
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def two_gpus(machine: Machine) -> dict[str, Any]:
    """Gradients of two processes with half a batch each against those of one with all of it; on the
    CPU in a dry run.
    """
    if machine.device == "cuda" and torch.cuda.device_count() < 2:
        raise Skipped("there is one GPU")
    with tempfile.TemporaryDirectory() as folder:
        arguments = (machine.device, f"{folder}/meeting", folder)
        torch.multiprocessing.spawn(halves_worker, arguments, nprocs=2)
        both = [torch.load(Path(folder) / f"{i}.pt", weights_only=True) for i in range(2)]
    alone = gradients(torch.device(machine.device), batch_of_images())
    differences = [
        float((g - expected).abs().max() / expected.abs().max())
        for of_process in both
        for g, expected in zip(of_process, alone, strict=True)
    ]
    if not max(differences) < 1e-4:
        raise UserError(
            f"gradients of two processes differ from one's by {max(differences):.2g} of the largest"
        )
    return {"devices": machine.device, "largest_difference": max(differences)}


def training(machine: Machine) -> dict[str, Any]:
    """100 iterations of FFHQ-512 sizes on random pictures; two of a tiny network without a GPU."""
    from tests.tiny import TINY_OPTIONS, write_dataset

    is_large = machine.device == "cuda"
    steps = ITERATIONS if is_large else 2
    with tempfile.TemporaryDirectory() as folder:
        data = write_dataset(Path(folder) / "data.zip", 16, 512 if is_large else 32)
        options = [
            "--data",
            str(data),
            "--outdir",
            folder,
            "--kimg",
            str(steps * BATCH / 1000),
            "--snap",
            "0",
            "--workers",
            "0",
        ]
        large = [
            "--cfg",
            "ffhq",
            "--sizes",
            "published",
            "--gpus",
            "1",
            "--batch",
            str(BATCH),
            "--tick",
            "0.04",
        ]
        start = time.monotonic()
        run = subprocess.run(
            [sys.executable, "train.py", *options, *(large if is_large else TINY_OPTIONS)],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise UserError(
                f"training ended with status {run.returncode}: {builder.first_error(run.stderr)}"
            )
        (stats,) = Path(folder).glob("*/stats.jsonl")
        last = json.loads(stats.read_text().splitlines()[-1])
    return {"iterations": steps, "seconds_with_start": time.monotonic() - start, "last_tick": last}


PARTS: dict[str, Callable[[Machine], dict[str, Any]]] = {
    "build": build,
    "tests": tests,
    "operators": operator_times,
    "frame": frame_times,
    "two_gpus": two_gpus,
    "training": training,
}


def run_part(name: str, machine: Machine) -> Part:
    """One part, whatever becomes of it."""
    start = time.monotonic()
    try:
        figures = PARTS[name](machine)
    except Skipped as reason:
        return Part("skipped", time.monotonic() - start, str(reason))
    except Exception as error:  # one part's failure must not keep the others from telling
        return Part(
            "failed",
            time.monotonic() - start,
            f"{type(error).__name__}: {' '.join(str(error).split())}",
        )
    return Part("passed", time.monotonic() - start, figures=figures)


@click.command(context_settings=HELP)
@click.option("--dry", is_flag=True, help="As far as it goes without a GPU, on tiny sizes.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(PARTS)),
    help="Run these parts; may be repeated.",
)
@click.option(
    "--dest",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("gpu_check.json"),
    help="The report.",
)
def main(dry: bool, only: tuple[str, ...], dest: Path) -> None:
    """Check the CUDA operators on this machine's GPUs and write a report."""
    if not dry and not torch.cuda.is_available():
        raise UserError("there is no CUDA device; --dry runs what can be run without one")
    machine = Machine(dry)
    report: dict[str, Any] = {"machine": describe(), "dry": dry, "parts": {}}
    for name in only or PARTS:
        click.echo(f"{name} ...", err=True)
        part = run_part(name, machine)
        report["parts"][name] = asdict(part)
        click.echo(f"{name:10} {part.status:8} {part.seconds:6.0f} s  {part.reason}")
    with atomic_write(dest) as file:
        file.write((json.dumps(report, indent=1) + "\n").encode())
    click.echo(ADVICE.format(path=dest))
    if any(part["status"] == "failed" for part in report["parts"].values()):
        raise UserError(f"parts failed; {dest} says why")


if __name__ == "__main__":
    run_cli(main)
