"""Tell what the CUDA kernels take of a GPU: registers, shared memory and spills as ptxas reports
them, and the occupancy that follows.

    python -m benchmarks.cuda_resources            compile for every architecture
    python -m benchmarks.cuda_resources bias_act   the same for one source

Brings the table in docs/kernels.md up to date. Needs nvcc but no GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click

from dnnlib.console import HELP, UserError, progress, run_cli
from dnnlib.files import atomic_write
from torch_utils.ops import builder, cuda_builder

PAGE = Path(__file__).parents[1] / "docs" / "kernels.md"
ROW = r"^(\| `(\w+_kernel)` \(\d+\) \|.*)$"
WARNINGS = ("--Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror")
# Bytes of shared memory that a launch asks for at the sizes of the published networks; ptxas does
# not know them.
DYNAMIC_SHARED = {
    "upfirdn2d_kernel": 24 << 10,
    "filtered_lrelu_kernel": 32 << 10,
    "render_kernel": 46960,
    "trace_backward_kernel": 46960,
    "decode_kernel": 46752,
    "decode_backward_kernel": 55968,
}
# Shared memory of a multiprocessor in KiB and its most threads (CUDA C++ Programming Guide, table
# of technical specifications).
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
    """One kernel on one architecture, with its static shared memory and the threads of its
    blocks.
    """

    kernel: str
    architecture: str
    registers: int
    shared: int
    spill_stores: int
    spill_loads: int
    threads: int = 256

    @property
    def all_shared(self) -> int:
        """With what launches usually add."""
        return self.shared + DYNAMIC_SHARED.get(family(self.kernel), 0)

    @property
    def occupancy(self) -> float:
        """Resident threads as a share of the most that a multiprocessor takes, by registers and
        shared memory.
        """
        shared_kib, most_threads = MULTIPROCESSORS[self.architecture]
        warps = -(-self.threads // 32)
        per_warp = -(-self.registers * 32 // 256) * 256
        by_registers = REGISTERS // per_warp // warps
        by_shared = (
            shared_kib * 1024 // (self.all_shared + 1024) if self.all_shared else by_registers
        )
        blocks = max(min(by_registers, by_shared, most_threads // self.threads), 1)
        return blocks * self.threads / most_threads


def compile_command(
    source: Path, architectures: tuple[str, ...], output: Path, toolkit: cuda_builder.Toolkit
) -> list[str]:
    """nvcc on one file, as the builder calls it, with warnings as errors and ptxas telling what it
    used.
    """
    flags = [
        *cuda_builder.NVCC_FLAGS,
        *WARNINGS,
        *cuda_builder.architecture_flags(architectures),
        "-Xptxas=-v",
    ]
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
        yield Usage(
            name,
            architecture,
            int(registers),
            int(shared[1]) if shared else 0,
            int(stores),
            int(loads),
        )


def demangle(names: list[str]) -> list[str]:
    """C++ names as people write them, where c++filt is at hand; without parameters."""
    tool = shutil.which("c++filt")
    if tool is None:
        return names
    lines = subprocess.run(
        [tool], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
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


def threads_per_block(source: Path) -> dict[str, int]:
    """Of each kernel of a file, as its launch bounds say."""
    # a file's own constants hide others
    text = "".join(path.read_text() for path in [*cuda_builder.headers(), source])
    constants = dict(re.findall(r"constexpr int (\w+) = (\d+)", text))
    bounds = re.findall(r"__launch_bounds__\((\w+)[^)]*\)\s+(\w+)\(", source.read_text())
    return {kernel: int(constants.get(threads, threads)) for threads, kernel in bounds}


def measure(architectures: tuple[str, ...], source: Path) -> list[Usage]:
    """Compile `source` for all `architectures`.

    Raises:
        UserError: if nvcc fails; its first error is in the message.
    """
    toolkit, threads = cuda_builder.find_toolkit(), threads_per_block(source)
    with tempfile.TemporaryDirectory() as folder:
        command = compile_command(source, architectures, Path(folder) / "kernels.o", toolkit)
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise UserError(
            f"{source.name} does not compile: {builder.first_error(run.stdout + run.stderr)}"
        )
    usages = list(parse(run.stdout + run.stderr))
    names = demangle([usage.kernel for usage in usages])
    return [
        replace(usage, kernel=name, threads=threads[family(name)])
        for usage, name in zip(usages, names, strict=True)
    ]


def recorded() -> dict[str, str]:
    """Rows of the table in docs/kernels.md, by kernel."""
    text = PAGE.read_text(encoding="utf-8")
    return {match[2]: match[1] for match in re.finditer(ROW, text, re.MULTILINE)}


def family(kernel: str) -> str:
    """Name without template arguments."""
    return kernel.split("<")[0]


def rows(usages: list[Usage]) -> dict[str, str]:
    """A row per kernel, variants of one together: ranges over number types and packs."""
    kernels: dict[str, list[Usage]] = {}
    for usage in usages:
        kernels.setdefault(family(usage.kernel), []).append(usage)
    return {name: row(name, own) for name, own in kernels.items()}


def row(name: str, usages: list[Usage]) -> str:
    """Variants, shared memory, most bytes spilled, and for each architecture registers per thread
    and occupancy.
    """
    cells = [
        f"`{name}` ({len({usage.kernel for usage in usages})})",
        span([round(usage.all_shared / 1024) for usage in usages]),
        str(max(usage.spill_stores + usage.spill_loads for usage in usages)),
    ]
    for architecture in cuda_builder.ARCHITECTURES:
        here = [usage for usage in usages if usage.architecture == architecture]
        occupancy = span([round(100 * usage.occupancy) for usage in here])
        cells.append(f"{span([usage.registers for usage in here])}, {occupancy} %")
    return f"| {' | '.join(cells)} |"


def span(values: list[int]) -> str:
    """`low-high`, or the one value."""
    return str(min(values)) if min(values) == max(values) else f"{min(values)}-{max(values)}"


@click.command(context_settings=HELP)
@click.argument("names", nargs=-1)
def main(names: tuple[str, ...]) -> None:
    """Compile the CUDA kernels, or those of the sources NAMES, for all architectures and bring the
    table in docs/kernels.md up to date.
    """
    sources = {source.stem: source for source in cuda_builder.kernel_sources()}
    if unknown := set(names) - set(sources):
        raise UserError(f"there is no {min(unknown)} in csrc/cuda; there are {', '.join(sources)}")
    known = {kernel for source in sources.values() for kernel in threads_per_block(source)}
    table = {name: line for name, line in recorded().items() if name in known}
    for name in progress(names or list(sources), description="nvcc"):
        table |= rows(measure(cuda_builder.ARCHITECTURES, sources[name]))
    text = PAGE.read_text(encoding="utf-8")
    lines = "\n".join(table[name] for name in sorted(table))
    text = re.sub(rf"(?:{ROW}\n)+", lambda _: f"{lines}\n", text, count=1, flags=re.MULTILINE)
    with atomic_write(PAGE) as file:
        file.write(text.encode())


if __name__ == "__main__":
    run_cli(main)
