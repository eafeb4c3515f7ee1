"""What a step leaves on the device, its loss for one, read by a thread later: the training thread never waits for it
unless it is `MOST_AHEAD` steps ahead of what is known."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import torch

MOST_AHEAD = 8
"""Steps queued before the first of them is known: so much later than its step a NaN is noticed."""


class Readback:
    """Rows of `num_values` float64, one a step, from the device to `deliver`, in order, on a thread beside."""

    def __init__(self, num_values: int, device: torch.device, deliver: Callable[[int, list[float]], None]) -> None:
        self._deliver = deliver
        self._ring = torch.zeros(2 * MOST_AHEAD, num_values, dtype=torch.float64, device=device)
        self._count = torch.zeros(1, dtype=torch.int64, device=device)
        self._slot = 0
        self._free = threading.Semaphore(MOST_AHEAD)
        self._left: queue.SimpleQueue[tuple[int, int, torch.cuda.Event | None] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(device,), name="cctrain-readback", daemon=True)
        self._thread.start()

    def store(self, values: torch.Tensor) -> None:
        """Queue the storing of a step's row, float64 of shape (num_values,); may be recorded into a graph, whose every
        replay then stores the next row."""
        self._ring.index_copy_(0, self._count, values.unsqueeze(0))
        self._count.add_(1).remainder_(len(self._ring))

    def admit(self) -> None:
        """Wait until fewer than `MOST_AHEAD` steps are unknown; before a step. Raises what reading ran into."""
        self._free.acquire()
        self.check()

    def stored(self, step: int) -> None:
        """The row of `step` is queued on the current stream."""
        event = None
        if self._ring.is_cuda:
            event = torch.cuda.Event(blocking=True)
            event.record()
        self._left.put((step, self._slot, event))
        self._slot = (self._slot + 1) % len(self._ring)

    def drain(self) -> None:
        """Wait until every row queued so far is delivered. Raises what reading ran into."""
        for _ in range(MOST_AHEAD):
            self._free.acquire()
        self._free.release(MOST_AHEAD)
        self.check()

    def check(self) -> None:
        """Raise here what reading ran into."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread once it has delivered what is queued."""
        self._left.put(None)

    def _run(self, device: torch.device) -> None:
        stream = None
        if device.type == "cuda":
            torch.cuda.set_device(device)
            stream = torch.cuda.Stream()
        while (row := self._left.get()) is not None:
            step, slot, event = row
            if self._error is None:
                try:
                    self._read(step, slot, event, stream)
                except BaseException as error:  # noqa: BLE001 - a lost device, a loss that is a NaN: the training thread raises it
                    self._error = error
            self._free.release()

    def _read(self, step: int, slot: int, event: torch.cuda.Event | None, stream: torch.cuda.Stream | None) -> None:
        if event is not None:
            event.synchronize()
        with torch.cuda.stream(stream):  # of its own: the next steps are queued on the training's
            values: list[float] = self._ring[slot].tolist()
        self._deliver(step, values)
