"""The blocks of an emulated run: which measured step is under which arm."""

import statistics
from collections import Counter
from itertools import groupby, pairwise, permutations

import pytest

from cctrain.emulation.blocks import ALL, OFF, SETTLING_STEPS, fewest_steps, schedule


def blocks(num_steps, arms, rounds):
    """Each block's arm and its slots."""
    slots = schedule(num_steps, arms, rounds)
    return [(group[0].arm, group) for _, each in groupby(slots, key=lambda slot: slot.block) if (group := list(each))]


def test_two_arms_alternate_in_mirrored_pairs():
    assert [arm for arm, _ in blocks(32, (OFF, ALL), 4)] == [OFF, ALL, ALL, OFF, OFF, ALL, ALL, OFF]


@pytest.mark.parametrize(("num_arms", "rounds"), [(2, 8), (3, 6), (7, 4), (16, 16)])
def test_over_two_rounds_every_arm_has_the_same_mean_position(num_arms, rounds):
    arms = [f"arm {index}" for index in range(num_arms)]
    order = [arm for arm, _ in blocks(fewest_steps(num_arms, rounds), arms, rounds)]
    for begin in range(0, len(order), 2 * num_arms):
        pair = order[begin : begin + 2 * num_arms]
        assert sorted(pair[:num_arms]) == sorted(pair[num_arms:]) == sorted(arms)
        means = {statistics.fmean(i for i, name in enumerate(pair) if name == arm) for arm in arms}
        assert len(means) == 1


@pytest.mark.parametrize(("num_arms", "rounds", "times"), [(2, 2, 1), (4, 4, 1), (10, 10, 1), (10, 20, 2), (3, 6, 2)])
def test_after_as_many_rounds_as_arms_every_arm_has_followed_every_other_one(num_arms, rounds, times):
    arms = [f"arm {index}" for index in range(num_arms)]
    order = [arm for arm, _ in blocks(fewest_steps(num_arms, rounds), arms, rounds)]
    each_round = [order[begin : begin + num_arms] for begin in range(0, len(order), num_arms)]
    followed = Counter(pair for each in each_round for pair in pairwise(each))
    assert followed == dict.fromkeys(permutations(arms, 2), times)


@pytest.mark.parametrize("num_steps", [64, 99, 100, 101, 1000])
def test_every_step_has_its_block_and_blocks_differ_by_one_step_at_most(num_steps):
    found = blocks(num_steps, (OFF, ALL), 8)
    lengths = [len(slots) for _, slots in found]
    assert sum(lengths) == num_steps
    assert len(found) == 16
    assert max(lengths) - min(lengths) <= 1
    assert [slots[0].block for _, slots in found] == list(range(16))


def test_the_first_steps_of_a_block_settle():
    for _, slots in blocks(100, (OFF, ALL), 8):
        assert [slot.is_settling for slot in slots] == [True] * SETTLING_STEPS + [False] * (len(slots) - SETTLING_STEPS)


def test_too_few_steps_make_no_schedule():
    assert fewest_steps(2, 8) == 64
    with pytest.raises(ValueError, match="63 steps are too few for 8 rounds of 2 blocks"):
        schedule(63, (OFF, ALL), 8)


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 5, 8])
def test_every_arm_can_be_given_as_many_measured_steps_as_a_verdict_needs(rounds):
    slots = schedule(fewest_steps(2, rounds, 10), (OFF, ALL), rounds)
    for arm in (OFF, ALL):
        assert sum(slot.arm == arm and not slot.is_settling for slot in slots) >= 10
