"""Marks to step times, with a clock of our own."""

import pytest

from cctrain.timing.timer import StepTimer


class FakeClock:
    """Stamps `now`; the device has passed the stamps up to `reached`."""

    name = "fake"

    def __init__(self):
        self.now, self.reached, self.stamps = 0.0, float("inf"), []

    def mark(self):
        self.stamps.append(self.now)
        return len(self.stamps) - 1

    def read(self, handles):
        return [self.stamps[handle] if self.stamps[handle] <= self.reached else None for handle in handles]


def seconds(timer):
    return [row["step_time_s"] for row in timer.finished()]


def test_validation_is_not_billed_to_the_next_step():
    clock = FakeClock()
    timer = StepTimer(clock)
    timer.resume()
    clock.now = 0.5
    timer.step_end("optimizer")
    clock.now = 30.5
    timer.resume()  # thirty seconds of validation
    clock.now = 30.75
    timer.step_end("optimizer")
    assert seconds(timer) == [0.5, 0.25]


def test_phases_add_up_to_the_step_over_micro_batches():
    clock = FakeClock()
    timer = StepTimer(clock)
    timer.resume()
    for name, now in [("other", 1), ("forward", 3), ("backward", 7), ("forward", 9), ("backward", 13)]:
        clock.now = now
        timer.phase_end(name)
    clock.now = 14
    timer.step_end("optimizer", step=1)
    (row,) = timer.finished()
    assert row == {
        "step": 1,
        "step_time_s": 14,
        "phases_s": {"other": 1, "forward": 4, "backward": 8, "optimizer": 1},
    }


def test_a_step_is_given_only_when_the_device_has_passed_its_end_and_once():
    clock = FakeClock()
    timer = StepTimer(clock)
    timer.resume()
    for now in (1.0, 2.0):
        clock.now = now
        timer.step_end("optimizer")
    clock.reached = 1.5
    assert seconds(timer) == [1.0]
    assert seconds(timer) == []
    clock.reached = 2.5
    assert seconds(timer) == [1.0]


def test_a_step_that_never_began_cannot_end():
    with pytest.raises(RuntimeError, match="resume"):
        StepTimer(FakeClock()).step_end("optimizer")
