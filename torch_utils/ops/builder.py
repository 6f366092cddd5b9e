"""Compiles csrc/ once per machine: by ninja, into a cache folder named after all that decides the
result.

CUDA kernels are a library of their own (cuda_builder.py): machines without a GPU never see them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dnnlib import files, locks
from dnnlib.console import UserError, progress

SOURCE_DIR = Path(__file__).parent / "csrc"
PREFIX = "prefix.h"  # in csrc/: the headers of torch, compiled once for all C++ sources
LIBRARY_NAME = "open_eg3d_ops.so"
# NaN and infinities keep their meaning: nothing here lets the compiler assume that there are none.
FLAGS = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
)
ARCH_VARIABLE = "OPEN_EG3D_ARCH"  # the instruction set to compile for, as -march names it
MOST_JOBS = 4  # a compiler takes up to a gigabyte


class BuildError(Exception):
    """The operators cannot be compiled here. The message is one line: why, and what to do."""


@dataclass(frozen=True)
class Toolchain:
    """A compiler, the flags that it takes, and `target`, a digest of the macros it then predefines
    (version, instruction sets).
    """

    compiler: str
    version: str
    flags: tuple[str, ...]
    target: str


@dataclass(frozen=True)
class Built:
    """A finished library and how it was made; `seconds` is the time that compiling took."""

    library: str
    compiler: str
    version: str
    flags: tuple[str, ...]
    torch: str
    seconds: float


@dataclass(frozen=True)
class Recipe:
    """What to compile into the library `name` in the cache folder `key`, and how.

    `compile` has a command line for every suffix of `sources`, and `link` one for their objects;
    ninja's $in and $out stand for files. `precompile`, if any, makes PREFIX.gch of PREFIX first.
    """

    name: str
    key: str
    toolchain: Toolchain
    sources: tuple[Path, ...]
    compile: dict[str, str]
    link: str
    precompile: str = ""


def sources() -> list[Path]:
    """The C++ files to compile, the largest first: that is the order in which compilers start."""
    paths = sorted([*SOURCE_DIR.glob("*.cpp"), *SOURCE_DIR.glob("cpu/*.cpp")])
    return sorted(paths, key=lambda path: -path.stat().st_size)


def headers() -> list[Path]:
    """The headers that they include: all but those of CUDA kernels."""
    return sorted(
        path for path in SOURCE_DIR.rglob("*.h") if path.relative_to(SOURCE_DIR).parts[0] != "cuda"
    )


def find_toolchain() -> Toolchain:
    """The compiler $CXX, else c++, and the flags that it takes.

    Raises:
        BuildError: if there is none.
        UserError: if it does not know the instruction set $OPEN_EG3D_ARCH.
    """
    command = shlex.split(_cpp_extension().get_cxx_compiler())
    if shutil.which(command[0]) is None:
        raise BuildError(f"there is no C++ compiler {command[0]!r}; install g++ or set CXX")
    arch = os.environ.get(ARCH_VARIABLE) or "native"
    optional = (f"-march={arch}", "-fopenmp")  # left out where the compiler refuses them
    flags: tuple[str, ...] = FLAGS + optional
    macros = _predefined_macros(command, flags)
    if macros is None:
        flags = FLAGS + tuple(
            flag for flag in optional if _predefined_macros(command, (*FLAGS, flag)) is not None
        )
        macros = _predefined_macros(command, flags)
    if macros is None:
        raise BuildError(
            f"the compiler {shlex.join(command)} does not take the flags {' '.join(FLAGS)}; set CXX"
            " to a C++20 compiler"
        )
    if arch not in ("native", arch_of(flags)):
        raise UserError(
            f"{ARCH_VARIABLE}={arch}: the compiler {shlex.join(command)} knows no such instruction"
            " set; use x86-64-v3 (AVX2), x86-64-v4 (AVX-512) or native"
        )
    version = (
        subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
        .stdout.strip()
        .split("\n")[0]
    )
    return Toolchain(shlex.join(command), version, flags, hashlib.sha256(macros).hexdigest())


def arch_of(flags: Sequence[str]) -> str:
    """The instruction set that `flags` compile for: native, one by name, or the compiler's own
    choice.
    """
    return next((flag[7:] for flag in flags if flag.startswith("-march=")), "default")


def cache_key(toolchain: Toolchain) -> str:
    """Name of the cache folder: a digest of sources, torch, compiler, flags and instruction sets,
    and the set that was asked for.
    """
    digest = digest_of(toolchain, sources() + headers())
    arch = arch_of(toolchain.flags)
    return digest if arch == "native" else f"{digest}-{arch}"


def digest_of(toolchain: Toolchain, paths: Sequence[Path]) -> str:
    """A digest of torch, `toolchain` and the contents of `paths` under csrc/."""
    digest = hashlib.sha256(
        json.dumps([torch.__version__, sys.platform, asdict(toolchain)]).encode()
    )
    for path in paths:
        digest.update(f"\0{os.path.relpath(path, SOURCE_DIR)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def build() -> Built:
    """The library for this machine, compiled now unless an earlier process did; one process
    compiles, others wait for it.

    Raises:
        BuildError: if there is no compiler or no ninja, if compiling fails, or if the cache folder
            cannot be written.
        UserError: as `find_toolchain`.
    """
    toolchain = find_toolchain()
    command = f"{toolchain.compiler} {' '.join(toolchain.flags)}"
    compile, prefix, precompile = f"{command} {include_flags()}", "", ""
    if (SOURCE_DIR / PREFIX).exists():
        prefix, precompile = f" -include {PREFIX}", f"{compile} -x c++-header $in -o $out"
    return build_recipe(
        Recipe(
            LIBRARY_NAME,
            cache_key(toolchain),
            toolchain,
            tuple(sources()),
            {".cpp": f"{compile}{prefix} -c $in -o $out"},
            f"{command} -shared $in {library_flags()} -o $out",
            precompile,
        )
    )


def include_flags() -> str:
    """Include flags for csrc/ and torch, for ninja."""
    includes = [f"-isystem {shlex.quote(path)}" for path in _cpp_extension().include_paths()]
    return escape(" ".join([f"-I{shlex.quote(str(SOURCE_DIR))}", *includes]))


def library_flags(*names: str) -> str:
    """Linker flags for torch and the libraries `names`; for ninja."""
    folders = [f"-L{shlex.quote(path)}" for path in _cpp_extension().library_paths()]
    return escape(
        " ".join([*folders, *(f"-l{name}" for name in ("c10", "torch_cpu", "torch", *names))])
    )


def build_recipe(recipe: Recipe) -> Built:
    """As `build`, for any library."""
    root = files.cache_dir() / "ops"
    target = root / recipe.key
    finished = _read(target, recipe.name)
    if finished is not None:
        return finished
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locks.hold(root / "lock", "compiles the operators"):
            # another process may have been at it while this one waited
            finished = _read(target, recipe.name)
            if finished is None:
                finished = _build_into(target, recipe)
            return finished
    except OSError as error:
        raise BuildError(
            f"cannot write to {root}: {error.strerror or error}; free some space or set"
            " OPEN_EG3D_CACHE to a writable folder"
        ) from error


def _predefined_macros(command: Sequence[str], flags: Sequence[str]) -> bytes | None:
    """What the compiler defines under `flags`, or None if it refuses them."""
    result = subprocess.run(
        [*command, *flags, "-E", "-dM", "-x", "c++", os.devnull], capture_output=True, check=False
    )
    return None if result.returncode else result.stdout


def _cpp_extension() -> Any:
    """torch.utils.cpp_extension without its note about a CUDA toolkit, which is of no use to anyone
    here.
    """
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import torch.utils.cpp_extension as cpp_extension
    finally:
        logger.setLevel(level)
    return cpp_extension


def _read(folder: Path, name: str) -> Built | None:
    try:
        record = json.loads((folder / "build.json").read_text())
    except OSError:
        return None
    return Built(**{**record, "library": str(folder / name), "flags": tuple(record["flags"])})


def _build_into(target: Path, recipe: Recipe) -> Built:
    """Compile in a scratch folder, then rename: `target` is never incomplete."""
    # of builders that were killed: the lock says that none is at work
    for left_over in target.parent.glob(".tmp-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    print(f"Compiling the operators into {target}, once", file=sys.stderr, flush=True)
    start = time.monotonic()
    toolchain = recipe.toolchain
    with _scratch_folder(target) as scratch:
        _write_ninja_file(scratch, recipe)
        steps = len(recipe.sources) + (2 if recipe.precompile else 1)
        _run_ninja(scratch, steps, target.with_suffix(".log"))
        built = Built(
            recipe.name,
            toolchain.compiler,
            toolchain.version,
            toolchain.flags,
            torch.__version__,
            time.monotonic() - start,
        )
        (scratch / "build.json").write_text(json.dumps(asdict(built), indent=1) + "\n")
        for unneeded in (*scratch.glob("*.o"), *scratch.glob(".ninja*"), *scratch.glob("*.h*")):
            unneeded.unlink()
        for name in (recipe.name, "build.json"):
            _sync(scratch / name)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(scratch, target)
        files.sync_dir(target.parent)
    finished = _read(target, recipe.name)
    assert finished is not None
    return finished


@contextlib.contextmanager
def _scratch_folder(target: Path) -> Iterator[Path]:
    scratch = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _write_ninja_file(folder: Path, recipe: Recipe) -> None:
    objects = {
        "-".join(Path(os.path.relpath(path, SOURCE_DIR)).parts) + ".o": path
        for path in recipe.sources
    }
    lines = ["ninja_required_version = 1.3", "rule link", f"  command = {recipe.link}"]
    for suffix, command in recipe.compile.items():
        lines += [f"rule compile_{suffix[1:]}", f"  command = {command}"]
    needs = ""
    if recipe.precompile:
        shutil.copyfile(SOURCE_DIR / PREFIX, folder / PREFIX)
        lines += ["rule precompile", f"  command = {recipe.precompile}"]
        lines.append(f"build {PREFIX}.gch: precompile {PREFIX}")
        needs = f" | {PREFIX}.gch"
    for name, path in objects.items():
        source = escape(str(path)).replace(" ", "$ ").replace(":", "$:")
        lines.append(f"build {name}: compile_{path.suffix[1:]} {source}{needs}")
    lines.append(f"build {recipe.name}: link {' '.join(objects)}")
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")


def escape(text: str) -> str:
    """`text` escaped for ninja's files."""
    return text.replace("$", "$$")


def _run_ninja(folder: Path, steps: int, failure_log: Path) -> None:
    """Run the `steps` commands of build.ninja, with a progress bar.

    Raises:
        BuildError: with the first error line; `failure_log` then holds all that was printed.
    """
    search_path = os.pathsep.join(
        [os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")]
    )
    ninja = shutil.which("ninja", path=search_path)
    if ninja is None:
        raise BuildError("there is no ninja; install it: pip install ninja")
    log: list[str] = []
    with subprocess.Popen(
        [ninja, "-v", "-j", str(_jobs())],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "NINJA_STATUS": "[%f/%t] "},
    ) as process:
        assert process.stdout is not None
        for _ in progress(
            _steps_done(process.stdout, log), "Compiling the operators", total=steps, unit="file"
        ):
            pass
    if process.returncode == 0:
        return
    text = "".join(log)
    failure_log.write_text(text)
    raise BuildError(f"compiling failed: {first_error(text)}; all of it is in {failure_log}")


def _steps_done(output: Iterable[str], log: list[str]) -> Iterator[int]:
    """The number of each step that ninja has done; `log` gets all lines."""
    for line in output:
        log.append(line)
        if status := re.match(r"\[(\d+)/\d+\] ", line):
            yield int(status[1])


def _jobs() -> int:
    asked = os.environ.get("MAX_JOBS", "")
    return max(1, int(asked)) if asked.isdigit() else min(os.cpu_count() or 1, MOST_JOBS)


def first_error(log: str) -> str:
    """The line of a compiler's output that says why it failed."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [
        line
        for line in lines
        if re.search(r"\berror\b|undefined reference|cannot find|Killed|No space left", line)
    ]
    return (errors or lines[-1:] or ["the compiler printed nothing"])[0]
