"""Detects processes of a group that ended or hang. A collective operation does not: over a network
it waits forever for a process that died, and always for one that hangs.

Every process writes a heartbeat into the group's store. Each reads that of the process before it,
and the first to miss it writes so for all to see; a process that can no longer reach the store
ends, too. A heartbeat carries the process's progress: a group in which nobody makes any for
`patience` minutes ends as well, and names the process that the others wait for.

Time is counted in a process's own heartbeats, not in seconds, so that no process is missed after
all of them were stopped for a while (Ctrl-Z, a sleeping laptop).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist

from torch_utils.distributed.collectives import Progress, progress_so_far

BEAT_SECONDS = 1.0
SILENCE_BEATS = 40  # after which a process counts as lost; all end within a minute
PATIENCE_MINUTES = 60.0  # longer than any step that shows no progress: compiling, a large download
CHECKS = 10  # of the group's progress within the time of patience
LOST = "lost"
NO_PROGRESS = "has made no progress"


@dataclass(frozen=True)
class Pace:
    """Seconds between heartbeats, heartbeats after which a process is missed, and minutes after
    which a group without progress ends.
    """

    beat: float = BEAT_SECONDS
    silence: int = SILENCE_BEATS
    patience: float = PATIENCE_MINUTES


class Watchdog:
    """Threads that call `leave(reason)`, once, when another process of the group is lost, or when
    the group makes no progress.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        size: int,
        leave: Callable[[str], None],
        pace: Pace = Pace(),
        progress: Callable[[], Progress] = progress_so_far,
    ) -> None:
        """Start the threads. `store` must be a connection that nothing else uses; every process of
        the group has a watchdog.
        """
        self.store, self.rank, self.size, self.leave = store, rank, size, leave
        self.pace, self.progress = pace, progress
        self._stopped = threading.Event()
        self._beats = 0
        self._unanswered = 0  # beats since the store last answered
        self._checked: list[Progress] = []  # what all processes had done at the last check
        self._idle_checks = 0
        for work in (self._watch_others, self._watch_store):
            threading.Thread(target=work, daemon=True, name="watchdog").start()

    def stop(self) -> None:
        """Stop: what happens to the others does not matter any more."""
        self._stopped.set()

    def tell(self, reason: str) -> None:
        """Tell the others why this process ends before them."""
        self.stop()
        try:
            self.store.set(LOST, f"process {self.rank}: {reason}")
        except RuntimeError:
            return  # then they miss its heartbeats

    def _watch_others(self) -> None:
        other = (self.rank - 1) % self.size
        last, silent = "", 0
        while not self._stopped.wait(self.pace.beat):
            try:
                value, lost = self._exchange(other)
                self._unanswered = 0
                last, silent = value, 0 if value != last else silent + 1
                lost = lost or self._missed(other, silent) or self._standstill()
            except RuntimeError:
                continue  # `_watch_store` counts for how long
            if lost:
                self._end(lost)

    def _exchange(self, other: int) -> tuple[str, str]:
        """Beat; returns the heartbeat of `other` and what anybody has said of a loss."""
        self._beats += 1
        done = self.progress()
        self.store.set(f"beat/{self.rank}", f"{self._beats} {done.collectives} {done.steps}")
        return self._heartbeat(other), self._read(LOST)

    def _read(self, key: str) -> str:
        return self.store.get(key).decode() if self.store.check([key]) else ""

    def _heartbeat(self, process: int) -> str:
        return self._read(f"beat/{process}")

    def _missed(self, other: int, silent: int) -> str:
        if silent <= self.pace.silence:
            return ""
        seconds = self.pace.silence * self.pace.beat
        return self._say(f"process {other} has sent no heartbeat for {seconds:.0f} s")

    def _standstill(self) -> str:
        """Which process the others wait for, where none has made progress for long."""
        every = max(round(self.pace.patience * 60 / self.pace.beat / CHECKS), 1)
        if self._beats % every:
            return ""
        done = [
            Progress(*(int(count) for count in self._heartbeat(process).split()[1:]))
            for process in range(self.size)
        ]
        self._idle_checks = self._idle_checks + 1 if done == self._checked else 0
        self._checked = done
        if self._idle_checks < CHECKS:
            return ""
        fewest = min(each.collectives for each in done)
        behind = [str(i) for i, each in enumerate(done) if each.collectives == fewest]
        who = f"process {', '.join(behind)}" if len(behind) < self.size else "every process"
        return self._say(
            f"{who} {NO_PROGRESS} for {self.pace.patience:g} minutes; look at what it waits for (a"
            " disk, the network, a GPU), or set OPEN_EG3D_TIMEOUT to more minutes if its work takes"
            " longer"
        )

    def _say(self, lost: str) -> str:
        self.store.set(LOST, lost)
        return lost

    def _watch_store(self) -> None:
        while not self._stopped.wait(self.pace.beat):
            self._unanswered += 1
            if self._unanswered > self.pace.silence:
                seconds = self.pace.silence * self.pace.beat
                self._end(
                    f"no answer from the group's store for {seconds:.0f} s: its process or the"
                    " network is down"
                )

    def _end(self, reason: str) -> None:
        if not self._stopped.is_set():
            self.stop()
            self.leave(reason)
