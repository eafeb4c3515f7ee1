"""The seed post's figure: the median of the tokens/s/GPU that AutoModel itself prints, from its step 10 on.

Source: the harness of "How does NVIDIA Confidential Computing impact inference and training performance?", a regular
expression over AutoModel's log.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from cctrain.records import Seed, StepRecord

_FIRST_PRINTED_STEP = 10


def seed_figure(
    steps: Sequence[StepRecord], ours: float, world: int, data_ranks: int, version: str | None
) -> Seed | None:
    """The figure from all `steps`, warm-up included; `ours` is our mean of padded tokens/s/GPU.

    `data_ranks` counts data- and context-parallel ranks, which AutoModel's VLM recipe divides by instead of `world`.
    None where no step says what the engine printed, or none comes so late.
    """
    printed = [
        step
        for step in steps
        if step.step > _FIRST_PRINTED_STEP
        and step.engine_tokens_per_s_per_gpu
        and step.engine_tokens
        and step.step_time_s > 0
    ]  # AutoModel counts from 0: its step 10 is our 11
    if not printed or not ours:
        return None
    value = statistics.median(step.engine_tokens_per_s_per_gpu or 0.0 for step in printed)
    of_padded = sum(step.engine_tokens or 0 for step in printed) / sum(step.padded_tokens for step in printed)
    by_world = sum((step.engine_tokens_per_s_per_gpu or 0.0) * step.step_time_s for step in printed) / sum(
        (step.engine_tokens or 0) / world for step in printed
    )
    # With data_ranks < world the two divisors are at least a factor of 2 apart, clocks are not.
    divisor = world / data_ranks if by_world > 1.5 and data_ranks < world else 1.0
    same_steps = statistics.median(step.padded_tokens / step.step_time_s / world for step in printed)
    why = [f"it counts labels without their tail of padding, {of_padded:.1%} of the padded tokens"]
    if divisor != 1:
        why.append(f"it divides by {data_ranks} data-parallel ranks and not by {world} GPUs, x{divisor:g}")
    why.append(f"a median over its steps, not the total over the steady ones: {same_steps / ours - 1:+.1%}")
    why.append(f"its host clock, and the rest: {value / of_padded / divisor / same_steps - 1:+.1%}")
    return Seed(
        tokens_per_s_per_gpu=value,
        first_step=printed[0].step,
        num_steps=len(printed),
        engine_version=version,
        over_ours=value / ours,
        why="; ".join(why),
    )
