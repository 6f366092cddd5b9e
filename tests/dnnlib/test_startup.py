"""A command line's first seconds, while its libraries are imported: Ctrl-C, and how threads are to
wait.
"""

from __future__ import annotations

import os
import signal
import textwrap
import time
from pathlib import Path

import pytest

from dnnlib import startup
from tests.tiny import finish, start

pytestmark = pytest.mark.waits

SCRIPTS = [
    "train.py",
    "gen_samples.py",
    "gen_videos.py",
    "calc_metrics.py",
    "dataset_tool.py",
    "export.py",
    "invert.py",
    "viewer.py",
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_while_libraries_are_imported(script: str, tmp_path: Path) -> None:
    """The first library that is imported is replaced by one that never ends."""
    begun = tmp_path / "begun"
    slow = f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(300)\n"
    (tmp_path / "click.py").write_text(slow)
    process = start(script, "--help", PYTHONPATH=str(tmp_path))
    while not begun.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    finish(process).assert_refused(130, "interrupted")


def test_ctrl_c_while_the_command_runs(tmp_path: Path) -> None:
    """From `run_cli` on, Ctrl-C is a KeyboardInterrupt again, which commands may handle."""
    script = tmp_path / "command.py"
    script.write_text(
        textwrap.dedent("""
            from dnnlib.startup import prepare_program
            prepare_program(__name__)
            import os, signal, click
            from dnnlib.console import run_cli

            @click.command()
            def main():
                try:
                    os.kill(os.getpid(), signal.SIGINT)
                except KeyboardInterrupt:
                    print("handled")

            run_cli(main)
        """)
    )
    ended = finish(start(str(script), PYTHONPATH=str(Path(__file__).parents[2])))
    assert (ended.status, ended.out, ended.err) == (0, "handled\n", "")


def test_importing_a_command_line_changes_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    startup.prepare_program("export")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_parent_that_ignores_ctrl_c_is_obeyed() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        startup.prepare_program("__main__")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, startup.SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=str,
)
def test_threads_wait_as_the_environment_says(
    given: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in startup.OPENMP_WAITING:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    startup.prepare_program("imported")
    assert os.environ.get("GOMP_SPINCOUNT") == given.get("GOMP_SPINCOUNT")
    if not given:
        monkeypatch.setenv("GOMP_SPINCOUNT", "removed after the test")
        monkeypatch.delenv("GOMP_SPINCOUNT")
    startup.prepare_program("__main__")
    assert os.environ.get("GOMP_SPINCOUNT") == spins
