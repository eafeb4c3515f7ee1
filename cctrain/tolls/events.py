"""CUDA events and waits: what a program uses to order streams and to wait for its work.

- event_record, stream_wait_event: the host's time in the call.
- event_wait: record on an idle stream and wait until the event has happened.
- idle_wait: wait for a device that has nothing to do.
"""

from __future__ import annotations

import functools

import torch

from cctrain.tolls.device import can_run, time_us
from cctrain.tolls.record import Reading
from cctrain.tolls.sampling import Case, Switch, measure_cases

__all__ = ["CALLS", "can_run", "measure"]

_BUDGET_S = 1.0
CALLS = 200


def measure(switch: Switch | None = None) -> list[Reading]:
    """Microseconds per call."""
    event, other = torch.cuda.Event(), torch.cuda.Stream()
    event.record()

    def record_and_wait() -> None:
        event.record()
        event.synchronize()

    cases = [
        Case("event_record", "us", {}, time_us(event.record, CALLS, with_wait=False)),
        Case(
            "stream_wait_event", "us", {}, time_us(functools.partial(other.wait_event, event), CALLS, with_wait=False)
        ),
        Case("event_wait", "us", {}, time_us(record_and_wait, CALLS)),
        Case("idle_wait", "us", {}, time_us(torch.cuda.synchronize, CALLS)),
    ]
    return measure_cases(cases, _BUDGET_S, switch)
