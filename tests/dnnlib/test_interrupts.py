"""Ctrl-C in a command line's first seconds, while its libraries are imported."""

from __future__ import annotations

import signal
import textwrap
import time
from pathlib import Path

import pytest

from dnnlib import interrupts
from tests.tiny import finish, start

SCRIPTS = ["train.py", "gen_samples.py", "gen_videos.py", "calc_metrics.py", "dataset_tool.py", "export.py", "viewer.py"]


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
            from dnnlib.interrupts import quit_on_interrupt
            quit_on_interrupt(__name__)
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
    interrupts.quit_on_interrupt("export")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_parent_that_ignores_ctrl_c_is_obeyed() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.quit_on_interrupt("__main__")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
