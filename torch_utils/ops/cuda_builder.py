"""Compiles csrc/cuda on machines with a GPU: kernels by nvcc, which sees no torch, and their
bindings by the C++ compiler.

Of a CUDA toolkit, nvcc with its own headers and the CUDA runtime are enough.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
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


ADVICE = "pip install 'open-eg3d[cuda]' brings one, or install the CUDA toolkit"
TOOLKITS = "/usr/local/cuda*"  # where installers put them
# Newer compilers than a toolkit knows are refused by it; these may lie beside them.
HOST_COMPILERS = (*(f"g++-{version}" for version in range(15, 9, -1)), "clang++")


@dataclass(frozen=True)
class Toolkit:
    """nvcc, the folder of the toolkit that it belongs to, and its CUDA version such as "13.0"."""

    nvcc: str
    root: Path
    version: str

    @property
    def major(self) -> str:
        return self.version.split(".")[0]

    def folders(self, kind: str) -> list[Path]:
        """Where its headers ("include") or libraries ("lib") lie: in a toolkit, in one of conda's,
        or in wheels.
        """
        names = ("lib64", "lib") if kind == "lib" else (kind,)
        roots = [self.root, *self.root.glob("targets/*")]
        return [root / name for root in roots for name in names if (root / name).is_dir()]

    def runtime(self) -> Path | None:
        """The CUDA runtime's library under the name that programs load it by, which wheels have
        alone: the toolkit's, or PyTorch's own.
        """
        name = f"libcudart.so.{self.major}"
        wheels = [path / "lib" for root in _wheels() for path in sorted(root.iterdir())]
        places = [folder / name for folder in (*self.folders("lib"), *wheels)]
        return next((path for path in places if path.exists()), None)


def _wheels() -> list[Path]:
    """Folders of NVIDIA's wheels."""
    places = dict.fromkeys([sysconfig.get_path("platlib"), *site.getsitepackages(), *sys.path])
    return [Path(place) / "nvidia" for place in places if (Path(place) / "nvidia").is_dir()]


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


def candidates() -> list[str]:
    """Every nvcc that is found, the preferred first: in CUDA_HOME, on the search path, in a conda
    environment, in the usual folders, in wheels.
    """
    named = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [Path(home) / "bin" for home in named if home]
    folders += [Path(place) for place in os.environ.get("PATH", "").split(os.pathsep) if place]
    if conda := os.environ.get("CONDA_PREFIX"):
        folders.append(Path(conda) / "bin")
    folders += [Path(place) / "bin" for place in sorted(glob.glob(TOOLKITS), reverse=True)]
    for wheels in _wheels():
        folders += [path / "bin" for path in wheels.glob("cu[0-9]*")]  # none holds nvcc 12
    found = (shutil.which("nvcc", path=str(folder)) for folder in folders)
    return list(dict.fromkeys(nvcc for nvcc in found if nvcc))


def find_toolkit() -> Toolkit:
    """The toolkit of the first nvcc that serves PyTorch's major version of CUDA; where none does,
    of the first.

    Raises:
        BuildError: if there is none, or none says where it belongs.
    """
    reasons, others = list[str](), list[Toolkit]()
    for nvcc in candidates():
        try:
            toolkit = _toolkit_of(nvcc)
        except BuildError as error:
            reasons.append(str(error))
            continue
        if torch.version.cuda in (None, "") or toolkit.major == torch.version.cuda.split(".")[0]:
            return toolkit
        others.append(toolkit)
    if others:
        return others[0]
    raise BuildError(reasons[0] if reasons else f"there is no nvcc; {ADVICE}")


def _toolkit_of(nvcc: str) -> Toolkit:
    """nvcc itself is asked where it belongs, because what is on the path may be a link or a script
    somewhere else.
    """
    run = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull],
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


def host_compiler_flags(toolkit: Toolkit, compiler: str) -> list[str]:
    """Flags that give nvcc a C++ compiler that it takes: none where its own choice will do, else
    that of the operators, else an older one beside it.

    Raises:
        BuildError: if it takes none.
    """
    command = [toolkit.nvcc, "-std=c++20", "-E", "-x", "cu", os.devnull, "-o", os.devnull]
    command += [f"-I{folder}" for folder in toolkit.folders("include")]
    choices = [
        [],
        *(["-ccbin", name] for name in (compiler, *HOST_COMPILERS) if shutil.which(name)),
    ]
    errors = []
    for flags in choices:
        run = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
        if run.returncode == 0:
            return flags
        errors.append(builder.first_error(run.stderr + run.stdout))
    raise BuildError(
        f"nvcc of CUDA {toolkit.version} takes none of this machine's C++ compilers: {errors[0]}"
    )


def check_version(toolkit: Toolkit) -> None:
    """Raises BuildError if `toolkit` and torch were made for different major versions of CUDA,
    whose libraries do not mix.
    """
    wanted = torch.version.cuda
    if wanted is None:
        raise BuildError("this PyTorch was built without CUDA; install one that was built with it")
    if toolkit.major != wanted.split(".")[0]:
        raise BuildError(
            f"nvcc is of CUDA {toolkit.version}, PyTorch was built with CUDA {wanted}; install the"
            f" toolkit {wanted}, or NVIDIA's wheels of it (docs/kernels.md)"
        )
    headers = toolkit.folders("include")
    if not any((folder / "cuda_runtime_api.h").exists() for folder in headers):
        raise BuildError(f"{toolkit.nvcc} lies beside no headers of the CUDA runtime; {ADVICE}")


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
    chosen = host_compiler_flags(toolkit, host.compiler)
    nvcc_flags = (*NVCC_FLAGS, *chosen, *architecture_flags(architectures))
    target = hashlib.sha256(f"{host.target} {toolkit.version} {host.version}".encode()).hexdigest()
    toolchain = builder.Toolchain(
        shlex.quote(toolkit.nvcc), f"nvcc {toolkit.version} with {host.version}", nvcc_flags, target
    )
    command = f"{host.compiler} {' '.join(host.flags)}"
    csrc = builder.escape(f"-I{shlex.quote(str(builder.SOURCE_DIR))}")
    include = builder.escape(
        " ".join(f"-isystem {shlex.quote(str(path))}" for path in toolkit.folders("include"))
    )
    library = toolkit.runtime()
    runtime = builder.escape("-lcudart" if library is None else shlex.quote(str(library)))
    return builder.Recipe(
        LIBRARY_NAME,
        builder.digest_of(
            dataclasses.replace(toolchain, compiler=f"{toolchain.compiler} {host.compiler}"),
            sources() + headers(),
        ),
        toolchain,
        tuple(sources()),
        {
            ".cu": f"{toolchain.compiler} {' '.join(nvcc_flags)} {csrc} {include} -c $in -o $out",
            ".cpp": f"{command} {builder.include_flags()} {include} -c $in -o $out",
        },
        f"{command} -shared $in {builder.library_flags('c10_cuda', 'torch_cuda')}"
        f" {runtime} -o $out",
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
