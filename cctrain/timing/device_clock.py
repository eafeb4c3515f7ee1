"""The GPU's clock: `%globaltimer` stamps in a ring, see `clock.py`."""

from __future__ import annotations

import time

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer

from cctrain.timing.ring import RingReader


@triton.jit()  # type: ignore[untyped-decorator]
def _stamp(ring, count, capacity: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(ring + tl.atomic_add(count, 1) % capacity, globaltimer())


class DeviceClock:
    """Stamps on the current CUDA device, in stream order.

    The number of the next stamp lives on the device, so that a stamp inside a CUDA graph goes to a new slot with each
    replay: `stamp` it while the graph is captured, and take the handles with `replayed` after each replay. A slot is
    reused after `capacity` marks.
    """

    name = "globaltimer"

    def __init__(self, capacity: int = 1 << 16) -> None:
        self._ring = torch.zeros(capacity, dtype=torch.int64, device="cuda")
        self._count = torch.zeros(1, dtype=torch.int64, device="cuda")
        self._reader = RingReader(capacity, self._copy)
        self._capacity = capacity
        self._next = 0
        self._stream = torch.cuda.Stream()
        self._device = torch.cuda.current_device()
        self.mark()  # compiles the kernel here and not inside the first step
        torch.cuda.synchronize()
        self.unix_offset_s = self._unix_offset_s()

    def _unix_offset_s(self) -> float:
        """Good to about half of a launch and a wait, tens of microseconds."""
        before = time.time()
        handle = self.mark()
        torch.cuda.synchronize()
        after = time.time()
        (stamp,) = self.read([handle])
        assert stamp is not None
        return (before + after) / 2 - stamp

    def mark(self) -> int:
        """Queue a stamp on the current stream."""
        self.stamp()
        return self.replayed(1)[0]

    def stamp(self) -> None:
        """Queue a stamp, or record it into the graph being captured, without counting it."""
        _stamp[(1,)](self._ring, self._count, self._capacity, num_warps=1)

    def replayed(self, num_stamps: int) -> list[int]:
        """Handles of the `num_stamps` that the replay of a graph has just queued on the current stream."""
        first = self._next
        self._next += num_stamps
        return list(range(first, self._next))

    def read(self, handles: list[int]) -> list[float | None]:
        """Seconds of each stamp (GPU clock), None for those that the device has not reached.

        Copies on a stream of its own: the training stream neither waits nor is waited for.
        """
        torch.cuda.set_device(self._device)
        with torch.cuda.stream(self._stream):
            return [None if stamp is None else stamp / 1e9 for stamp in self._reader.read(handles)]

    def _copy(self, begin: int, end: int) -> list[int]:
        slots: list[int] = self._ring[begin:end].cpu().tolist()
        return slots
