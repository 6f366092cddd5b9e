"""Which path serves: forced, found out, or refused with one line. And `python -m
torch_utils.ops`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dnnlib.console import UserError
from torch_utils.ops import bias_act, builder, cuda_builder, library, self_check

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="there is no C++ compiler"
)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> library._State:
    """Nothing built or loaded so far, no path forced."""
    monkeypatch.delenv(library.VARIABLE, raising=False)
    state = library._State()
    monkeypatch.setattr(library, "_state", state)
    return state


@pytest.fixture
def broken(fresh: library._State, monkeypatch: pytest.MonkeyPatch) -> library._State:
    """A machine that cannot compile."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    return fresh


@needs_compiler
def test_where_there_is_a_compiler_the_kernels_are_built() -> None:
    with library.path("cpp"):
        assert library.use_kernels(torch.zeros(1))
    assert library.details() is not None
    for name in ("bias_act", "bias_act_backward", "bias_act_double_backward"):
        assert hasattr(torch.ops.open_eg3d, name)


@pytest.mark.usefixtures("broken")
def test_without_a_compiler_the_plain_path_serves_after_one_warning() -> None:
    x = torch.tensor([-1.0])
    with pytest.warns(
        RuntimeWarning, match=r"plain PyTorch .*no C\+\+ compiler 'no-such-compiler'; install g\+\+"
    ):
        assert not library.use_kernels(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not library.load()
        torch.testing.assert_close(bias_act(x, act="lrelu", gain=1.0), torch.tensor([-0.2]))
    assert "no-such-compiler" in (library.failure() or "")


@pytest.mark.usefixtures("broken")
def test_a_forced_path_that_cannot_be_had_is_an_error_and_no_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(library.VARIABLE, "cpp")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(UserError, match="asked for and cannot be had: there is no C"):
                library.use_kernels(torch.zeros(1))


@pytest.mark.usefixtures("broken")
def test_the_reference_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "reference")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not library.use_kernels(torch.zeros(1))
    assert library.failure() is None


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("fast", "OPEN_EG3D_OPS=fast is not one of reference, cpp, cuda"),
        ("CUDA", "OPEN_EG3D_OPS=CUDA is not one of"),
    ],
)
def test_wrong_values(monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    monkeypatch.setenv(library.VARIABLE, value)
    with pytest.raises(UserError, match=message):
        library.load()


@needs_compiler
def test_a_path_in_code_goes_before_the_variable_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1)
    monkeypatch.setenv(library.VARIABLE, "reference")
    with library.path("cpp"):
        assert library.use_kernels(x)
        with library.path("reference"):
            assert not library.use_kernels(x)
        assert library.use_kernels(x)
    assert not library.use_kernels(x)
    with pytest.raises(UserError, match="is not one of"), library.path("quick"):
        pass
    assert not library.use_kernels(x)


@needs_compiler
def test_tensors_that_kernels_do_not_know_go_the_plain_way() -> None:
    with library.path("cpp"):
        assert library.use_kernels(torch.zeros(1), torch.zeros(2, dtype=torch.bfloat16))
        assert not library.use_kernels(torch.zeros(1, dtype=torch.int64))
        assert not library.use_kernels(torch.zeros(1), torch.zeros(1, device="meta"))


def test_tracing_builds_nothing(fresh: library._State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(builder, "build", lambda: pytest.fail("a build under torch.compile"))
    assert not library.use_kernels(torch.zeros(1))
    fresh.parts["cpu"].enabled = True
    assert library.use_kernels(torch.zeros(1))


def test_a_compiled_function_follows_the_path() -> None:
    def which(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if library.use_kernels(x) else x - 1

    compiled = torch.compile(which, fullgraph=True, backend="eager")
    with library.path("reference"):
        assert compiled(torch.zeros(1)) == -1
    if shutil.which("c++"):
        with library.path("cpp"):
            assert compiled(torch.zeros(1)) == 1


def test_registrations_run_once_the_library_is_there(
    fresh: library._State, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    library.on_load(lambda: calls.append("early"))
    assert calls == []
    monkeypatch.setattr(builder, "build", lambda: builder.Built("x.so", "c++", "1", (), "2", 0.0))
    monkeypatch.setattr(torch.ops, "load_library", lambda path: calls.append(path))
    assert library.load()
    assert library.load()
    library.on_load(lambda: calls.append("late"))
    assert calls == ["x.so", "early", "late"]
    assert fresh.parts["cpu"].is_loaded
    assert not fresh.parts["cuda"].is_loaded


@pytest.mark.usefixtures("fresh")
def test_a_library_that_cannot_be_loaded_is_a_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        builder, "build", lambda: builder.Built("/no/such.so", "c++", "1", (), "2", 0.0)
    )
    with pytest.warns(RuntimeWarning, match=r"/no/such\.so"):
        assert not library.load()


class OnCuda:
    """As much of a CUDA tensor as choosing a path looks at, on a machine without a GPU."""

    device = torch.device("cuda", 0)
    dtype = torch.float32


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, cuda_library: object) -> list[str]:
    """A machine with a GPU, where building gives these libraries; returns what is then loaded, in
    order.
    """
    loaded: list[str] = []

    def build_for_cuda() -> builder.Built:
        if isinstance(cuda_library, Exception):
            raise cuda_library
        return builder.Built(str(cuda_library), "nvcc", "1", (), "2", 0.0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(library, "_gpu_checks", [])
    monkeypatch.setattr(builder, "build", lambda: builder.Built("cpu.so", "c++", "1", (), "2", 0.0))
    monkeypatch.setattr(cuda_builder, "build", build_for_cuda)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: loaded.append(path))
    return loaded


def serves_cuda() -> bool:
    return library.use_kernels(OnCuda())  # type: ignore[arg-type]


def test_cuda_tensors_get_their_own_library_after_the_one_with_the_schemas(
    fresh: library._State, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = pretend_gpu(monkeypatch, "cuda.so")
    library.on_load(lambda: loaded.append("registrations"))
    assert library.load()
    assert loaded == ["cpu.so", "registrations"]  # nobody waits for nvcc who has no tensors there
    assert serves_cuda()
    assert serves_cuda()
    assert loaded == ["cpu.so", "registrations", "cuda.so"]
    assert fresh.parts["cuda"].is_loaded
    assert (built := library.details("cuda")) is not None
    assert built.library == "cuda.so"
    assert not library.use_kernels(OnCuda(), torch.zeros(1))  # type: ignore[arg-type]


@pytest.mark.usefixtures("fresh")
def test_without_cuda_kernels_cuda_tensors_go_the_plain_way_after_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_gpu(monkeypatch, builder.BuildError("there is no nvcc; install the CUDA toolkit"))
    with pytest.warns(
        RuntimeWarning,
        match="plain PyTorch operators serve on CUDA, which are slower: there is no nvcc; install",
    ):
        assert not serves_cuda()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not serves_cuda()
        assert library.use_kernels(torch.zeros(1))
    assert library.failure() is None
    assert "no nvcc" in (library.failure("cuda") or "")
    monkeypatch.setenv(library.VARIABLE, "cuda")
    with pytest.raises(
        UserError, match="the CUDA operators were asked for and cannot be had: there is no nvcc"
    ):
        serves_cuda()
    assert library.use_kernels(torch.zeros(1))


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("path", "expected"), [("reference", False), ("cpp", False), ("cuda", True)]
)
def test_which_forced_paths_serve_cuda_tensors(
    monkeypatch: pytest.MonkeyPatch, path: str, expected: bool
) -> None:
    pretend_gpu(monkeypatch, "cuda.so")
    with library.path(path):
        assert serves_cuda() is expected
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert serves_cuda() is expected
    assert not serves_cuda()  # nothing was enabled before


WRONG, RIGHT = (
    library.SelfCheck("a check", torch.full((2,), x), torch.ones(2), 0.1) for x in (3.0, 1.0)
)


@pytest.mark.usefixtures("fresh")
def test_a_gpu_whose_kernels_are_wrong_or_that_is_too_old_disables_itself_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of three GPUs the first is fine, the second computes nonsense, the third is of 2014."""
    seen = list[int]()
    pretend_gpu(monkeypatch, tmp_path / "cuda.so")
    monkeypatch.setattr(library, "_gpu_checks", [self_check.problem])
    flags = tuple(cuda_builder.architecture_flags(("75", "90")))
    built = builder.Built(str(tmp_path / "cuda.so"), "nvcc", "1", flags, "2", 0.0)
    monkeypatch.setattr(cuda_builder, "build", lambda: built)
    majors = {0: 9, 1: 8, 2: 5}
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda i: SimpleNamespace(name=f"Model {i}", major=majors[i], minor=0),
    )

    def checks(device: torch.device) -> list[tuple[str, library.SelfCheck]]:
        seen.append(device.index)
        return [("bias_act", WRONG if device.index == 1 else RIGHT)]

    monkeypatch.setattr(self_check, "checks", checks)
    monkeypatch.setattr(cuda_builder, "runs_on", lambda _, capability: capability[0] > 5)

    def serves(gpu: int) -> bool:
        tensor = SimpleNamespace(device=torch.device("cuda", gpu), dtype=torch.float32)
        return library.use_kernels(tensor)  # type: ignore[arg-type]

    assert serves(0)
    with pytest.warns(RuntimeWarning, match=r"on GPU 1, .*a check differs from its reference by 2"):
        assert not serves(1)
    with pytest.warns(RuntimeWarning, match=r"Model 2 is of compute capability 5\.0, older"):
        assert not serves(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [serves(gpu) for gpu in range(3)] == [True, False, False]
    assert seen == [0, 1]
    library._state.gpus.clear()
    assert serves(0)
    assert seen == [0, 1]  # remembered beside the library; what was wrong is looked at again
    monkeypatch.setenv(library.VARIABLE, "cuda")
    with pytest.raises(UserError, match="cannot serve: a check differs"):
        serves(1)


@pytest.mark.usefixtures("fresh")
def test_a_kernel_that_the_driver_refuses_is_a_mismatch(monkeypatch: pytest.MonkeyPatch) -> None:
    def checks(_: torch.device) -> Iterator[tuple[str, library.SelfCheck]]:
        yield "upfirdn2d", RIGHT
        raise RuntimeError("CUDA kernel: invalid argument\nmore")

    monkeypatch.setattr(self_check, "checks", checks)
    found = self_check.first_mismatch(torch.device("cuda", 0))
    assert found == "an operator fails (CUDA kernel: invalid argument)"


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((7, 0), False), ((7, 5), True), ((8, 0), False), ((8, 6), True), ((8, 9), True),
     ((9, 0), True), ((12, 1), True)],
)  # fmt: skip
def test_gpus_that_machine_code_and_ptx_run_on(capability: tuple[int, int], runs: bool) -> None:
    flags = cuda_builder.architecture_flags(("75", "86", "90"))
    assert cuda_builder.runs_on(flags, capability) is runs


@pytest.mark.usefixtures("fresh")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_kernels_asked_for_without_a_gpu() -> None:
    with (
        pytest.raises(
            UserError,
            match="the CUDA operators were asked for and cannot be had: there is no CUDA device",
        ),
        library.path("cuda"),
    ):
        pass


def test_error_of_a_check() -> None:
    ones = torch.ones(2, 3)

    def error(result: torch.Tensor, expected: torch.Tensor) -> float:
        return library.SelfCheck("x", result, expected, 0.1).error

    assert error(ones * 2, ones * 4) == 0.5
    assert error(ones[:0], ones[:0]) == 0
    for other in (ones * math.nan, ones.double(), ones[:1]):
        assert error(other, ones) == math.inf


def run_report(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = (
        [sys.executable, *arguments]
        if arguments and arguments[0] == "-c"
        else [sys.executable, "-m", "torch_utils.ops", *arguments]
    )
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )


@needs_compiler
def test_report() -> None:
    run = run_report("--json", OPEN_EG3D_OPS="cpp")
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert os.path.isfile(report["build"]["library"])
    assert report["operators"]["bias_act"]["checks"] >= 9 * 4 * 2
    assert report["operators"]["bias_act"]["worst_of_tolerance"] <= 1
    assert report["mismatches"] == []


WRONG_CHECKS = """
import sys, torch
from torch_utils.ops import __main__ as report, library
check = library.SelfCheck("a check", torch.ones(2), torch.zeros(2) + 2, 0.1)
report.self_check.checks = lambda device: [("bias_act", check)]
report.run_cli(report.main)
"""


@needs_compiler
def test_report_of_a_mismatch() -> None:
    run = run_report("-c", WRONG_CHECKS, OPEN_EG3D_OPS="cpp")
    assert run.returncode == 1
    assert "MISMATCH  a check: error 0.5, tolerance 0.1" in run.stdout
    assert run.stderr.startswith("error: 1 checks differ")


def test_report_without_kernels() -> None:
    run = run_report(OPEN_EG3D_OPS="reference")
    assert run.returncode == 1
    assert "not in use" in run.stderr
    run = run_report(CXX="no-such-compiler", OPEN_EG3D_OPS="cpp")
    assert run.returncode == 1
    assert run.stderr.startswith("error: the compiled operators were asked for and cannot be had")
    assert "Traceback" not in run.stderr
