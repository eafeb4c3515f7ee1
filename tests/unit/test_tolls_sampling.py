"""Blocks of calls to medians with intervals, over cases in turn."""

import gc
import random
import statistics

import pytest

from cctrain.tolls.sampling import Case, measure_cases, median_interval


@pytest.mark.parametrize("num_values", [6, 20, 101])
def test_the_interval_of_the_median_covers_it_at_least_95_times_in_100(num_values):
    draw, hits, num_draws = random.Random(num_values), 0, 4000
    for _ in range(num_draws):
        low, high = median_interval([draw.expovariate(1.0) for _ in range(num_values)])
        hits += low <= 0.6931471805599453 <= high
    assert 0.94 <= hits / num_draws <= 0.98


def test_five_values_have_no_interval_and_six_have_their_range():
    assert median_interval([3, 1, 2, 5, 4]) is None
    assert median_interval([3, 1, 2, 5, 4, 6]) == (1, 6)


class Machine:
    """A clock, and blocks that take a second of it."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def case(self, name, values=None):
        values = iter(values or [])

        def block():
            self.now += 1.0
            self.order.append(name)
            return next(values, 2.0)

        return Case(name, "us", {}, block)


def test_cases_take_turns_until_the_budget_is_over():
    machine = Machine()
    one, two = measure_cases([machine.case("one"), machine.case("two")], 20.5, clock=lambda: machine.now)
    assert machine.order == ["one", "two"] * 12  # one round set aside and eleven of two seconds
    assert (one.num_blocks, two.num_blocks) == (11, 11)


def test_a_slow_machine_still_gives_enough_blocks_for_an_interval():
    machine = Machine()
    (one,) = measure_cases([machine.case("one")], 0.0, clock=lambda: machine.now)
    assert one.num_blocks == 7
    assert one.interval == (2.0, 2.0)


def test_the_first_block_is_set_aside_and_the_value_is_the_median():
    machine = Machine()
    values = [1000.0, 1.0, 2.0, 3.0, 4.0, 50.0, 60.0, 70.0]
    (one,) = measure_cases([machine.case("one", values)], 0.0, clock=lambda: machine.now)
    assert one.value == statistics.median(values[1:])


def test_all_ranks_stop_where_the_one_that_decides_does():
    machine, asked = Machine(), []

    def agree(is_over):
        asked.append(is_over)
        return len(asked) == 3

    (one,) = measure_cases([machine.case("one")], 0.0, agree=agree, clock=lambda: machine.now)
    assert one.num_blocks == 3


def test_garbage_is_collected_again_after_a_block_that_raised():
    with pytest.raises(ZeroDivisionError):
        measure_cases([Case("bad", "us", {}, lambda: 1 / 0)], 0.0)
    assert gc.isenabled()
