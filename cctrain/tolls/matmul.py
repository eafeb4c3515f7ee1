"""The control: matmuls never cross a link, so their rate must not move with CC."""

from __future__ import annotations

import itertools

import torch

from cctrain.tolls.device import can_run, time_us
from cctrain.tolls.record import Reading
from cctrain.tolls.sampling import Case, measure_cases

__all__ = ["can_run", "measure"]

_BUDGET_S = 0.6
_SIZE = 8192
_CALLS = 10
_PLACES = 8
"""Sets of matrices: processes with one set each were up to 10 % apart, perhaps by where in memory it lay."""


def measure() -> list[Reading]:
    """TFLOP/s of square bf16 matmuls of random numbers (zeros would run faster)."""
    matrices = torch.randn(_PLACES, 3, _SIZE, _SIZE, dtype=torch.bfloat16, device="cuda")
    places = itertools.cycle(matrices)

    def block() -> float:
        left, right, product = next(places)
        return time_us(lambda: torch.mm(left, right, out=product), _CALLS)()

    case = Case("matmul", "TFLOP/s", {"dtype": "bfloat16", "size": _SIZE}, lambda: 2 * _SIZE**3 / block() / 1e6)
    return measure_cases([case], _BUDGET_S)
