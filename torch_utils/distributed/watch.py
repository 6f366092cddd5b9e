"""Whether the other processes of a group still live. A collective operation does not say: over a
network it waits for a dead one for ever.

Every process writes a beat into the group's store. Each watches the one before it, and the first
who misses its beats writes so for all to see. Who can no longer reach the store is cut off and
ends, too. Silence is counted in beats of one's own, not in seconds, so that nobody is missed after
all have been stopped for a while (Ctrl-Z, a sleeping laptop).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch.distributed as dist

BEAT_SECONDS = 1.0
SILENCE_BEATS = 40  # after which a process counts as lost; all end within a minute
LOST = "lost"


class Watch:
    """Threads that call `leave(reason)`, once, when another process of the group is lost."""

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        size: int,
        leave: Callable[[str], None],
        beat: float = BEAT_SECONDS,
        silence: int = SILENCE_BEATS,
    ) -> None:
        """Begin to beat; `store` must be a connection that nobody else uses. All processes of the
        group have a watch.
        """
        self.store, self.rank, self.size, self.leave = store, rank, size, leave
        self.beat, self.silence = beat, silence
        self._stopped = threading.Event()
        self._beats = 0
        self._unanswered = 0  # beats since the store last answered
        for work in (self._watch_others, self._watch_store):
            threading.Thread(target=work, daemon=True, name="watch").start()

    def stop(self) -> None:
        """End watching: what happens to the others does not matter any more."""
        self._stopped.set()

    def tell(self, reason: str) -> None:
        """Let the others know why this process ends before them."""
        self.stop()
        try:
            self.store.set(LOST, f"process {self.rank}: {reason}")
        except RuntimeError:
            return  # then they miss its beats

    def _watch_others(self) -> None:
        other = (self.rank - 1) % self.size
        last, silent = b"", 0
        while not self._stopped.wait(self.beat):
            try:
                value, lost = self._exchange(other)
            except RuntimeError:
                continue  # `_watch_store` counts for how long
            self._unanswered = 0
            last, silent = value, 0 if value != last else silent + 1
            if silent > self.silence and not lost:
                lost = (
                    f"process {other} has not shown for {self.silence * self.beat:.0f} s that it"
                    " lives"
                )
                self.store.set(LOST, lost)
            if lost:
                self._end(lost)

    def _exchange(self, other: int) -> tuple[bytes, str]:
        """Beat; returns the beat of `other` and what anybody has said of a loss."""
        self._beats += 1
        self.store.set(f"beat/{self.rank}", str(self._beats))
        value = self.store.get(f"beat/{other}") if self.store.check([f"beat/{other}"]) else b""
        return value, self.store.get(LOST).decode() if self.store.check([LOST]) else ""

    def _watch_store(self) -> None:
        while not self._stopped.wait(self.beat):
            self._unanswered += 1
            if self._unanswered > self.silence:
                seconds = self.silence * self.beat
                self._end(
                    f"no answer from the group's store for {seconds:.0f} s: its process or the"
                    " network is down"
                )

    def _end(self, reason: str) -> None:
        if not self._stopped.is_set():
            self.stop()
            self.leave(reason)
