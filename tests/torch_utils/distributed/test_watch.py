"""Processes of a group notice each other's end: by their beats, by a word of farewell, or because
the store is gone.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from tests.tiny import PATIENCE
from torch_utils.distributed.watch import Watch

pytestmark = pytest.mark.waits

BEAT, SILENCE = 0.02, 10


class Heard:
    """Keeps what a watch says."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.event = threading.Event()

    def __call__(self, reason: str) -> None:
        self.reasons.append(reason)
        self.event.set()


def watches(count: int) -> tuple[list[Watch], list[Heard], Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = dist.TCPStore("127.0.0.1", port, None, True, timeout=timedelta(seconds=2))
    heard = [Heard() for _ in range(count)]
    started = [
        Watch(store.clone(), rank, count, heard[rank], beat=BEAT, silence=SILENCE)
        for rank in range(count)
    ]
    return started, heard, store


def beats(watch: Watch, count: int) -> None:
    """Wait while `watch` beats so many times."""
    until, pause = watch._beats + count, threading.Event()
    while watch._beats < until and not watch._stopped.is_set():
        pause.wait(BEAT)


def silence(watch: Watch) -> None:
    """End a watch as a kill ends it: without a word."""
    watch._stopped.set()


def run(count: int, action: Callable[[list[Watch]], None]) -> list[Heard]:
    """What each watch says when something happens to the first; it says nothing before."""
    started, heard, store = watches(count)
    beats(started[1], 3 * SILENCE)
    assert not any(each.reasons for each in heard)
    action(started)
    for each in heard[1:]:
        assert each.event.wait(PATIENCE)
    for watch in started:
        watch.stop()
    del store
    return heard


def test_who_falls_silent_is_missed_by_all() -> None:
    heard = run(4, lambda started: silence(started[0]))
    assert [len(each.reasons) for each in heard] == [0, 1, 1, 1]
    assert all("process 0 has not shown" in each.reasons[0] for each in heard[1:])


def test_who_ends_for_a_reason_says_it() -> None:
    heard = run(3, lambda started: started[0].tell("no more pictures"))
    assert [each.reasons for each in heard] == [
        [],
        ["process 0: no more pictures"],
        ["process 0: no more pictures"],
    ]


def test_a_process_that_is_done_is_not_missed() -> None:
    started, heard, _ = watches(2)
    beats(started[1], 3)
    for watch in started:
        watch.stop()
    threading.Event().wait(3 * SILENCE * BEAT)
    assert not any(each.reasons for each in heard)


class Gone:
    """A store that does not answer any more."""

    def set(self, *_: Any) -> None:
        raise dist.DistNetworkError("cannot be reached")


def test_who_is_cut_off_ends() -> None:
    def cut(started: list[Watch]) -> None:
        started[1].store = Gone()  # type: ignore[assignment]

    heard = run(2, cut)
    assert "no answer from the group's store" in heard[1].reasons[0]


class Blocked(Gone):
    """A store whose answer never comes."""

    def set(self, *_: Any) -> None:
        threading.Event().wait()


def test_who_is_cut_off_without_an_error_ends() -> None:
    def cut(started: list[Watch]) -> None:
        started[1].store = Blocked()  # type: ignore[assignment]

    heard = run(2, cut)
    assert "no answer from the group's store" in heard[1].reasons[0]
