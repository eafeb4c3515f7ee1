"""Which slots of a ring that a device fills hold a stamp of this lap, and which still one of the lap before."""

from __future__ import annotations

from collections.abc import Callable


class RingReader:
    """Reads a ring in the order in which it is filled, also the stamps that nobody asks for.

    A stamp is new when it is larger than what its slot held a lap ago, so that no slot has to be cleared on the device;
    hence every slot has to be looked at once a lap. Neighbours may be equal: a GPU's clock ticks coarsely.
    """

    def __init__(self, capacity: int, copy: Callable[[int, int], list[int]]) -> None:
        """`copy` gives the slots from one number up to, not including, another."""
        self._capacity, self._copy = capacity, copy
        self._seen = [0] * capacity
        self._next = 0

    def read(self, handles: list[int]) -> list[int | None]:
        """Stamps of ascending `handles`, each given once; None from the first on that the device has not reached.

        RuntimeError where the device may have written over one before it was read.
        """
        if not handles:
            return []
        first, end = self._next, handles[-1] + 1
        assert first <= handles[0], "a stamp is read once"
        if end - first > self._capacity:
            raise RuntimeError(f"{end - first} stamps since the last read are more than the ring's {self._capacity}")
        begin, length = first % self._capacity, end - first
        stamps = self._copy(begin, min(begin + length, self._capacity))
        if length > len(stamps):
            stamps += self._copy(0, length - len(stamps))
        for stamp in stamps:
            slot = self._next % self._capacity
            if stamp <= self._seen[slot]:
                break  # the copy may have missed this one and caught a later one
            self._seen[slot] = stamp
            self._next += 1
        return [stamps[handle - first] if handle < self._next else None for handle in handles]
