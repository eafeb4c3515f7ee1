"""Kernel launches. With CC on, each command to the GPU is sealed, and a step of training launches thousands.

`via` torch is an in-place add of one element, `via` driver the CUDA driver's own call with `args` 8-byte arguments.
- launch_pipelined: launches in a row and one wait at the end (the seed post's "issue one kernel launch").
- launch_wait: each waited for (the post's "launch + wait").
- launch_call: the host's time in the call alone.
- launch_busy: a kernel that lasts `kernel_us`, pipelined. Where the toll is the host's, work that lasts longer hides
  it; what stays above `kernel_us` is the GPU's.
"""

from __future__ import annotations

import functools

import torch

from cctrain.tolls import driver
from cctrain.tolls.device import and_wait, can_run, time_us
from cctrain.tolls.record import Facts, Reading
from cctrain.tolls.sampling import Case, Switch, measure_cases

__all__ = ["CALLS", "WAITED_CALLS", "can_run", "measure"]

_BUDGET_S = 2.5
CALLS = 300
"""Fewer than the launches that the GPU's queue takes before it makes the host wait."""
WAITED_CALLS = 100
_BUSY_US = (20, 50, 200)
_BUSY_BLOCK_US = 4000


def measure(switch: Switch | None = None) -> list[Reading]:
    """Microseconds per launch."""
    add = functools.partial(torch.zeros(1, device="cuda").add_, 1)
    cases = [
        Case("launch_pipelined", "us", {"via": "torch"}, time_us(add, CALLS)),
        Case("launch_wait", "us", {"via": "torch"}, time_us(and_wait(add), WAITED_CALLS)),
    ]
    for count in driver.ARGUMENT_COUNTS:
        conditions: Facts = {"via": "driver", "args": count}
        launch = driver.kernel(f"empty{count}", [0] * count)
        cases += [
            Case("launch_pipelined", "us", conditions, time_us(launch, CALLS)),
            Case("launch_wait", "us", conditions, time_us(and_wait(launch), WAITED_CALLS)),
            Case("launch_call", "us", conditions, time_us(launch, CALLS, with_wait=False)),
        ]
    for busy_us in _BUSY_US:
        block = time_us(driver.spin(busy_us), _BUSY_BLOCK_US // busy_us)
        cases.append(Case("launch_busy", "us", {"via": "driver", "kernel_us": busy_us}, block))
    return measure_cases(cases, _BUDGET_S, switch)
