"""python -m benchmarks.gpu_check: each part passes, fails or says why it was skipped, and the
report tells all of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_check
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
    parts = dry_report(tmp_path / "report.json", "tests", "operators", "frame")
    assert parts["tests"] | {"seconds": 0} == {
        "status": "skipped",
        "seconds": 0,
        "reason": "there is no CUDA device",
        "figures": {},
    }
    assert {parts[name]["status"] for name in ("operators", "frame")} == {"passed"}
    assert parts["operators"]["figures"]["filtered_lrelu"]["cpp both"] > 0


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
