"""Everything that only a GPU can tell, in one command: make gpu-check, or python -m
benchmarks.gpu_check [--dry].

Builds the CUDA operators, runs the GPU tests, compares every operator with its reference at
production sizes in each number type, times operators and a frame beside plain PyTorch and a
training step in each precision, compares the gradients of two GPUs with those of one, trains 100
iterations, and writes all of it into one JSON file and one page. A part that this machine cannot
run is skipped with a reason. With --dry every part runs as far as it can without a GPU, on tiny
sizes.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

from benchmarks import gpu_estimates, timing
from benchmarks.gpu_step import step_figures
from dnnlib.console import HELP, UserError, run_cli
from dnnlib.files import atomic_write
from media.report.page import Figure, Report, report_page
from torch_utils.distributed.processes import BACKENDS
from torch_utils.distributed.reduction import GradientAverage
from torch_utils.ops import (
    bias_act,
    builder,
    cuda_builder,
    filtered_lrelu,
    library,
    self_check,
    setup_filter,
    upfirdn2d,
)
from torch_utils.ops.modulation import modulated_lrelu, scale_channels
from training.config.presets import make_config
from training.networks.layers import Conv2d

ITERATIONS, BATCH = 100, 4
# Largest differences from the reference in fp32, of the root of the mean square: next to zero
# rounding changes the side of leaky ReLU's kink.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
RENDERING_TOLERANCE = 1e-2  # a sample that falls beyond a texel's edge changes its gradient
COPIED = 256 << 20  # bytes
ADVICE = """What to do with {path}, also as a page, {page}:
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

    @property
    def compiled(self) -> str:
        """The path of the compiled operators."""
        return "cuda" if self.device == "cuda" else "cpp"

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


def operator_cases(
    machine: Machine, dtype: torch.dtype
) -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """Operators at FFHQ-512 sizes, batch 4; tiny without a GPU."""
    scale, batch = (1, BATCH) if machine.device == "cuda" else (16, 1)

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


def correctness(machine: Machine) -> dict[str, Any]:
    """Differences of compiled operators and their gradients from the references in fp32, at
    production sizes and in each number type, and of the rendering of a frame; and the checks that
    kernels have to pass before they serve.
    """
    figures = {
        check.name: (check.error, check.tolerance)
        for _, check in self_check.checks(torch.device(machine.device))
    }
    for dtype, tolerance in TOLERANCES.items():
        for name, (function, inputs) in operator_cases(machine, dtype).items():
            error = difference(machine, function, inputs)
            figures[f"{name}, {str(dtype).removeprefix('torch.')}"] = error, tolerance
    G, planes, ws, c = frame(machine)

    def rendered(planes: Tensor) -> Tensor:
        return G.render(planes, ws, c).image_raw

    figures["rendering"] = difference(machine, rendered, [planes]), RENDERING_TOLERANCE
    wrong = [
        f"{name} ({error:.2g})" for name, (error, most) in figures.items() if not error <= most
    ]
    if wrong:
        raise UserError(f"not as their references: {', '.join(wrong)}")
    return {name: error for name, (error, _) in figures.items()}


def difference(machine: Machine, function: Callable[..., Tensor], inputs: list[Tensor]) -> float:
    """Of the output and of the inputs' gradients, the largest."""

    def results(path: str, given: list[Tensor]) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in given]
        with library.path(path):
            output = function(*leaves)
            slope = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
            gradients = torch.autograd.grad(output, leaves, slope.to(output))
        return [value.detach().float() for value in (output, *gradients)]

    found = results(machine.compiled, inputs)
    expected = results("reference", [tensor.float() for tensor in inputs])
    return max(
        float((a - b).norm() / b.norm().clamp_min(1e-30))
        for a, b in zip(found, expected, strict=True)
    )


def copy_rate(machine: Machine) -> float:
    """Bytes a second that the device's memory reads and writes in a copy."""
    source = torch.zeros(COPIED if machine.device == "cuda" else COPIED >> 5, dtype=torch.uint8)
    source = source.to(machine.device)
    dest = torch.empty_like(source)

    def run() -> None:
        dest.copy_(source)
        machine.finish()

    return 2 * source.nbytes / timing.median_seconds({"copy": run}, 10)["copy"]


def operator_times(machine: Machine) -> dict[str, Any]:
    """Milliseconds forward, and forward and backward, on compiled operators and on plain PyTorch;
    and what share of the memory's rate in a copy the compiled one moves its tensors at, forward.
    """
    figures: dict[str, Any] = {}
    compiled, rate = machine.compiled, copy_rate(machine)
    dtype = torch.float16 if machine.device == "cuda" else torch.float32
    for name, (function, inputs) in operator_cases(machine, dtype).items():
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
        forward = runs[f"{compiled} forward"]
        moved = sum(work.bytes for work in gpu_estimates.count(forward))
        seconds = figures[name][f"{compiled} forward"] / 1e3
        figures[name]["share of the memory's rate"] = moved / rate / seconds
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


def frame(machine: Machine) -> tuple[Any, Tensor, Tensor, Tensor]:
    """A generator, planes, latents and a camera: the published FFHQ-512 networks, a small preset
    without a GPU.
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
    return G, G.planes(ws), ws, c


def frame_times(machine: Machine) -> dict[str, Any]:
    """Milliseconds of a frame with cached planes on both paths, and frames a second."""
    G, planes, ws, c = frame(machine)
    runs = {}
    for path in (machine.compiled, "reference"):
        runs[path] = on_path(
            path, machine, lambda: G.render(planes, ws, c).image, [], with_gradients=False
        )
    with torch.no_grad():
        seconds = timing.median_seconds(runs, 20 if machine.device == "cuda" else 1)
    milliseconds = {f"{path}, ms": 1e3 * value for path, value in seconds.items()}
    return {**milliseconds, "frames a second": 1 / seconds[machine.compiled]}


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
    "correctness": correctness,
    "operators": operator_times,
    "frame": frame_times,
    "step": lambda machine: step_figures(torch.device(machine.device)),
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


def page(report: dict[str, Any]) -> str:
    """The report as an HTML page: every number of every part."""
    machine = report["machine"]
    names = ", ".join(gpu["name"] for gpu in machine["gpus"]) or "no GPU"
    facts = {"GPUs": names, "PyTorch": machine["torch"], "CUDA": str(machine["cuda"])}
    figures = [
        Figure(
            name, dict(numbers(part["figures"])) or {part["status"]: None},
            {"status": part["status"], "seconds": f"{part['seconds']:.0f}"}, part["reason"],
        )
        for name, part in report["parts"].items()
    ]  # fmt: skip
    kind = " (dry run, tiny sizes)" if report["dry"] else ""
    return report_page(Report(f"GPU check{kind}", facts, figures))


def numbers(figures: dict[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of nested figures, by the names on the way to them."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{above}{name}: ")
        elif isinstance(value, (int, float)):
            yield above + name, float(value)


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
    shown = dest.with_suffix(".html")
    with atomic_write(shown) as file:
        file.write(page(report).encode())
    click.echo(ADVICE.format(path=dest, page=shown))
    if any(part["status"] == "failed" for part in report["parts"].values()):
        raise UserError(f"parts failed; {dest} says why")


if __name__ == "__main__":
    run_cli(main)
