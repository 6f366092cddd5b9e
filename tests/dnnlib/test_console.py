"""What a person sees in the terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import sys
from typing import Any

import click
import pytest

from dnnlib.console import LONGEST_LINE, UserError, brief, fail, one_line, progress, run_cli
from tests.tiny import call


@click.command()
@click.option("--count", type=click.IntRange(1))
@click.option("--end", default="well")
def command(count: int | None, end: str) -> None:
    """Ends in the asked for way."""
    endings: dict[str, Any] = {
        "user": UserError("data x.zip is empty;\n   it must hold pictures"),
        "abort": click.Abort(),
        "interrupt": KeyboardInterrupt(),
        "usage": click.UsageError("--a and --b exclude each other"),
        "exit": click.exceptions.Exit(5),
        "bug": ZeroDivisionError("a mistake of ours"),
    }
    click.echo(f"count {count}")
    if end in endings:
        raise endings[end]


def test_success() -> None:
    ended = call(command, "--count", "3")
    assert (ended.status, ended.out, ended.err) == (0, "count 3\n", "")


def test_help_is_a_success() -> None:
    ended = call(command, "--help")
    assert ended.status == 0
    assert "--count" in ended.out


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--count", "0"), 2, ("--count", "0")),
        (("--count", "many"), 2, ("--count", "many")),
        (("--nothing",), 2, ("--nothing",)),
        (("stray",), 2, ("stray",)),
        (("--end", "usage"), 2, ("--a and --b",)),
        (("--end", "user"), 1, ("data x.zip is empty; it must hold pictures",)),
        (("--end", "abort"), 130, ("interrupted",)),
        (("--end", "interrupt"), 130, ("interrupted",)),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], status: int, words: tuple[str, ...]
) -> None:
    call(command, *arguments).assert_refused(status, *words)


def test_a_status_of_the_commands_own() -> None:
    assert call(command, "--end", "exit").status == 5


def test_mistakes_of_ours_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        call(command, "--end", "bug")


def test_a_group_without_a_command_shows_its_help() -> None:
    @click.group()
    def tools() -> None:
        """Several tools."""

    tools.add_command(command)
    ended = call(tools)
    assert ended.status == 2
    assert "Traceback" not in ended.err
    assert "Several tools" in ended.err + ended.out


def test_fail_writes_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        fail("two\nlines  and\ttabs", 7)
    assert stop.value.code == 7
    assert capsys.readouterr() == ("", "error: two lines and tabs\n")


def test_run_cli_reads_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--count", "2"])
    with pytest.raises(SystemExit) as stop:
        run_cli(command)
    assert stop.value.code == 0
    assert capsys.readouterr().out == "count 2\n"


def test_progress_passes_items_on_and_shows_speed_and_time_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(progress(iter(range(4)), "Counting", total=4, unit="sheep")) == [0, 1, 2, 3]
    shown = capsys.readouterr()
    assert shown.out == ""
    for part in ("Counting", "4/4", "sheep/s", "<"):
        assert part in shown.err


def test_progress_is_seen_where_the_terminal_tells_no_size() -> None:
    """0 x 0, as a new terminal has, and as `docker run -t` leaves it."""
    outside, inside = pty.openpty()
    with os.fdopen(outside, "rb", 0) as shown:
        with os.fdopen(inside, "w") as terminal, contextlib.redirect_stderr(terminal):
            assert list(progress([1], "Counting", total=1, unit="sheep")) == [1]
        seen = b""
        with contextlib.suppress(OSError):  # the end of what was written, which comes in pieces
            while part := shown.read(4096):
                seen += part
        assert b"Counting: 100%" in seen


def test_messages_cannot_steer_or_fill_the_terminal() -> None:
    assert one_line("a \x1b[2J\r\n\x07 b \u202e c é") == "a \\x1b[2J \\x07 b \\u202e c é"
    assert len(one_line("x" * 1_000_000)) < LONGEST_LINE + 10


def test_values_of_any_depth_are_shown_shortly() -> None:
    web: list[object] = []
    for _ in range(60):
        web = [web] * 100
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (web, deep, "x" * 1_000_000, {index: index for index in range(1000)}, 3.5, None):
        assert 0 < len(brief(value)) <= 60
    assert brief("text") == "text"
    assert brief(["a", 1]) == "['a', 1]"
