"""The loop under load counts the runs that fail."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests import under_load

TEST = """
from pathlib import Path

def test_fails_the_second_time():
    count = Path(__file__).with_name("count.txt")
    count.write_text(count.read_text() + "x" if count.exists() else "x")
    assert count.read_text() != "xx"
"""


def test_runs_that_fail_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_load.os, "cpu_count", lambda: 1)  # programs that are busy
    (tmp_path / "test_moody.py").write_text(TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    assert under_load.failing_runs(
        3, ["-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    ) == [2]
    assert [
        child for child in psutil.Process().children() if "getppid" in " ".join(child.cmdline())
    ] == []
