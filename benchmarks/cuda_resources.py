"""What the CUDA kernels take of a GPU: registers, shared memory and spills as ptxas tells them, and the occupancy that follows.

    python -m benchmarks.cuda_resources              compile for every architecture, write cuda_resources.json beside this file
    python -m benchmarks.cuda_resources --show 80    print a table of one architecture

Needs nvcc but no GPU. docs/kernels.md has the summary that `--markdown` prints.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from dnnlib.console import UserError, progress, run_cli
from dnnlib.files import atomic_write
from torch_utils.ops import builder, cuda_builder

RESULTS = Path(__file__).with_name("cuda_resources.json")
WARNINGS = ("--Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror")
THREADS_PER_BLOCK = 256  # what kernels are launched with unless __launch_bounds__ says otherwise
# Shared memory of a multiprocessor in KiB and its most threads (CUDA C++ Programming Guide, table of technical specifications).
MULTIPROCESSORS = {
    "75": (64, 1024),
    "80": (164, 2048),
    "86": (100, 1536),
    "89": (100, 1536),
    "90": (228, 2048),
    "100": (228, 2048),
    "120": (100, 1536),
}
REGISTERS = 65536  # of a multiprocessor, dealt out by warps in units of 256


@dataclass(frozen=True)
class Usage:
    """One kernel on one architecture; `shared` counts static bytes, dynamic ones depend on the call."""

    kernel: str
    architecture: str
    registers: int
    shared: int
    spill_stores: int
    spill_loads: int
    threads: int = THREADS_PER_BLOCK

    @property
    def occupancy(self) -> float:
        """Resident threads as a share of the most that a multiprocessor takes, by registers and static shared memory."""
        shared_kib, most_threads = MULTIPROCESSORS[self.architecture]
        warps = -(-self.threads // 32)
        per_warp = -(-self.registers * 32 // 256) * 256
        by_registers = REGISTERS // per_warp // warps
        by_shared = shared_kib * 1024 // (self.shared + 1024) if self.shared else by_registers
        blocks = min(by_registers, by_shared, most_threads // self.threads)
        return blocks * self.threads / most_threads


def compile_command(source: Path, architectures: tuple[str, ...], output: Path, toolkit: cuda_builder.Toolkit) -> list[str]:
    """nvcc on one file, as the builder calls it, with warnings as errors and ptxas telling what it used."""
    flags = [*cuda_builder.NVCC_FLAGS, *WARNINGS, *cuda_builder.architecture_flags(architectures), "-Xptxas=-v"]
    return [toolkit.nvcc, *flags, f"-I{builder.SOURCE_DIR}", "-c", str(source), "-o", str(output)]


def parse(log: str) -> Iterator[Usage]:
    """The kernels in what ptxas -v printed."""
    entry = re.compile(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?"
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
        re.DOTALL,
    )
    for name, architecture, stores, loads, registers, rest in entry.findall(log):
        shared = re.search(r"(\d+) bytes smem", rest)
        yield Usage(name, architecture, int(registers), int(shared[1]) if shared else 0, int(stores), int(loads))


def demangle(names: list[str]) -> list[str]:
    """C++ names as people write them, where c++filt is at hand; without parameters."""
    tool = shutil.which("c++filt")
    if tool is None:
        return names
    lines = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout.splitlines()
    return [shorten(line) for line in lines]


def shorten(name: str) -> str:
    """`void open_eg3d::cuda::(anonymous namespace)::f<int, 4>(args)` as `f<int, 4>`."""
    name = re.sub(r"open_eg3d::cuda::|\(anonymous namespace\)::|_GLOBAL__N__\w+::|^void ", "", name)
    depth = 0
    for i, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            return name[:i]
    return name


def measure(architectures: tuple[str, ...], sources: list[Path]) -> list[Usage]:
    """Compile `sources` for all `architectures`.

    Raises:
        UserError: if nvcc fails; what it printed is in the message.
    """
    toolkit = cuda_builder.find_toolkit()
    usages: list[Usage] = []
    with tempfile.TemporaryDirectory() as folder:
        for source in progress(sources, description="nvcc"):
            command = compile_command(source, architectures, Path(folder) / "kernels.o", toolkit)
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                raise UserError(f"{source.name} does not compile: {builder.first_error(run.stdout + run.stderr)}")
            usages += parse(run.stdout + run.stderr)
    names = demangle([usage.kernel for usage in usages])
    return [Usage(**{**asdict(usage), "kernel": name}) for usage, name in zip(usages, names, strict=True)]


def read() -> list[Usage]:
    """What the file beside this one says."""
    return [Usage(**row) for row in json.loads(RESULTS.read_text())["kernels"]]


def family(kernel: str) -> str:
    """Name without template arguments."""
    return kernel.split("<")[0]


def markdown(usages: list[Usage]) -> str:
    """A table of all kernels, variants of one together: ranges over number types and packs."""
    architectures = [number for number in cuda_builder.ARCHITECTURES if any(u.architecture == number for u in usages)]
    lines = ["| Kernel (variants) | shared | spills | " + " | ".join(f"sm_{a}" for a in architectures) + " |"]
    lines.append("|---|---|---|" + "---|" * len(architectures))
    for name in sorted({family(usage.kernel) for usage in usages}):
        own = [usage for usage in usages if family(usage.kernel) == name]
        variants = len({usage.kernel for usage in own})
        shared, spills = [u.shared for u in own], max(u.spill_stores + u.spill_loads for u in own)
        cells = []
        for architecture in architectures:
            here = [u for u in own if u.architecture == architecture]
            registers, occupancy = [u.registers for u in here], [round(100 * u.occupancy) for u in here]
            cells.append(f"{span(registers)}, {span(occupancy)} %")
        lines.append(f"| `{name}` ({variants}) | {span(shared)} | {spills} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def span(values: list[int]) -> str:
    """`low-high`, or the one value."""
    return str(min(values)) if min(values) == max(values) else f"{min(values)}-{max(values)}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--show", metavar="ARCH", type=click.Choice(cuda_builder.ARCHITECTURES), help="Print the kernels of one architecture.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the table of docs/kernels.md.")
def main(show: str | None, as_markdown: bool) -> None:
    """Compile the CUDA kernels for all architectures and record what they take."""
    if as_markdown:
        click.echo(markdown(read()))
    elif show is not None:
        for usage in read():
            if usage.architecture == show:
                click.echo(
                    f"{usage.registers:4} registers {usage.shared:6} B shared {usage.spill_stores:4} B spilled "
                    f"{usage.occupancy:5.0%}  {usage.kernel}"
                )
    else:
        toolkit = cuda_builder.find_toolkit()
        usages = measure(cuda_builder.ARCHITECTURES, cuda_builder.kernel_sources())
        rows = [asdict(usage) for usage in usages]
        with atomic_write(RESULTS) as file:
            file.write((json.dumps({"nvcc": toolkit.version, "kernels": rows}, indent=0) + "\n").encode())
        click.echo(f"{len(rows)} kernels in {RESULTS}")


if __name__ == "__main__":
    run_cli(main)
