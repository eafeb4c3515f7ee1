"""Does an asynchronous copy block its caller? The host's time in the call, behind work that still runs.

A call that returns in microseconds is queued; one that lasts as long as the work waits for the stream to drain, and
the host cannot launch what comes next. Reads of a loss are such copies, 4 bytes.
"""

from __future__ import annotations

import time

import torch

from cctrain.tolls import driver
from cctrain.tolls.device import can_run
from cctrain.tolls.record import Facts, Reading
from cctrain.tolls.sampling import Case, Switch, measure_cases

__all__ = ["WORK_US", "can_run", "measure"]

WORK_US = 1400
_BUDGET_S = 1.3
_SIZES = (4, 1 << 20)


def measure(switch: Switch | None = None) -> list[Reading]:
    """Microseconds until `copy_(non_blocking=True)` returns, behind a kernel that lasts WORK_US."""
    work = driver.spin(WORK_US)

    def case(direction: str, memory: str, num_bytes: int) -> Case:
        host = torch.ones(num_bytes // 4, pin_memory=memory == "pinned")
        device = torch.ones(num_bytes // 4, device="cuda")
        target, source = (device, host) if direction == "h2d" else (host, device)

        def issue_us() -> float:
            target.copy_(source, non_blocking=True)  # the case before left this one's code and data out of the caches
            torch.cuda.synchronize()
            work()
            begin = time.perf_counter()
            target.copy_(source, non_blocking=True)
            duration_us = (time.perf_counter() - begin) * 1e6
            torch.cuda.synchronize()
            return duration_us

        conditions: Facts = {"direction": direction, "memory": memory, "bytes": num_bytes, "work_us": WORK_US}
        return Case("copy_issue", "us", conditions, issue_us)

    kinds = [(direction, memory) for direction in ("h2d", "d2h") for memory in ("pinned", "pageable")]
    return measure_cases([case(*kind, num_bytes) for kind in kinds for num_bytes in _SIZES], _BUDGET_S, switch)
