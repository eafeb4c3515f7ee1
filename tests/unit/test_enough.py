"""When the parent tells the ranks that enough is measured."""

import json

import pytest

from cctrain.config import MeasureConfig
from cctrain.enough import Enough
from cctrain.records import StepRecord

MEASURE = MeasureConfig(warmup=10, steps="auto", half_width=0.01, max_steps=500)


def steps(num_steps, *, drift=0.0):
    times = [5.0] * 10 + [0.5 + 0.001 * (-1) ** number + drift * number for number in range(num_steps)]
    counts = dict.fromkeys(("padded_tokens", "real_tokens", "label_tokens", "num_images", "data_wait_s"), 0)
    return [
        StepRecord(
            step=number, step_time_s=s, rank_step_time_s=(s,), phases_s=None, loss=1.0, is_warmup=False, **counts
        )
        for number, s in enumerate(times, 1)
    ]


def test_steady_steps_end_the_run_and_the_file_says_why(tmp_path):
    Enough(tmp_path, MEASURE).judge(steps(150))
    why = json.loads((tmp_path / "stop.json").read_text())["why"]
    assert why.startswith("measure.steps=auto: enough after 150 measured steps: the interval is narrow enough")


@pytest.mark.parametrize("so_far", [steps(40), []], ids=["too few", "none"])
def test_the_run_goes_on(tmp_path, so_far):
    Enough(tmp_path, MEASURE).judge(so_far)
    assert not (tmp_path / "stop.json").exists()


def test_the_first_reason_stands(tmp_path):
    (tmp_path / "stop.json").write_text('{"why": "before"}')
    Enough(tmp_path, MEASURE).judge(steps(150))
    assert json.loads((tmp_path / "stop.json").read_text()) == {"why": "before"}


def test_steps_are_judged_again_at_the_next_look_and_not_before(tmp_path):
    enough = Enough(tmp_path, MEASURE)
    enough.judge(steps(112, drift=0.001))
    enough.judge(steps(156))  # all the same by now, had they been so before
    assert not (tmp_path / "stop.json").exists()
    enough.judge(steps(157))
    assert (tmp_path / "stop.json").exists()


def test_a_run_whose_maximum_is_before_the_next_look_ends_there(tmp_path):
    enough = Enough(tmp_path, MEASURE)
    for num_steps in (432, 499):
        enough.judge(steps(num_steps, drift=0.001))
        assert not (tmp_path / "stop.json").exists()
    enough.judge(steps(500, drift=0.001))
    assert json.loads((tmp_path / "stop.json").read_text())["why"].endswith("500 measured steps: the maximum")
