"""Which rank the others wait for.

Ranks of a synchronous step leave its collectives together, so their step times hardly differ, whoever was late. What
differs is when each comes to the end of a phase: the last one there is the one the others then wait for. A rank that is
slow inside a phase that every layer of it has collectives in (forward under FSDP, all of it under tensor parallelism)
slows all ranks alike and is not seen; its GPU's clocks may show it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import bdtrc

from cctrain.records import Straggler

_CHANCE = 0.01
_SMALLEST_COST = 0.005
"""As a fraction of the step time; less is not worth a name."""


def find_straggler(
    steps: Sequence[Sequence[Mapping[str, float]]], begins_s: Sequence[Sequence[float]] | None = None
) -> Straggler | None:
    """The straggler of `steps`, each the phases of every rank in the order in which they ran; seconds.

    `begins_s` is when each rank began each step, by one clock; without one (ranks on several machines) each rank counts
    from its own beginning. None where no rank is last more often than one in R would be by chance (binomial, at most
    1 % false alarms over all ranks when steps are independent), or where the next rank waits for it for less than 0.5 %
    of the step.
    """
    if not steps or len(steps[0]) < 2:
        return None
    num_ranks = len(steps[0])
    own = [[0.0] * num_ranks] * len(steps)
    last = [_last(ranks, begins) for ranks, begins in zip(steps, begins_s or own, strict=True)]
    rank, count = Counter(rank for rank, _, _ in last).most_common(1)[0]
    if bdtrc(count - 1, len(steps), 1 / num_ranks) * num_ranks > _CHANCE:
        return None
    cost_s = sum(late_s for last_rank, late_s, _ in last if last_rank == rank) / len(steps)
    step_time_s = sum(max(sum(phases.values()) for phases in ranks) for ranks in steps) / len(steps)
    if cost_s < _SMALLEST_COST * step_time_s:
        return None
    phase = Counter(name for last_rank, _, name in last if last_rank == rank).most_common(1)[0][0]
    return Straggler(rank=rank, share=count / len(steps), cost_s=cost_s, phase=phase)


def _last(ranks: Sequence[Mapping[str, float]], begins_s: Sequence[float]) -> tuple[int, float, str]:
    """The rank furthest behind the next at the end of any phase, by how many seconds, and the phase."""
    num_phases = min(map(len, ranks))
    spans = np.array([list(phases.values())[:num_phases] for phases in ranks])
    ends = spans.cumsum(axis=1) + np.asarray(begins_s)[:, None]
    second, first = np.partition(ends, -2, axis=0)[-2:]
    phase = int(np.argmax(first - second))
    return int(ends[:, phase].argmax()), float(first[phase] - second[phase]), list(ranks[0])[phase]
