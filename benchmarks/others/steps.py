"""The steps of another library's trainer, timed by cctrain's clock, in turns plain and tolled."""

from __future__ import annotations

import os
import signal
from typing import Any

from cctrain.emulation.blocks import ALL, OFF
from cctrain.emulation.switch import TollSwitch
from cctrain.timing.device import drain
from cctrain.timing.timer import StepTimer

MODES = {OFF: "off", ALL: "tolled"}
"""What `peers.py` calls the arms."""


class Steps:
    """The ends of `num` steps after `warmup` others; a `switch` puts each under its tolls. After `hold` steps, if
    given, the process stops itself until somebody continues it."""

    def __init__(
        self, timer: StepTimer, num: int, warmup: int, switch: TollSwitch | None = None, *, hold: int | None = None
    ) -> None:
        self._timer, self._num, self._warmup, self._switch = timer, num, warmup, switch
        self._hold, self._done = hold, 0

    def begin(self) -> None:
        """The first step begins here."""
        self._timer.resume()

    def end(self) -> None:
        """A step ends here, and the next begins."""
        facts = self._switch.step_end() if self._switch else {}
        self._timer.step_end("step", arm=facts.get("arm", OFF), is_settling=facts.get("is_settling", False))
        if self._switch and self._switch.next(drain):
            self._timer.resume()
        self._done += 1
        if self._done == self._hold:
            os.kill(os.getpid(), signal.SIGSTOP)

    def times_s(self) -> dict[str, list[float]]:
        """Of the measured steps so far, by mode."""
        drain()
        rows = self._timer.finished()[self._warmup : self._warmup + self._num]
        measured = [(MODES[row["arm"]], row["step_time_s"]) for row in rows if not row["is_settling"]]
        modes = dict.fromkeys(mode for mode, _ in measured)
        return {mode: [seconds for of, seconds in measured if of == mode] for mode in modes}


def timed(owner: Any, method: str, steps: Steps) -> None:
    """Have a step end whenever that method of `owner` has run."""
    own = getattr(owner, method)

    def then_stamp(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        steps.end()
        return result

    setattr(owner, method, then_stamp)
