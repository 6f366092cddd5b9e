"""Compiles csrc/cuda on machines with a GPU: kernels by nvcc, which sees no torch, and their
bindings by the C++ compiler.

Of a CUDA toolkit, nvcc with its own headers and the CUDA runtime are enough.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from torch_utils.ops import builder
from torch_utils.ops.builder import BuildError

LIBRARY_NAME = "open_eg3d_cuda_ops.so"
# As on the CPU, NaN and infinities keep their meaning; denormal numbers, division and square roots
# are those of IEEE 754.
NVCC_FLAGS = ("-std=c++20", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden")
# Turing to Blackwell; released builds and tests compile for all of them, a machine's own build for
# its GPUs.
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")


@dataclass(frozen=True)
class Toolkit:
    """nvcc, the folder of the toolkit that it belongs to, and its CUDA version such as "13.0"."""

    nvcc: str
    root: Path
    version: str


def kernel_sources() -> list[Path]:
    """The files that nvcc compiles."""
    return sorted((builder.SOURCE_DIR / "cuda").glob("*.cu"))


def sources() -> list[Path]:
    """All files to compile, in a fixed order."""
    return kernel_sources() + sorted((builder.SOURCE_DIR / "cuda").glob("*.cpp"))


def headers() -> list[Path]:
    """All headers that they may include."""
    return sorted(
        [
            *builder.SOURCE_DIR.glob("*.h"),
            *builder.SOURCE_DIR.glob("cuda/**/*.h"),
            *builder.SOURCE_DIR.glob("triplane/*.h"),
        ]
    )


def find_toolkit() -> Toolkit:
    """The toolkit of the nvcc on the search path.

    nvcc itself is asked where it belongs, because what is on the path may be a link or a script
    somewhere else.

    Raises:
        BuildError: if there is none, or it does not say.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise BuildError(
            f"there is no nvcc; install the CUDA toolkit {torch.version.cuda or ''}".rstrip()
            + " and put its bin folder on PATH"
        )
    run = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", "-c", "/dev/null", "-o", "/dev/null"],
        capture_output=True,
        text=True,
        check=False,
    )
    top = re.search(r"^#\$ TOP=(.+)$", run.stderr, re.MULTILINE)
    release = re.search(
        r"release (\d+\.\d+)",
        subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout,
    )
    if top is None or release is None:
        raise BuildError(
            f"{nvcc} does not say which toolkit it belongs to: {builder.first_error(run.stderr)}"
        )
    return Toolkit(nvcc, Path(top[1].strip()).resolve(), release[1])


def check_version(toolkit: Toolkit) -> None:
    """Raises BuildError if `toolkit` and torch were made for different major versions of CUDA,
    whose libraries do not mix.
    """
    wanted = torch.version.cuda
    if wanted is None:
        raise BuildError("this PyTorch was built without CUDA; install one that was built with it")
    if toolkit.version.split(".")[0] != wanted.split(".")[0]:
        raise BuildError(
            f"nvcc is of CUDA {toolkit.version}, PyTorch was built with CUDA {wanted}; install the"
            f" toolkit {wanted}"
        )


def device_architectures(toolkit: Toolkit) -> tuple[str, ...]:
    """The architectures of this machine's GPUs, or the newest that nvcc knows for those that are
    newer than it. GPUs too old for it are left out.

    Raises:
        BuildError: if all are.
    """
    listed = subprocess.run(
        [toolkit.nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False
    ).stdout
    known = sorted(int(number) for number in re.findall(r"compute_(\d+)", listed))
    capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    wanted = {10 * major + minor for major, minor in capabilities}
    fitting = {max((k for k in known if k <= number), default=0) for number in wanted} - {0}
    if not fitting:
        raise BuildError(
            f"CUDA {toolkit.version} does not compile for GPUs of compute capability"
            f" {min(wanted, default=0) / 10}"
        )
    return tuple(str(number) for number in sorted(fitting))


def architecture_flags(architectures: Sequence[str]) -> list[str]:
    """Machine code for each of them, and PTX of the newest for what comes after."""
    flags = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    newest = max(architectures, key=int)
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def runs_on(flags: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether what was compiled with `flags` runs on a GPU of that compute capability: machine code
    does on those of the same major version and no smaller minor one, PTX on all that came later.
    """
    number = 10 * capability[0] + capability[1]
    text = " ".join(flags)
    codes = [int(code) for code in re.findall(r"code=sm_(\d+)", text)]
    is_code = any(code // 10 == capability[0] and code <= number for code in codes)
    return is_code or any(int(ptx) <= number for ptx in re.findall(r"code=compute_(\d+)", text))


def recipe(architectures: Sequence[str], toolkit: Toolkit) -> builder.Recipe:
    """How to compile the library for `architectures`."""
    host = builder.find_toolchain()
    nvcc_flags = (*NVCC_FLAGS, *architecture_flags(architectures))
    target = hashlib.sha256(f"{host.target} {toolkit.version} {host.version}".encode()).hexdigest()
    toolchain = builder.Toolchain(
        shlex.quote(toolkit.nvcc), f"nvcc {toolkit.version} with {host.version}", nvcc_flags, target
    )
    command = f"{host.compiler} {' '.join(host.flags)}"
    csrc, include, *folders = (
        builder.escape(flag + shlex.quote(str(path)))
        for flag, path in (
            ("-I", builder.SOURCE_DIR),
            ("-isystem ", toolkit.root / "include"),
            ("-L", toolkit.root / "lib64"),
            ("-L", toolkit.root / "lib"),
        )
    )
    return builder.Recipe(
        LIBRARY_NAME,
        builder.digest_of(
            dataclasses.replace(toolchain, compiler=f"{toolchain.compiler} {host.compiler}"),
            sources() + headers(),
        ),
        toolchain,
        tuple(sources()),
        {
            ".cu": f"{toolchain.compiler} {' '.join(nvcc_flags)} {csrc} -c $in -o $out",
            ".cpp": f"{command} {builder.include_flags()} {include} -c $in -o $out",
        },
        f"{command} -shared $in {builder.library_flags('c10_cuda', 'torch_cuda')}"
        f" {' '.join(folders)} -lcudart -o $out",
    )


def build() -> builder.Built:
    """The library for this machine's GPUs, compiled now unless an earlier process did.

    Raises:
        BuildError: if there is no toolkit or one of another CUDA than torch's, or as
            `builder.build`.
    """
    toolkit = find_toolkit()
    check_version(toolkit)
    return builder.build_recipe(recipe(device_architectures(toolkit), toolkit))
