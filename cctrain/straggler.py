"""Which rank the others wait for.

Ranks of a synchronous step leave its collectives together, so their step times hardly differ, whoever was late. What
differs is when each comes to the end of a phase: the last one there is the one the others then wait for. A rank that is
slow inside a phase that every layer of it has collectives in (forward under FSDP, all of it under tensor parallelism)
slows all ranks alike and is not seen; its GPU's clocks may show it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing
from scipy.special import bdtrc

from cctrain.records import Straggler

_CHANCE = 0.01
_SMALLEST_COST = 0.005
"""As a fraction of the step time; less is not worth a name."""


@dataclass(frozen=True, slots=True)
class Last:
    """The rank furthest behind the next at the end of any phase of one step."""

    rank: int
    late_s: float
    phase: str
    step_time_s: float
    """Of the slowest rank, all its phases together."""


def last_rank(
    phases: Sequence[str], spans_s: np.typing.NDArray[np.float64], begins_s: Sequence[float] | None = None
) -> Last | None:
    """Of one step, from the spans of its `phases` in the order in which they ran, (ranks, phases); seconds. None below
    two ranks, and for a pipeline, whose stages end their phases one after the other, whoever is slow.

    `begins_s` is when each rank began the step, by one clock; without one (ranks on several machines) each rank counts
    from its own beginning.
    """
    if len(spans_s) < 2 or not spans_s.size or "forward_backward" in phases:
        return None
    ends = spans_s.cumsum(axis=1)
    step_time_s = float(ends[:, -1].max())
    if begins_s is not None:
        ends += np.asarray(begins_s)[:, None]
    second, first = np.partition(ends, -2, axis=0)[-2:]
    phase = int(np.argmax(first - second))
    late_s = float(first[phase] - second[phase])
    return Last(int(ends[:, phase].argmax()), late_s, phases[phase], step_time_s)


def find_straggler(lasts: Sequence[Last], num_ranks: int) -> Straggler | None:
    """The straggler of steps that had these `lasts`.

    None where no rank is last more often than one in R would be by chance (binomial, at most 1 % false alarms over all
    ranks when steps are independent), or where the next rank waits for it for less than 0.5 % of the step.
    """
    if not lasts:
        return None
    rank, count = Counter(last.rank for last in lasts).most_common(1)[0]
    if bdtrc(count - 1, len(lasts), 1 / num_ranks) * num_ranks > _CHANCE:
        return None
    cost_s = sum(last.late_s for last in lasts if last.rank == rank) / len(lasts)
    step_time_s = sum(last.step_time_s for last in lasts) / len(lasts)
    if cost_s < _SMALLEST_COST * step_time_s:
        return None
    phase = Counter(last.phase for last in lasts if last.rank == rank).most_common(1)[0][0]
    return Straggler(rank=rank, share=count / len(lasts), cost_s=cost_s, phase=phase)
