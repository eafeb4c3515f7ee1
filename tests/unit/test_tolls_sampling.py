"""Blocks of calls, over cases in turn, to what an undisturbed call takes; and several processes' to one reading."""

import dataclasses
import gc
import itertools
import os
import random
import statistics
from itertools import pairwise

import pytest

from cctrain.tolls import matmul
from cctrain.tolls.record import Reading
from cctrain.tolls.replicates import over_processes, t_interval
from cctrain.tolls.sampling import Case, cores_of, measure_cases, undisturbed

# One process


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


def test_a_slow_machine_still_gives_three_blocks():
    machine = Machine()
    (one,) = measure_cases([machine.case("one")], 0.0, clock=lambda: machine.now)
    assert (one.num_blocks, one.interval) == (3, None)


def test_the_first_block_is_set_aside():
    machine = Machine()
    (one,) = measure_cases([machine.case("one", [1.0, 3.0, 2.0, 4.0])], 0.0, clock=lambda: machine.now)
    assert one.value == 2.0


def test_what_is_undisturbed_is_the_best_tenth():
    values = [float(value) for value in range(1, 101)]
    assert undisturbed(values, "us") == 11
    assert undisturbed(values, "GB/s") == 90
    assert undisturbed([7.0, 5.0, 6.0], "ns") == 5


def test_a_process_goes_from_core_to_core_and_gets_all_of_them_back():
    machine, seen = Machine(), []
    allowed = os.sched_getaffinity(0)

    def block():
        machine.now += 0.02
        seen.append(tuple(os.sched_getaffinity(0)))
        return 1.0

    measure_cases([Case("one", "us", {}, block)], 0.1 * len(allowed), clock=lambda: machine.now)
    assert {len(cores) for cores in seen[1:]} == {1}
    assert set(seen[1:]) == {(core,) for core in cores_of(0, 1, allowed)}
    assert os.sched_getaffinity(0) == allowed


@pytest.fixture
def siblings(tmp_path):
    """Of eight hardware threads of four cores, where the kernel would list them: n and n + 4 are of one core."""
    for thread in range(8):
        (tmp_path / str(thread)).write_text(f"{thread % 4},{thread % 4 + 4}\n")
    return f"{tmp_path}/{{}}"


def test_ranks_have_physical_cores_of_their_own(siblings):
    assert [cores_of(rank, 2, range(8), siblings) for rank in (0, 1)] == [[0, 1], [2, 3]]
    assert [cores_of(rank, 3, range(8), siblings) for rank in (0, 1, 2)] == [[0], [1], [2, 3]]
    assert cores_of(0, 1, range(8), siblings) == [0, 1, 2, 3]


def test_more_ranks_than_cores_are_left_where_they_are(siblings):
    assert [cores_of(rank, 5, range(8), siblings) for rank in range(5)] == [[]] * 5


def test_of_many_cores_a_rank_goes_over_some():
    assert cores_of(1, 2, range(128), "/nowhere/{}") == list(range(64, 128, 4))
    assert len(cores_of(0, 1, range(31), "/nowhere/{}")) <= 16


def test_all_ranks_stop_where_the_one_that_decides_does():
    machine, asked = Machine(), []

    def agree(is_over):
        asked.append(is_over)
        return len(asked) == 5

    (one,) = measure_cases([machine.case("one")], 0.0, agree=agree, clock=lambda: machine.now)
    assert one.num_blocks == 5
    assert asked == [False, False, True, True, True]


def test_under_tolls_every_block_comes_with_and_without_them_in_turns():
    machine, arms = Machine(), []

    def block():
        machine.now += 1.0
        machine.order.append(arms[-1])
        return 30.0 if arms[-1] else 5.0

    case = Case("one", "us", {}, block)
    (one,) = measure_cases([case], 3.0, switch=arms.append, clock=lambda: machine.now)
    assert (one.value, one.plain_value, one.num_blocks) == (30.0, 5.0, 3)
    assert machine.order == [True, False, True, False, False, True, True, False]  # the first pair is set aside
    (bare,) = measure_cases([case], 3.0, clock=lambda: machine.now)
    assert bare.plain_value is None


def test_matrices_lie_in_the_same_places_with_and_without_tolls():
    machine, arms, seen = Machine(), [], {True: set(), False: set()}
    places = itertools.cycle(range(matmul.PLACES))

    def block():
        machine.now += 1.0
        seen[arms[-1]].add(next(places))
        return 1.0

    case = Case("matmul", "TFLOP/s", {}, block)
    measure_cases([case], 2.0 * matmul.PLACES, switch=arms.append, clock=lambda: machine.now)
    assert seen[True] == seen[False] == set(range(matmul.PLACES))


def test_garbage_is_collected_again_after_a_block_that_raised():
    with pytest.raises(ZeroDivisionError):
        measure_cases([Case("bad", "us", {}, lambda: 1 / 0)], 0.0)
    assert gc.isenabled()


# Several processes


def reading(value, unit="us", **conditions):
    return Reading(name="x", unit=unit, value=value, interval=None, num_blocks=10, conditions=conditions)


def test_the_value_is_that_of_the_least_disturbed_process_and_the_interval_that_of_any():
    time, rate = over_processes(
        [reading(10.0), reading(50.0, "GB/s", bytes=1), reading(11.0), reading(40.0, "GB/s", bytes=1)]
    )
    assert (time.value, time.process_values, time.num_blocks) == (10.0, (10.0, 11.0), 20)
    assert (rate.value, rate.conditions) == (50.0, {"bytes": 1})
    assert time.interval == t_interval([10.0, 11.0])


def test_what_it_takes_without_tolls_is_that_of_the_least_disturbed_process_too():
    pairs = [(30.0, 6.0), (31.0, 5.0)]
    (time,) = over_processes(dataclasses.replace(reading(value), plain_value=plain) for value, plain in pairs)
    assert (time.value, time.plain_value, time.plain_process_values) == (30.0, 5.0, (6.0, 5.0))
    (bare,) = over_processes([reading(30.0), reading(31.0)])
    assert (bare.plain_value, bare.plain_process_values) == (None, ())


def test_one_process_has_no_interval():
    (one,) = over_processes([reading(10.0)])
    assert (one.value, one.interval) == (10.0, None)
    assert t_interval([1.0, 0.0]) is None


@pytest.mark.parametrize("num_processes", [2, 3])
def test_the_interval_covers_a_process_95_times_in_100_and_always_the_value(num_processes):
    draw, hits, num_draws = random.Random(num_processes), 0, 4000
    for _ in range(num_draws):
        values = [draw.lognormvariate(0.0, 0.05) for _ in range(num_processes)]
        low, high = t_interval(values)
        hits += low <= 1.0 <= high
        assert low <= min(values) <= max(values) <= high
    assert 0.94 <= hits / num_draws <= 0.96


def host_bound(draw, num_blocks=70):
    """Blocks of a process on a shared host: its own luck of up to 5 %, and neighbours that make it 40 % slower for as
    long as they run, which may be all of its life."""
    luck, is_busy, blocks = 1 + draw.uniform(0, 0.05), draw.random() < 0.4, []
    for _ in range(num_blocks):
        is_busy = is_busy if draw.random() < 0.96 else draw.random() < 0.4
        blocks.append(6.3 * luck * (1.4 if is_busy else 1.0) * (1 + draw.expovariate(50)))
    return blocks


def test_runs_on_a_shared_host_agree_where_medians_would_not():
    draw, runs, medians = random.Random(1), [], []
    for _ in range(400):
        processes = [host_bound(draw) for _ in range(3)]
        (run,) = over_processes(reading(undisturbed(blocks, "us")) for blocks in processes)
        runs.append(run.value)
        medians.append(statistics.median(block for blocks in processes for block in blocks))

    def share_within(values, bar):
        return statistics.fmean(max(pair) / min(pair) <= 1 + bar for pair in pairwise(values))

    assert share_within(runs, 0.05) > 0.98
    assert share_within(medians, 0.05) < 0.7
