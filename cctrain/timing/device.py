"""The device on which this process computes: its clock, and waiting for it."""

from __future__ import annotations

import torch

from cctrain.timing.clock import HostClock, StepClock


def clock() -> StepClock:
    """The GPU's, where there is one."""
    if not torch.cuda.is_available():
        return HostClock()
    from cctrain.timing.device_clock import DeviceClock  # Triton compiles for a GPU only

    return DeviceClock()


def drain() -> None:
    """Wait until all that is queued is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
