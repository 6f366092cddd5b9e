"""CUDA 12 takes the kernels, too. NVIDIA's wheels of it hold no nvcc, so clang is the front end: it
reads CUDA 12's headers, and CUDA 12's assembler makes the machine code.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from torch_utils.ops import builder, cuda_builder

WHEELS = (
    "nvidia-cuda-nvcc-cu12==12.4.131",
    "nvidia-cuda-runtime-cu12==12.4.127",
    "nvidia-cuda-cccl-cu12==12.4.127.post1",
    "nvidia-curand-cu12==10.3.5.147",  # clang's own headers name it
)
OLDEST_CLANG = 17  # that knows CUDA 12


@pytest.fixture(scope="module")
def clang() -> str:
    """clang++, of $OPEN_EG3D_CLANG or the newest on the path."""
    names = [f"clang++-{version}" for version in range(25, OLDEST_CLANG - 1, -1)]
    for name in (os.environ.get("OPEN_EG3D_CLANG", ""), *names, "clang++"):
        if found := shutil.which(name):
            run = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
            version = re.search(r"version (\d+)", run.stdout)
            if version and int(version[1]) >= OLDEST_CLANG:
                return found
    pytest.skip(f"there is no clang {OLDEST_CLANG} or newer (Debian: apt-get install clang-19)")


@pytest.fixture(scope="module")
def cuda12(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as an installed toolkit, as far as clang needs one."""
    wheels, root = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("cuda12")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    run = subprocess.run([*command, str(wheels), *WHEELS], capture_output=True, check=False)
    if run.returncode:
        pytest.skip("CUDA 12's wheels cannot be had")
    for part in (wheels / "nvidia").iterdir():
        if (part / "include").is_dir():
            shutil.copytree(part / "include", root / "include", dirs_exist_ok=True)
    for name in ("bin", "nvvm"):
        shutil.copytree(wheels / "nvidia" / "cuda_nvcc" / name, root / name)
    (root / "lib64").mkdir()
    (root / "bin" / "ptxas").chmod(0o755)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("source", cuda_builder.kernel_sources(), ids=lambda path: path.stem)
def test_cuda_12_compiles_kernels_and_their_launches(
    clang: str, cuda12: Path, source: Path, tmp_path: Path
) -> None:
    command = [clang, "-x", "cuda", f"--cuda-path={cuda12}", "--cuda-gpu-arch=sm_80", "-std=c++20"]
    command += ["-O1", "-Wno-unknown-cuda-version", f"-I{builder.SOURCE_DIR}", str(source)]
    made = tmp_path / "kernels.cubin"
    for options in (
        ["--cuda-device-only", "-c", "-o", str(made)],
        ["--cuda-host-only", "-fsyntax-only"],
    ):
        run = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[:5000]
    assert made.read_bytes()[:4] == b"\x7fELF"
