"""Loading a checkpoint's worth of tensors from pageable memory, where each tensor lies after it was read."""

from __future__ import annotations

import torch

from cctrain.tolls.device import can_run, time_us, transfer
from cctrain.tolls.record import Reading
from cctrain.tolls.sampling import Switch, measure_cases

__all__ = ["can_run", "measure"]

_BUDGET_S = 1.2
_TENSORS = 32
_TENSOR_BYTES = 64 << 20


def measure(switch: Switch | None = None) -> list[Reading]:
    """GB/s of all tensors, one copy each, with one wait at the end."""
    host = [torch.ones(_TENSOR_BYTES, dtype=torch.uint8) for _ in range(_TENSORS)]
    device = [torch.empty(_TENSOR_BYTES, dtype=torch.uint8, device="cuda") for _ in range(_TENSORS)]

    def load() -> None:
        for target, source in zip(device, host, strict=True):
            target.copy_(source, non_blocking=True)

    case = transfer("bulk_load", {"tensors": _TENSORS}, _TENSORS * _TENSOR_BYTES, time_us(load))
    return measure_cases([case], _BUDGET_S, switch)
