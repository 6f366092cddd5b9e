"""Keeping freed memory: fewer page faults, the same results."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROBE = """
import resource, sys, torch
from torch_utils.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
x = torch.zeros(4 << 20)
x.clone()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    x.clone()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> tuple[str, int]:
    run = subprocess.run([sys.executable, "-c", PROBE, mode], capture_output=True, text=True, check=True)
    kept, faults = run.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_buffers_are_used_again() -> None:
    kept, few = page_faults("keep")
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    _, many = page_faults("plain")
    assert few < many / 10
