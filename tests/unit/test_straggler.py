"""Who the others wait for, from the phases of every rank."""

import random

import numpy as np

from cctrain import straggler


def find_straggler(steps, begins=None):
    """Of steps given by the phases of every rank."""
    lasts = [
        straggler.last_rank(
            list(ranks[0]), np.array([list(phases.values()) for phases in ranks]), begins and begins[number]
        )
        for number, ranks in enumerate(steps)
    ]
    return straggler.find_straggler([last for last in lasts if last], len(steps[0]) if steps else 0)


def synchronous_step(*data_waits, noise=0.0):
    """Phases of a step at whose begin all ranks wait for the slowest loader; then they compute and leave together."""
    latest = max(data_waits)
    return [
        {"data_wait": wait, "other": latest - wait + 0.01, "forward": 0.1 + random.gauss(0, noise), "backward": 0.2}
        for wait in data_waits
    ]


def test_a_rank_that_waits_for_its_data_is_named_though_all_steps_take_the_same_time():
    steps = [synchronous_step(0.001, 0.001, 0.051, 0.001) for _ in range(50)]
    found = find_straggler(steps)
    assert (found.rank, found.share, found.phase) == (2, 1.0, "data_wait")
    assert abs(found.cost_s - 0.05) < 1e-9


def test_ranks_that_are_last_in_turn_are_no_stragglers():
    random.seed(3)
    alarms = 0
    for _ in range(300):
        steps = []
        for _ in range(60):
            waits = [0.001] * 8
            waits[random.randrange(8)] = 0.05
            steps.append(synchronous_step(*waits))
        alarms += find_straggler(steps) is not None
    assert alarms <= 6


def test_a_rank_that_is_last_by_next_to_nothing_is_not_named():
    assert find_straggler([synchronous_step(0.001, 0.0011) for _ in range(50)]) is None


def test_a_rank_that_is_slow_by_itself_is_named_by_its_step_time():
    steps = [[{"forward": 0.1}, {"forward": 0.1}, {"forward": 0.15 if number % 4 else 0.09}] for number in range(40)]
    found = find_straggler(steps)
    assert (found.rank, found.share) == (2, 0.75)
    assert abs(found.cost_s - 0.75 * 0.05) < 1e-9


def test_a_rank_that_begins_late_is_the_one_the_others_wait_for_and_not_they():
    steps = [[{"other": 0.06, "forward": 0.1}, {"other": 0.01, "forward": 0.1}] for _ in range(40)]
    begins = [(100.0 + number, 100.05 + number) for number in range(40)]
    assert find_straggler(steps, begins) is None
    assert find_straggler(steps).rank == 0  # which without a clock for both looks late


def test_one_rank_waits_for_nobody():
    assert find_straggler([[{"forward": 0.1}]] * 20) is None
    assert find_straggler([]) is None
