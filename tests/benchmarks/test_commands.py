"""Every benchmark still runs, at the smallest size it has."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.tiny import ROOT

SMALLEST = {
    "training_step": ["--steps", "1", "--resolution", "64"],
    "checkpoint_stall": ["--rounds", "1", "--no-steps"],
    "gradient_overlap": ["--rounds", "1"],
    "networks": ["--resolution", "128", "--repeats", "1", "--precision", "fp32"],
    "step_flops": [],
    "few_samples": ["--resolutions", "16", "--seeds", "1"],
    "inversion": ["--count", "1", "--steps", "1", "1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_it_runs(name: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", *SMALLEST[name]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
