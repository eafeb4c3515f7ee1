"""Marks to step times, with a clock of our own."""

import pytest

from cctrain.timing.timer import StepTimer


class FakeClock:
    """Stamps `now`; the device has passed the stamps up to `reached`."""

    name = "fake"
    unix_offset_s = 1000.0

    def __init__(self):
        self.now, self.reached, self.stamps = 0.0, float("inf"), []
        self.num_recorded = 0

    def mark(self):
        self.stamps.append(self.now)
        return len(self.stamps) - 1

    def stamp(self):
        self.num_recorded += 1

    def replayed(self, num_stamps):
        return [self.mark() for _ in range(num_stamps)]

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


def test_phases_add_up_to_the_step_and_micro_batches_are_kept_apart():
    clock = FakeClock()
    timer = StepTimer(clock)
    timer.resume()
    for name, now in [("other", 1), ("forward", 3), ("backward", 7), ("forward", 9), ("backward", 13)]:
        clock.now = now
        timer.phase_end(name)
    clock.now = 14
    timer.step_end("optimizer", data_wait_s=0.25, step=1)
    (row,) = timer.finished()
    assert row == {
        "step": 1,
        "begin_s": 1000,
        "step_time_s": 14,
        "data_wait_s": 0.25,
        "phases_s": {"data_wait": 0.25, "other": 0.75, "forward": 4, "backward": 8, "optimizer": 1},
        "micro_batches_s": {"forward": [2, 2], "backward": [4, 4]},
    }


def test_a_wait_for_data_that_the_device_did_not_notice_makes_no_phase_negative():
    clock = FakeClock()
    timer = StepTimer(clock)
    timer.resume()
    clock.now = 1.0
    timer.phase_end("other")
    clock.now = 3.0
    timer.step_end("optimizer", data_wait_s=2.5)
    (row,) = timer.finished()
    assert row["phases_s"] == {"data_wait": 1.0, "other": 0.0, "optimizer": 2.0}
    assert row["data_wait_s"] == 2.5


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


def test_marks_of_a_graph_count_with_each_replay_and_not_while_it_is_recorded():
    clock = FakeClock()
    timer = StepTimer(clock)
    timer.resume()
    names = timer.record_marks()
    for name in ("other", "forward", "backward"):
        timer.phase_end(name)
    timer.end_record()
    assert (names, clock.num_recorded) == (["other", "forward", "backward"], 3)
    for now in (1.0, 2.0):
        clock.now = now
        timer.replayed(names)
    clock.now = 5.0
    timer.step_end("optimizer")
    (row,) = timer.finished()
    assert row["phases_s"] == {"data_wait": 0.0, "other": 2.0, "forward": 0.0, "backward": 0.0, "optimizer": 3.0}
    assert row["micro_batches_s"] == {"other": [1.0, 1.0], "forward": [0.0, 0.0], "backward": [0.0, 0.0]}


def test_after_a_recording_marks_count_again():
    clock = FakeClock()
    timer = StepTimer(clock)
    timer.resume()
    timer.record_marks()
    timer.end_record()
    clock.now = 2.0
    timer.phase_end("forward")
    clock.now = 3.0
    timer.step_end("optimizer")
    (row,) = timer.finished()
    assert row["phases_s"] == {"data_wait": 0.0, "forward": 2.0, "optimizer": 1.0}


def test_a_replay_outside_a_step_belongs_to_none_but_its_stamps_are_taken():
    clock = FakeClock()
    timer = StepTimer(clock)
    timer.replayed(["forward", "backward"])
    assert len(clock.stamps) == 2
    assert timer.finished() == []
