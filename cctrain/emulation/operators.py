"""The stand-in for a GPU's tolls on a CPU: every operator of PyTorch pays the launch toll.

So that the whole flow runs where there is no GPU, labelled as what it is: its figures say nothing about any machine.
"""

from __future__ import annotations

import time
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from cctrain.emulation.arms import OPERATORS
from cctrain.emulation.profile import Profile


class OperatorTolls(TorchDispatchMode):
    """Counts operators, plain steps' as well, so that only the toll tells the arms apart."""

    counted_by = OPERATORS

    def __init__(self) -> None:
        super().__init__()
        self._toll_ns = 0
        self._operators = self._injected_ns = 0

    def set_tolls(self, profile: Profile | None) -> None:
        """From now on every operator pays `profile`'s launch toll, or none."""
        self._toll_ns = int(profile.number("launch_us") * 1e3) if profile else 0

    def read(self) -> tuple[int, ...]:
        """Operators, and nanoseconds injected."""
        return self._operators, self._injected_ns

    def counted(self, words: tuple[int, ...]) -> dict[str, Any]:
        """A difference of two reads, by name."""
        operators, injected_ns = words
        return {"operators": operators, "injected_s": {"launch": injected_ns / 1e9}}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._operators += 1
        if self._toll_ns:
            begin = time.perf_counter_ns()
            while (now := time.perf_counter_ns()) - begin < self._toll_ns:
                pass
            self._injected_ns += now - begin
        return result
