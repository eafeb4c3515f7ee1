"""Clocks that a training loop can stamp without waiting for the device.

On a GPU a one-thread kernel writes `%globaltimer` (nanoseconds, the GPU's own clock) into a ring in device memory, in
stream order: it says when the device got there, not when the host asked. Event timing (`cudaEventElapsedTime`) is not
used because it is unreliable with confidential computing on. On CPU the host clock does.
"""

from __future__ import annotations

import time
from typing import Protocol


class StepClock(Protocol):
    """Stamps now, answers later."""

    name: str
    unix_offset_s: float
    """Unix time minus this clock's, read once at the start: puts the stamps of several ranks on one axis."""

    def mark(self) -> int:
        """Queue a stamp and return its handle; never waits for the device."""

    def stamp(self) -> None:
        """Record a stamp into the CUDA graph being captured."""

    def replayed(self, num_stamps: int) -> list[int]:
        """Handles of the stamps in a graph that was just queued."""

    def read(self, handles: list[int]) -> list[float | None]:
        """Seconds of each stamp; None for one that the device has not reached yet. Not for the hot path.

        Handles ascend, also from one call to the next, which is asserted: what was passed over is not kept.
        """


class HostClock:
    """`time.perf_counter`, for devices whose work the host waits for anyway."""

    name = "host"

    def __init__(self) -> None:
        self._stamps: dict[int, float] = {}
        self._first, self._next = 0, 0
        self.unix_offset_s = time.time() - time.perf_counter()

    def mark(self) -> int:
        """Stamp the host's time."""
        handle = self._next
        self._stamps[handle] = time.perf_counter()
        self._next += 1
        return handle

    def stamp(self) -> None:
        """Never: a graph is of a GPU."""
        raise NotImplementedError

    def replayed(self, num_stamps: int) -> list[int]:
        """Never: a graph is of a GPU."""
        raise NotImplementedError

    def read(self, handles: list[int]) -> list[float | None]:
        """Seconds of each stamp, always known."""
        assert not handles or self._first <= handles[0], "a stamp is read once"
        stamps: list[float | None] = [self._stamps[handle] for handle in handles]
        while handles and self._first <= handles[-1]:
            del self._stamps[self._first]
            self._first += 1
        return stamps
