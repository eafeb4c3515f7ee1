"""Which measured step pays which tolls: blocks of steps under one arm, in an order that drift does not favour.

A machine warms up and slows down over minutes; interleaving puts every arm through the same minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OFF, ALL = "off", "all"
"""The arms of an emulated run: no toll is paid, or all of the profile's."""
SETTLING_STEPS = 2
"""A block's first steps are not measured: the queue was drained before them, and the host has yet to run as far ahead
of the GPU as it does in the middle of a run, which hides tolls."""
_MEASURED_STEPS = 2
"""The fewest steps of a block that are measured."""


@dataclass(frozen=True, slots=True)
class Slot:
    """What one measured step is."""

    block: int
    """From 0, over the whole run. `block // number of arms` is the round, whose blocks are compared."""
    arm: str
    is_settling: bool


def schedule(num_steps: int, arms: Sequence[str], rounds: int) -> tuple[Slot, ...]:
    """One slot for each of `num_steps` steps: `rounds` rounds, each with one block of every arm.

    Every second round is the mirror image of the one before it, so that over the two of them all arms have the same
    mean position, and a linear drift adds the same to each. The pairs of rounds are the rows of a square in which,
    after as many rounds as there are arms (twice as many, where these are odd), every arm has followed every other one
    equally often: what a block leaves behind it then falls on all of them (Williams, Australian Journal of Scientific
    Research A 2, 1949). An odd number of rounds leaves the last without its mirror image. Blocks differ by one step at
    most.
    """
    if num_steps < fewest_steps(len(arms), rounds):
        raise ValueError(f"{num_steps} steps are too few for {rounds} rounds of {len(arms)} blocks")
    blocks = [arm for index in range(rounds) for arm in _order(arms, index)]
    begins = [index * num_steps // len(blocks) for index in range(len(blocks) + 1)]
    return tuple(
        Slot(block, arm, step - begins[block] < SETTLING_STEPS)
        for block, arm in enumerate(blocks)
        for step in range(begins[block], begins[block + 1])
    )


def _order(arms: Sequence[str], index: int) -> list[str]:
    num = len(arms)
    first = index // 2 % (num if num % 2 else num // 2)
    there_and_back = [(place + 1) // 2 if place % 2 else -place // 2 for place in range(num)]
    order = [arms[(first + step) % num] for step in there_and_back]
    return order[::-1] if index % 2 else order


def fewest_steps(num_arms: int, rounds: int, measured: int = 0) -> int:
    """The fewest steps that `schedule` takes, so that every block has steps to measure; and every arm at least
    `measured` of them, over all rounds."""
    return num_arms * rounds * (SETTLING_STEPS + max(_MEASURED_STEPS, -(-measured // rounds)))
