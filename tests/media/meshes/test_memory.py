"""Peak memory of a mesh of 512^3 cells of the shipped model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import ROOT, environment

PROGRAM = """
from pathlib import Path
from dnnlib.console import run_cli
import gen_samples
try:
    run_cli(gen_samples.main)
finally:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    # getrusage counts what was there before this program, too
    print(int(status["VmHWM"].split()[0]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [("glb",), ("glb", "--texture", "1024"), ("obj",)], ids=" ".join
)
def test_512_cubed_stays_below_2_gb(tmp_path: Path, options: tuple[str, ...]) -> None:
    arguments = [
        "--network",
        "models/heads64.pkl",
        "--seeds",
        "0",
        "--no-images",
        "--shape-res",
        "512",
        "--outdir",
        str(tmp_path),
    ]
    command = [sys.executable, "-c", PROGRAM, *arguments, "--shapes", *options]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 2e9
