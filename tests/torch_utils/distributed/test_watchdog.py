"""Processes of a group detect that another one ended or hangs: by heartbeats, by its own message,
by its progress, or because the store is gone.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from tests.tiny import PATIENCE
from torch_utils.distributed.collectives import Progress
from torch_utils.distributed.watchdog import Pace, Watchdog

pytestmark = pytest.mark.waits

BEAT, SILENCE = 0.02, 10
PACE = Pace(BEAT, SILENCE)


class Heard:
    """Keeps what a watchdog says."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.event = threading.Event()

    def __call__(self, reason: str) -> None:
        self.reasons.append(reason)
        self.event.set()


def watches(
    count: int, pace: Pace = PACE, progress: Callable[[int], Progress] = lambda _: Progress()
) -> tuple[list[Watchdog], list[Heard], Any]:
    store = dist.TCPStore("127.0.0.1", 0, None, True, timeout=timedelta(seconds=2))
    heard = [Heard() for _ in range(count)]
    started = [
        Watchdog(
            store.clone(),
            rank,
            count,
            heard[rank],
            pace,
            functools.partial(progress, rank),
        )
        for rank in range(count)
    ]
    return started, heard, store


def beats(watch: Watchdog, count: int) -> None:
    """Wait for `count` heartbeats of `watch`."""
    until, pause = watch._beats + count, threading.Event()
    while watch._beats < until and not watch._stopped.is_set():
        pause.wait(BEAT)


def silence(watch: Watchdog) -> None:
    """End a watchdog as a kill ends it: without a message."""
    watch._stopped.set()


def run(count: int, action: Callable[[list[Watchdog]], None]) -> list[Heard]:
    """What each watchdog says when something happens to the first; it says nothing before."""
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
    assert all("process 0 has sent no heartbeat" in each.reasons[0] for each in heard[1:])


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


STANDSTILL = Pace(BEAT, 10_000, patience=30 * BEAT / 60)


def test_the_process_that_the_others_wait_for_is_named() -> None:
    done = [Progress(5, 0), Progress(4, 9), Progress(5, 0)]
    started, heard, _store = watches(3, STANDSTILL, lambda rank: done[rank])
    for each in heard:
        assert each.event.wait(PATIENCE)
        (reason,) = each.reasons
        assert reason.startswith("process 1 has made no progress for 0.01 minutes; ")
    assert all(watch._stopped.is_set() for watch in started)


def test_processes_that_wait_for_each_other_are_ended() -> None:
    _, heard, _store = watches(2, STANDSTILL, lambda _: Progress(7, 0))
    for each in heard:
        assert each.event.wait(PATIENCE)
        assert each.reasons[0].startswith("every process has made no progress")


def test_a_group_in_which_one_makes_progress_goes_on() -> None:
    steps = itertools.count()
    started, heard, _store = watches(
        2, STANDSTILL, lambda rank: Progress(3 + rank, 0 if rank else next(steps))
    )
    beats(started[0], 100)
    assert not any(each.reasons for each in heard)
    for watch in started:
        watch.stop()


class Gone:
    """A store that does not answer any more."""

    def set(self, *_: Any) -> None:
        raise dist.DistNetworkError("cannot be reached")

    check = get = set


def test_who_is_cut_off_ends() -> None:
    def cut(started: list[Watchdog]) -> None:
        started[1].store = Gone()  # type: ignore[assignment]

    heard = run(2, cut)
    assert "no answer from the group's store" in heard[1].reasons[0]


class Blocked(Gone):
    """A store whose answer never comes."""

    def set(self, *_: Any) -> None:
        threading.Event().wait()


def test_who_is_cut_off_without_an_error_ends() -> None:
    def cut(started: list[Watchdog]) -> None:
        started[1].store = Blocked()  # type: ignore[assignment]

    heard = run(2, cut)
    assert "no answer from the group's store" in heard[1].reasons[0]
