"""The progress of a run where stderr is no terminal."""

import io

from rich.console import Console

from cctrain.follow import Rank
from cctrain.report.progress import Progress


def said(times_s, step_time_s=0.5, **kind):
    """The lines of a run that takes a step at each of `times_s`."""
    file, now = io.StringIO(), [0.0]
    progress = Progress(50, 1, Console(file=file, width=60), clock=lambda: now[0], **kind)
    rank = Rank(start={"world_size": 1})
    with progress:
        for step, now[0] in enumerate(times_s, start=1):
            rank.last_step = {"step": step, "step_time_s": step_time_s, "padded_tokens": 100, "loss": 1.25}
            progress.update({0: rank})
    return file.getvalue().splitlines()


def test_a_line_says_how_far_it_is_every_half_a_minute():
    assert said([1, 29, 31, 59, 60, 62]) == [
        "step 3 of 50  200 tokens/s/GPU  loss 1.250",
        "step 6 of 50  200 tokens/s/GPU  loss 1.250",
    ]


def test_a_line_of_an_emulated_run_says_so():
    (line,) = said([31], is_emulated=True)
    assert line == "step 1 of 50  200 tokens/s/GPU  emulated, plain or tolled  loss 1.250"


def test_a_clock_that_stood_still_does_not_end_the_run():
    assert said([31], step_time_s=0.0) == ["step 1 of 50  ? tokens/s/GPU  loss 1.250"]


def test_a_short_run_says_nothing():
    assert said([1, 2, 3]) == []
