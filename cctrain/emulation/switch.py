"""A training run's tolls: which arm a step is under, switched between steps, and what each step crossed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from cctrain.emulation.arms import tolls_of
from cctrain.emulation.blocks import ALL, OFF, Slot
from cctrain.emulation.profile import Profile


class Tolls(Protocol):
    """Where tolls are paid and crossings counted: inject.c's library, or the CPU's stand-in."""

    counted_by: str

    def set_tolls(self, profile: Profile | None) -> None:
        """From now on every thread pays `profile`'s tolls, or none."""

    def read(self) -> tuple[int, ...]:
        """Counters that only grow."""

    def counted(self, words: tuple[int, ...]) -> dict[str, Any]:
        """A difference of two reads, by name."""


class TollSwitch:
    """Puts each step under its arm's tolls. The first `warmup` steps pay none; `slots` are those after them, and empty
    where crossings are only counted."""

    def __init__(self, tolls: Tolls, profile: Profile | None, slots: Sequence[Slot], warmup: int) -> None:
        self._tolls = tolls
        self._slots: list[Slot | None] = [*([None] * warmup), *slots]
        self._profiles = {slot.arm: profile and tolls_of(profile, slot.arm) for slot in slots}
        self._num_ended = 0
        self._words = tolls.read()

    def step_end(self) -> dict[str, Any]:
        """What the samples say of the step that is over on the host: its crossings, and in an emulated run its arm and
        block."""
        words = self._tolls.read()
        crossed = tuple(now - before for now, before in zip(words, self._words, strict=True))
        self._words = words
        slot = self._slot(self._num_ended)
        self._num_ended += 1
        facts: dict[str, Any] = {"crossings": self._tolls.counted(crossed)}
        if slot is None:
            return facts
        is_tolled = {OFF: False, ALL: True}.get(slot.arm)
        return facts | {"arm": slot.arm, "block": slot.block, "is_tolled": is_tolled, "is_settling": slot.is_settling}

    def next(self, drain: Callable[[], None]) -> bool:
        """Put the next step under its arm. Returns whether a block begins with it: the device was drained then, and the
        time that took is no step's."""
        before, after = self._slot(self._num_ended - 1), self._slot(self._num_ended)
        if after is None or (before is not None and before.block == after.block):
            return False
        drain()
        self._tolls.set_tolls(self._profiles[after.arm])
        self.forget()
        return True

    def forget(self) -> None:
        """What was crossed until now is no step's."""
        self._words = self._tolls.read()

    def _slot(self, index: int) -> Slot | None:
        return self._slots[index] if 0 <= index < len(self._slots) else None
