"""The control: matmuls never cross a link, so their rate must not move with CC.

In bursts with pauses between them: back to back they reach the power limit within a second, and the rate then follows
heat (on an H200 670 TFLOP/s after a second at 685 W, where bursts kept full clocks and 765 to 783:
docs/evidence/tolls/matmul_bursts.txt). Under tolls a burst has a launch and a wait of them: under 1 % of it.
"""

from __future__ import annotations

import itertools
import time

import torch

from cctrain.tolls.device import can_run, time_us
from cctrain.tolls.record import Reading
from cctrain.tolls.sampling import Case, Switch, measure_cases

__all__ = ["PLACES", "can_run", "measure"]

_BUDGET_S = 1.2
_SIZE = 8192
_CALLS, _PAUSE_S = 10, 0.05
PLACES = 7
"""Sets of matrices: processes with one set each were up to 10 % apart, perhaps by where in memory it lay. An odd
number: of an even one, blocks with and without tolls in turns would each come to half."""


def measure(switch: Switch | None = None) -> list[Reading]:
    """TFLOP/s of square bf16 matmuls of random numbers (zeros would run faster)."""
    matrices = torch.randn(PLACES, 3, _SIZE, _SIZE, dtype=torch.bfloat16, device="cuda")
    places = itertools.cycle(matrices)

    def block() -> float:
        left, right, product = next(places)
        time.sleep(_PAUSE_S)
        torch.mm(left, right, out=product)  # the first after a pause is slower
        return time_us(lambda: torch.mm(left, right, out=product), _CALLS)()

    case = Case("matmul", "TFLOP/s", {"dtype": "bfloat16", "size": _SIZE}, lambda: 2 * _SIZE**3 / block() / 1e6)
    return measure_cases([case], _BUDGET_S, switch)
