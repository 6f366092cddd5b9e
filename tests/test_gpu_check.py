"""python -m benchmarks.gpu_check: each part passes, fails or says why it was skipped, and the
report tells all of it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu_check, gpu_step
from dnnlib.console import UserError

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def run_check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def dry_report(dest: Path, *parts: str) -> dict[str, dict[str, Any]]:
    """What the report says of these parts."""
    run = run_check("--dry", "--dest", dest, *(word for part in parts for word in ("--only", part)))
    assert run.returncode == 0, run.stdout + run.stderr
    assert "What to do with" in run.stdout
    report = json.loads(dest.read_text())
    assert report["dry"] is True
    assert report["machine"]["torch"] == torch.__version__
    assert set(report["parts"]) == set(parts)
    return report["parts"]


@without_gpu
def test_a_dry_run_exercises_what_needs_no_gpu(tmp_path: Path) -> None:
    names = ("correctness", "operators", "frame", "step")
    parts = dry_report(tmp_path / "report.json", "tests", *names)
    assert parts["tests"] | {"seconds": 0} == {
        "status": "skipped",
        "seconds": 0,
        "reason": "there is no CUDA device",
        "figures": {},
    }
    assert {parts[name]["status"] for name in names} == {"passed"}
    lrelu = parts["operators"]["figures"]["filtered_lrelu"]
    assert lrelu["cpp both"] > 0
    assert lrelu["share of the memory's rate"] > 0
    assert parts["frame"]["figures"]["frames a second"] > 0
    assert set(parts["step"]["figures"]) == {"fp32", "tf32", "bf16", "fp16"}
    for figures in parts["step"]["figures"].values():
        assert figures["kimg an hour"] > 0
        assert figures["skipped updates"] == 0  # else the time is that of steps without numbers
    errors = parts["correctness"]["figures"]
    assert all(
        f"{operator}, {dtype}" in errors
        for operator in parts["operators"]["figures"]
        for dtype in ("float32", "float16", "bfloat16")
    )
    assert "rendering" in errors
    shown = (tmp_path / "report.html").read_text()
    for words in (
        "dry run",
        "bf16: kimg an hour",
        "there is no CUDA device",
        "upfirdn2d up, float16",
    ):
        assert words in shown


def test_waits_of_the_profiler_itself_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[str]()

    @contextlib.contextmanager
    def profile(**_: Any) -> Iterator[Any]:
        seen.clear()
        yield SimpleNamespace(
            key_averages=lambda: [SimpleNamespace(key=name, count=1) for name in seen]
        )
        seen.append("cudaDeviceSynchronize")

    monkeypatch.setattr(gpu_step, "profile", profile)
    assert gpu_step.waits(lambda: None) == 0
    assert gpu_step.waits(lambda: seen.extend(["cudaStreamSynchronize", "cudaLaunchKernel"])) == 1


def test_an_operator_that_is_wrong_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = gpu_check.Machine(True)
    cases = gpu_check.operator_cases(machine, torch.float32)
    function, inputs = cases["upfirdn2d blur"]
    calls = itertools.count()  # the compiled path is asked first
    wrong = {"blur": (lambda x: function(x) * (1.001 - 0.001 * (next(calls) % 2)), inputs)}
    monkeypatch.setattr(gpu_check, "operator_cases", lambda *_: wrong)
    with pytest.raises(UserError, match="not as their references: blur, float32"):
        gpu_check.correctness(machine)


@without_gpu
@pytest.mark.slow
def test_a_dry_run_of_the_long_parts(tmp_path: Path) -> None:
    parts = dry_report(tmp_path / "report.json", "build", "two_gpus", "training")
    assert parts["build"]["status"] == "passed" or "no nvcc" in parts["build"]["reason"]
    assert {parts[name]["status"] for name in ("two_gpus", "training")} == {"passed"}
    assert parts["two_gpus"]["figures"]["largest_difference"] < 1e-4
    assert parts["training"]["figures"]["last_tick"]


@without_gpu
def test_without_a_gpu_it_says_what_can_be_done(tmp_path: Path) -> None:
    run = run_check("--dest", tmp_path / "report.json")
    assert run.returncode == 1
    assert run.stderr == "error: there is no CUDA device; --dry runs what can be run without one\n"
    assert not (tmp_path / "report.json").exists()


def test_a_part_that_fails_keeps_no_other_from_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_machine: gpu_check.Machine) -> dict[str, object]:
        raise UserError("it broke\nbadly")

    def missing(_machine: gpu_check.Machine) -> dict[str, object]:
        raise gpu_check.Skipped("nothing there")

    monkeypatch.setattr(gpu_check, "PARTS", {"a": broken, "b": missing, "c": lambda _: {"x": 1}})
    parts = {name: gpu_check.run_part(name, gpu_check.Machine(True)) for name in "abc"}
    assert (parts["a"].status, parts["a"].reason) == ("failed", "UserError: it broke badly")
    assert (parts["b"].status, parts["b"].reason) == ("skipped", "nothing there")
    assert (parts["c"].status, parts["c"].figures) == ("passed", {"x": 1})
