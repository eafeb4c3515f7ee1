"""A few lengths for batches of many: each has a graph of its own, and padding up to the next is work for nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence

MOST_LENGTHS = 4
"""Graphs of one run: each takes seconds to capture and compile."""
_MULTIPLE = 32
"""A bucket's length is one of these, as matrix units like it."""
_MICRO_BATCHES = 512


def bucket_lengths(lengths: Sequence[int], rows: int) -> tuple[int, ...]:
    """The lengths to pad micro-batches of `rows` samples to, rising, at most `MOST_LENGTHS`.

    `lengths` are those of samples of the data. Micro-batches are drawn from them, whose own length is that of their
    longest sample, and the lengths are those for which their padding is least. Samples that are all of one length give
    that one.
    """
    if len(set(lengths)) == 1:
        return (lengths[0],)
    draw = random.Random(0)  # the same buckets on every rank, and in every run over the same data
    longest = sorted(max(draw.choices(lengths, k=rows)) for _ in range(_MICRO_BATCHES))
    longest[-1] = max(lengths)
    return _least_padding([-(-length // _MULTIPLE) * _MULTIPLE for length in longest])


def _least_padding(longest: Sequence[int]) -> tuple[int, ...]:
    """Of rising micro-batch lengths, the upper ends of the groups that pad least: exact, by dynamic programming."""
    ends = sorted(set(longest))
    up_to = [sum(1 for length in longest if length <= end) for end in ends]
    best: dict[int, tuple[int, tuple[int, ...]]] = {-1: (0, ())}  # by last group's end: tokens computed, the lengths
    answer: tuple[int, tuple[int, ...]] | None = None
    for _ in range(MOST_LENGTHS):
        after: dict[int, tuple[int, tuple[int, ...]]] = {}
        for last, (tokens, chosen) in best.items():
            before = up_to[last] if last >= 0 else 0
            for index in range(last + 1, len(ends)):
                total = tokens + ends[index] * (up_to[index] - before)
                if index not in after or total < after[index][0]:
                    after[index] = (total, (*chosen, ends[index]))
        best = after
        whole = best.get(len(ends) - 1)
        if whole and (answer is None or whole[0] < answer[0]):
            answer = whole
    assert answer is not None  # one group of all is always allowed
    return answer[1]


def next_length(length: int, lengths: Sequence[int]) -> int:
    """The bucket of a micro-batch, or its own length where it is longer than all of them."""
    return min((bucket for bucket in lengths if bucket >= length), default=length)
