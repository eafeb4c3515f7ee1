"""When the parent tells the ranks that enough is measured."""

import json

import pytest

from cctrain.config import MeasureConfig
from cctrain.enough import Enough
from cctrain.follow import Rank

MEASURE = MeasureConfig(warmup=10, steps="auto", half_width=0.01, max_steps=500)


def ranks(num_steps, *, world=2, seen=2, noise=0.001, drift=0.0):
    times = [5.0] * 10 + [0.5 + noise * (-1) ** number + drift * number for number in range(num_steps)]
    start = {"world_size": world}
    return {rank: Rank(start, step_times_s=list(times)) for rank in range(seen)}


def test_steady_steps_of_all_ranks_end_the_run_and_the_file_says_why(tmp_path):
    Enough(tmp_path, MEASURE).judge(ranks(150))
    why = json.loads((tmp_path / "stop.json").read_text())["why"]
    assert why.startswith("measure.steps=auto: enough after 150 measured steps: the interval is narrow enough")


@pytest.mark.parametrize(
    "so_far",
    [ranks(40), ranks(150, seen=1), ranks(150, world=3), {}],
    ids=["too few", "one rank is not seen yet", "a third is to come", "none"],
)
def test_the_run_goes_on(tmp_path, so_far):
    Enough(tmp_path, MEASURE).judge(so_far)
    assert not (tmp_path / "stop.json").exists()


def test_steps_are_those_that_all_ranks_have_finished(tmp_path):
    uneven = ranks(150)
    del uneven[1].step_times_s[60:]
    Enough(tmp_path, MEASURE).judge(uneven)
    assert not (tmp_path / "stop.json").exists()


def test_the_first_reason_stands(tmp_path):
    (tmp_path / "stop.json").write_text('{"why": "before"}')
    Enough(tmp_path, MEASURE).judge(ranks(150))
    assert json.loads((tmp_path / "stop.json").read_text()) == {"why": "before"}


def test_steps_are_judged_again_at_the_next_look_and_not_before(tmp_path):
    enough = Enough(tmp_path, MEASURE)
    enough.judge(ranks(112, drift=0.001))
    enough.judge(ranks(156))  # all the same by now, had they been so before
    assert not (tmp_path / "stop.json").exists()
    enough.judge(ranks(157))
    assert (tmp_path / "stop.json").exists()


def test_a_run_whose_maximum_is_before_the_next_look_ends_there(tmp_path):
    enough = Enough(tmp_path, MEASURE)
    for num_steps in (432, 499):
        enough.judge(ranks(num_steps, drift=0.001))
        assert not (tmp_path / "stop.json").exists()
    enough.judge(ranks(500, drift=0.001))
    assert json.loads((tmp_path / "stop.json").read_text())["why"].endswith("500 measured steps: the maximum")
