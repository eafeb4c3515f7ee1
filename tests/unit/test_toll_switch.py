"""Which tolls a step is under, and what its sample says; the place of payment writes down what it is told."""

import pytest

from cctrain.emulation.blocks import ALL, OFF, schedule
from cctrain.emulation.switch import TollSwitch
from tests.unit.test_emulated_run import SOME, profile

EVERY_ARM = (OFF, ALL, "only launch", "without launch")
WARMUP = 3


class FakeTolls:
    """Counts a step's crossings as the number that `cross` was given."""

    counted_by = "fake"

    def __init__(self):
        self.said = []
        self.crossed = 0

    def set_tolls(self, profile):
        self.said.append(profile.classes() if profile else ())
        self.crossed += 1000  # what switching itself crosses is no step's

    def read(self):
        return (self.crossed,)

    def counted(self, words):
        return {"crossed": words[0]}

    def drain(self):
        self.said.append("drain")
        self.crossed += 100


@pytest.fixture
def tolls():
    return FakeTolls()


def switch(tolls, rounds=2, every_arm=EVERY_ARM, warmup=WARMUP):
    slots = schedule(len(every_arm) * rounds * 4, every_arm, rounds)
    return TollSwitch(tolls, profile(**SOME), slots, warmup), slots


def run_steps(tolls, switched, num):
    """As the engine does: returns each step's facts, and before which step something was said."""
    facts, said = [], []
    for number in range(num + 1):
        tolls.said.clear()
        begins = switched.next(tolls.drain)
        if tolls.said:
            said.append((number, list(tolls.said)))
        assert begins == bool(tolls.said)
        if number < num:
            tolls.crossed += number + 1
            facts.append(switched.step_end())
    return facts, said


def test_the_warm_up_is_plain_and_belongs_to_no_arm(tolls):
    switched, _ = switch(tolls)
    facts, said = run_steps(tolls, switched, WARMUP - 1)
    assert said == []
    assert facts == [{"crossings": {"crossed": number}} for number in (1, 2)]


def test_the_device_is_drained_before_each_change_of_tolls_and_nowhere_else(tolls):
    switched, slots = switch(tolls)
    _, said = run_steps(tolls, switched, WARMUP + len(slots))
    begins = [WARMUP + index for index in range(0, len(slots), 4)]
    assert [number for number, _ in said] == begins
    of_arm = {
        OFF: (),
        ALL: ("launch", "wait", "copy", "collective"),
        "only launch": ("launch",),
        "without launch": ("wait", "copy", "collective"),
    }
    assert [what for _, what in said] == [["drain", of_arm[slots[begin - WARMUP].arm]] for begin in begins]


def test_a_step_says_its_arm_its_block_and_whether_it_settles(tolls):
    switched, slots = switch(tolls)
    facts, _ = run_steps(tolls, switched, WARMUP + len(slots))
    for index, (slot, fact) in enumerate(zip(slots, facts[WARMUP:], strict=True)):
        assert (fact["arm"], fact["block"], fact["is_settling"]) == (slot.arm, slot.block, index % 4 < 2)
        assert fact["is_tolled"] is {OFF: False, ALL: True}.get(slot.arm)


def test_a_steps_crossings_are_its_own_and_not_those_of_the_switch(tolls):
    switched, slots = switch(tolls)
    facts, _ = run_steps(tolls, switched, WARMUP + len(slots))
    assert [fact["crossings"]["crossed"] for fact in facts] == list(range(1, len(facts) + 1))


def test_what_is_crossed_between_two_steps_is_neithers(tolls):
    switched = TollSwitch(tolls, None, (), 0)
    run_steps(tolls, switched, 2)
    tolls.crossed += 5000
    switched.forget()
    facts, _ = run_steps(tolls, switched, 1)
    assert facts == [{"crossings": {"crossed": 1}}]


def test_without_warm_up_the_first_step_is_of_the_first_block(tolls):
    switched, _ = switch(tolls, warmup=0)
    facts, said = run_steps(tolls, switched, 1)
    assert said == [(0, ["drain", ()])]
    assert (facts[0]["arm"], facts[0]["block"]) == (OFF, 0)


def test_steps_beyond_the_last_block_stay_under_its_tolls_and_are_of_no_arm(tolls):
    switched, slots = switch(tolls)
    facts, said = run_steps(tolls, switched, WARMUP + len(slots) + 3)
    assert said[-1][0] == WARMUP + len(slots) - 4
    assert all(set(fact) == {"crossings"} for fact in facts[WARMUP + len(slots) :])


def test_where_crossings_are_only_counted_nothing_is_drained_or_paid(tolls):
    facts, said = run_steps(tolls, TollSwitch(tolls, None, (), 0), 5)
    assert said == []
    assert facts == [{"crossings": {"crossed": number}} for number in range(1, 6)]


def test_what_was_crossed_before_training_is_no_steps(tolls):
    tolls.crossed = 77
    facts, _ = run_steps(tolls, TollSwitch(tolls, None, (), 0), 1)
    assert facts == [{"crossings": {"crossed": 1}}]
