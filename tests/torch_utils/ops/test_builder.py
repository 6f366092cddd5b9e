"""Compiling the operators: once, whole or not at all, and with a plain word where that fails. Real
compilers, tiny sources.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dnnlib.console import UserError
from tests.tiny import PATIENCE
from torch_utils.ops import builder

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="there is no C++ compiler"
)
pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="the operators are not compiled on Windows"
)

BUILD = """
import sys
from pathlib import Path
from torch_utils.ops import builder
builder.SOURCE_DIR = Path(sys.argv[1])
print(builder.build().library)
"""
SOURCE = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with sources of its own, and an empty cache."""
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "answer.cpp").write_text(SOURCE)
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(builder, "SOURCE_DIR", tmp_path / "csrc")
    return tmp_path


def start_build(place: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(place / "csrc")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment},
    )


def slow_compiler(place: Path, seconds: float) -> str:
    """A compiler that takes its time over object files, and counts them."""
    script = place / "slow-c++"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *" -c "*) echo . >> "{place}/count"; sleep {seconds};; esac\nexec'
        ' c++ "$@"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


@needs_compiler
@pytest.mark.usefixtures("place")
def test_the_second_call_finds_what_the_first_one_built(capfd: pytest.CaptureFixture[str]) -> None:
    first = builder.build()
    assert "Compiling" in capfd.readouterr().err
    before = Path(first.library).stat().st_mtime_ns
    assert builder.build() == first
    assert capfd.readouterr().err == ""
    assert Path(first.library).stat().st_mtime_ns == before
    assert first.flags[0] == "-std=c++20"
    assert not any("fast-math" in flag for flag in first.flags)
    assert (
        json.loads((Path(first.library).parent / "build.json").read_text())["version"]
        == first.version
    )


@needs_compiler
@pytest.mark.parametrize("change", ["source", "header", "flags", "torch", "compiler"])
def test_the_cache_key_follows_all_that_decides_the_result(
    place: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    def key() -> str:
        return builder.cache_key(builder.find_toolchain())

    before = key()
    assert key() == before
    if change == "source":
        (place / "csrc" / "answer.cpp").write_text(SOURCE.replace("42", "43"))
    elif change == "header":
        (place / "csrc" / "new.h").write_text("")
    elif change == "flags":
        monkeypatch.setattr(builder, "FLAGS", (*builder.FLAGS, "-DX"))
    elif change == "torch":
        monkeypatch.setattr(builder.torch, "__version__", "99.0")
    else:
        monkeypatch.setenv("CXX", slow_compiler(place, 0))
    assert key() != before


@pytest.mark.waits
@needs_compiler
def test_a_killed_build_blocks_nobody_and_leaves_nothing(place: Path) -> None:
    killed = start_build(place, CXX=slow_compiler(place, 60))
    wait_for(place / "count")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    (left_over,) = (place / "cache" / "ops").glob(".tmp-*")
    assert not (left_over / builder.LIBRARY_NAME).exists()
    slow_compiler(place, 0)  # the same path, so the same cache folder is asked for
    output, errors = start_build(place, CXX=str(place / "slow-c++")).communicate(timeout=PATIENCE)
    assert Path(output.strip()).is_file(), errors
    assert not list((place / "cache" / "ops").glob(".tmp-*"))


@pytest.mark.waits
@needs_compiler
def test_of_two_processes_one_builds_and_the_other_waits(place: Path) -> None:
    compiler = slow_compiler(place, 3)
    first = start_build(place, CXX=compiler)
    wait_for(place / "count")
    second = start_build(place, CXX=compiler)
    (first_output, first_errors), (second_output, second_errors) = (
        first.communicate(timeout=PATIENCE),
        second.communicate(timeout=PATIENCE),
    )
    assert first_output == second_output, first_errors + second_errors
    assert "Compiling" in first_errors
    assert "Compiling" not in second_errors
    assert (place / "count").read_text() == ".\n"


@needs_compiler
def test_a_failed_build_names_the_first_error_and_the_log(place: Path) -> None:
    (place / "csrc" / "answer.cpp").write_text(
        "int answer() { return missing; }\nint other() { return also; }\n"
    )
    with pytest.raises(
        builder.BuildError,
        match=r"answer\.cpp:1:\d+: error: .*missing.*; all of it is in (.*\.log)",
    ) as raised:
        builder.build()
    assert "also" in Path(str(raised.value).rsplit(" ", 1)[1]).read_text()
    (place / "csrc" / "answer.cpp").write_text(SOURCE)
    assert Path(builder.build().library).is_file()


def test_no_compiler(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(
        builder.BuildError, match=r"no C\+\+ compiler 'no-such-compiler'; install g\+\+ or set CXX"
    ):
        builder.build()
    assert not (place / "cache").exists()


@needs_compiler
@pytest.mark.usefixtures("place")
def test_no_ninja(monkeypatch: pytest.MonkeyPatch) -> None:
    found = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, **options: None if name == "ninja" else found(name, **options)
    )
    with pytest.raises(builder.BuildError, match="no ninja; install it: pip install ninja"):
        builder.build()


@needs_compiler
def test_a_compiler_that_does_not_take_a_flag_goes_without(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = place / "picky-c++"
    script.write_text('#!/bin/sh\ncase "$*" in *march*) exit 1;; esac\nexec c++ "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    flags = builder.build().flags
    assert "-march=native" not in flags
    assert "-fopenmp" in flags
    script.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(
        builder.BuildError, match=r"does not take the flags .*; set CXX to a C\+\+20 compiler"
    ):
        builder.build()


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names an instruction set of x86-64")
def test_an_instruction_set_may_be_asked_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = builder.find_toolchain()
    assert builder.arch_of(native.flags) == "native"
    (place / "csrc" / "answer.cpp").write_text(
        "#if !defined(__AVX2__) || defined(__AVX512F__)\n#error another set\n#endif\n" + SOURCE
    )
    monkeypatch.setenv("OPEN_EG3D_ARCH", "x86-64-v3")
    built = builder.build()
    assert "-march=x86-64-v3" in built.flags
    assert "-march=native" not in built.flags
    assert builder.arch_of(built.flags) == "x86-64-v3"
    folder = Path(built.library).parent.name
    assert folder.endswith("-x86-64-v3")
    monkeypatch.setenv("OPEN_EG3D_ARCH", "native")
    assert builder.find_toolchain() == native
    assert builder.cache_key(native) != folder


@needs_compiler
@pytest.mark.parametrize("arch", ["x86-64-v9", "native -O0", "$(date)"])
def test_an_unknown_instruction_set_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, arch: str
) -> None:
    monkeypatch.setenv("OPEN_EG3D_ARCH", arch)
    with pytest.raises(UserError, match=r"OPEN_EG3D_ARCH=.* knows no such instruction set; use "):
        builder.build()
    assert not (place / "cache").exists()
    ended = subprocess.run(
        [sys.executable, "-m", "torch_utils.ops"],
        env={**os.environ, "OPEN_EG3D_ARCH": arch},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: OPEN_EG3D_ARCH={arch}: ")


@needs_compiler
def test_progress_is_shown(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        (place / "csrc" / f"more{number}.cpp").write_text(f"int more{number}() {{ return 0; }}\n")
    builder.build()
    shown = capfd.readouterr().err
    assert "Compiling the operators: 100%" in shown
    assert "5/5" in shown  # four sources, and linking


@needs_compiler
def test_shared_headers_are_compiled_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "csrc" / builder.PREFIX).write_text("#define ANSWER 42\n")
    for name in ("first", "second"):
        (place / "csrc" / f"{name}.cpp").write_text(f"int {name}() {{ return ANSWER; }}\n")
    script = place / "counting-c++"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *c++-header*) echo . >> "{place}/count";; esac\nexec c++ "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    folder = Path(builder.build().library).parent
    assert (place / "count").read_text() == ".\n"
    assert sorted(os.listdir(folder)) == ["build.json", "build.ninja", builder.LIBRARY_NAME]


@needs_compiler
def test_a_cache_folder_that_cannot_be_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "file").write_text("")
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(place / "file"))
    with pytest.raises(
        builder.BuildError,
        match=r"cannot write to .*file/ops: .*; free some space or set OPEN_EG3D_CACHE",
    ):
        builder.build()


@needs_compiler
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_leaves_no_library(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        with open("/dev/full", "w") as file:
            file.write("x" * 10_000)

    monkeypatch.setattr(builder, "_write_ninja_file", full)
    with pytest.raises(builder.BuildError, match="No space left on device; free some space"):
        builder.build()
    assert [path.name for path in (place / "cache" / "ops").iterdir()] == ["lock"]


@needs_compiler
def test_paths_with_blanks_and_dollars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "a b $c: d" / "csrc"
    (sources / "cpu").mkdir(parents=True)
    (sources / "answer.h").write_text(SOURCE)
    (sources / "cpu" / "answer_cpu.cpp").write_text('#include "answer.h"\n')
    monkeypatch.setattr(builder, "SOURCE_DIR", sources)
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path / "the cache"))
    assert Path(builder.build().library).is_file()


@pytest.mark.parametrize(("asked", "jobs"), [("3", 3), ("0", 1), ("", None), ("many", None)])
def test_number_of_jobs(monkeypatch: pytest.MonkeyPatch, asked: str, jobs: int | None) -> None:
    monkeypatch.setenv("MAX_JOBS", asked)
    assert builder._jobs() == (min(os.cpu_count() or 1, 4) if jobs is None else jobs)


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("[1/2] c++ x\na.cpp:3:1: error: oh\na.cpp:4:1: error: no\n", "a.cpp:3:1: error: oh"),
        ("ld: undefined reference to `f'\nninja: build stopped", "ld: undefined reference to `f'"),
        (
            "g++: fatal error: Killed signal terminated program cc1plus",
            "g++: fatal error: Killed signal terminated program cc1plus",
        ),
        ("something\nelse\n", "else"),
        ("", "the compiler printed nothing"),
    ],
)
def test_first_error(log: str, line: str) -> None:
    assert builder.first_error(log) == line
