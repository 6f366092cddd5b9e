"""CUDA kernels without a GPU: as an operator library for the CPU, and as programs that run under
sanitizers (tests/cuda_shim).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from torch_utils.ops import builder, cuda_builder, library

SHIM = Path(__file__).parent / "cuda_shim"
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
SANITIZERS = {
    "none": ("-O2",),
    "address": ("-Og", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-Og", "-g1", "-fsanitize=thread", "-DCUDA_ON_CPU_THREADS"),
}
OPTIONS = {
    # Leaks: abandoned fibers never return from their first function.
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def shim_files() -> list[Path]:
    """All that kernels include on the CPU."""
    return sorted(SHIM.glob("*.h"))


def library_recipe() -> builder.Recipe:
    """The CUDA kernels and their bindings behind the CPU's dispatch key, with the schemas and
    without the CPU's own kernels.
    """
    found = builder.find_toolchain()
    flags = tuple(
        "-O1" if flag == "-O3" else flag
        for flag in found.flags
        if not flag.startswith(("-march=", "-fopenmp"))
    )
    toolchain = builder.Toolchain(
        found.compiler, found.version, (*flags, "-DOPEN_EG3D_CUDA_ON_CPU", *WARNINGS), found.target
    )
    sources = (*sorted(builder.SOURCE_DIR.glob("*.cpp")), *cuda_builder.sources())
    shim = builder.escape(f"-I{SHIM}")
    command = f"{toolchain.compiler} {' '.join(toolchain.flags)} {shim} {builder.include_flags()}"
    return builder.Recipe(
        "open_eg3d_cuda_on_cpu.so",
        builder.digest_of(toolchain, [*sources, *cuda_builder.headers(), *shim_files()]),
        toolchain,
        sources,
        {".cpp": f"{command} -c $in -o $out", ".cu": f"{command} -x c++ -c $in -o $out"},
        f"{toolchain.compiler} -shared $in {builder.library_flags()} -o $out",
    )


def use_as_cpu_kernels() -> None:
    """From here on, until the process ends, the operators of CPU tensors are the CUDA kernels.
    Before anything is loaded.
    """
    built = builder.build_recipe(library_recipe())
    builder.build = lambda: built
    assert library.load()


def build_program(source: Path, kernels: list[str], sanitizer: str, folder: Path) -> Path:
    """Compile a standalone test with the kernels of these names, such as "bias_act"; kept in the
    operators' cache.
    """
    paths = [builder.SOURCE_DIR / "cuda" / f"{name}.cu" for name in kernels]
    compiler = builder.find_toolchain().compiler
    command = [
        compiler,
        "-std=c++20",
        *SANITIZERS[sanitizer],
        *WARNINGS,
        "-pthread",
        f"-I{SHIM}",
        f"-I{builder.SOURCE_DIR}",
    ]
    digest = hashlib.sha256(" ".join(command).encode())
    for path in (source, *paths, *shim_files(), *cuda_builder.headers()):
        digest.update(path.read_bytes())
    program = folder / f"{source.stem}-{sanitizer}-{digest.hexdigest()[:16]}"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        scratch = program.with_suffix(f".{os.getpid()}")
        run = subprocess.run(
            [*command, "-x", "c++", str(source), *map(str, paths), "-o", str(scratch)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        scratch.rename(program)
    return program


def run_program(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it under sanitizers that end it at the first finding."""
    environment = {**os.environ, **OPTIONS}
    return subprocess.run(
        [str(program), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=500,
    )


def main() -> int:
    """Run pytest on the arguments with CUDA kernels as CPU kernels: python -m tests.cuda_on_cpu
    tests/torch_utils/ops/test_bias_act.py.
    """
    import pytest

    use_as_cpu_kernels()
    return pytest.main(sys.argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
