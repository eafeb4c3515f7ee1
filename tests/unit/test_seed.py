"""The seed post's figure beside ours."""

import pytest

from cctrain.records import StepRecord
from cctrain.seed import seed_figure


def steps(num_steps, *, tokens=900, printed=None, step_time_s=0.5):
    facts = {"rank_step_time_s": (step_time_s,), "data_wait_s": 0.0, "phases_s": None, "loss": 1.0, "num_images": 0}
    counts = {"padded_tokens": 1000, "real_tokens": 950, "label_tokens": 500, "engine_tokens": tokens}
    return [
        StepRecord(
            step=number,
            step_time_s=step_time_s,
            is_warmup=number <= 5,
            engine_tokens_per_s_per_gpu=printed(number) if callable(printed) else printed,
            **facts,
            **counts,
        )
        for number in range(1, num_steps + 1)
    ]


def test_it_is_the_median_of_what_the_engine_printed_from_its_step_10_on():
    figure = seed_figure(steps(13, printed=lambda number: 100.0 * number), 2000.0, 1, 1, "0.7.0")
    assert (figure.tokens_per_s_per_gpu, figure.first_step, figure.num_steps) == (1200, 11, 3)
    assert figure.over_ours == pytest.approx(0.6)
    assert figure.engine_version == "0.7.0"


def test_the_difference_is_told_apart_into_tokens_divisor_and_the_rest():
    # 8 ranks in 2 groups of 4 that share their samples; the VLM recipe divides by 2.
    by_two = seed_figure(steps(20, printed=900 / 0.5 / 2), 1000 / 0.5 / 8, 8, 2, None)
    assert by_two.over_ours == pytest.approx(0.9 * 4)
    assert "90.0% of the padded tokens" in by_two.why
    assert "divides by 2 data-parallel ranks and not by 8 GPUs, x4" in by_two.why
    assert "over the steady ones: +0.0%; its host clock, and the rest: +0.0%" in by_two.why
    by_eight = seed_figure(steps(20, printed=1.02 * 900 / 0.5 / 8), 1000 / 0.5 / 8, 8, 2, None)
    assert "divides" not in by_eight.why
    assert "its host clock, and the rest: +2.0%" in by_eight.why
    slower = seed_figure(steps(20, printed=900 / 0.5), 1000 / 0.4, 1, 1, None)
    assert "over the steady ones: -20.0%; its host clock, and the rest: +0.0%" in slower.why


def test_a_run_that_ends_before_step_10_has_none():
    assert seed_figure(steps(10, printed=100.0), 2000.0, 1, 1, None) is None
    assert seed_figure(steps(20, printed=None), 2000.0, 1, 1, None) is None
