"""When `measure.steps=auto` stops, by simulation."""

import math

import numpy as np
import pytest

from cctrain import stats
from cctrain.stopping import stop_reason


def traces(num_traces, num_steps, phi, noise):
    """Steady step times of 1 s: AR(1) noise with this standard deviation, one trace a row."""
    values = np.random.default_rng(9).normal(size=(num_steps + 50, num_traces))
    for step in range(1, len(values)):
        values[step] += phi * values[step - 1]
    return 1.0 + noise * math.sqrt(1 - phi**2) * np.ascontiguousarray(values[50:].T)


LOOKS = (80, 112, 157, 220, 308, 432, 605, 847)


def run(step_times_s, half_width=0.0025, asked_at=LOOKS):
    """Ask for a reason at these numbers of steps and at the end: after how many steps the run stops, and why."""
    for num_steps in (asked for asked in asked_at if asked < len(step_times_s)):
        reason = stop_reason(step_times_s[:num_steps], half_width, len(step_times_s))
        if reason:
            return num_steps, reason
    return len(step_times_s), stop_reason(step_times_s, half_width, len(step_times_s))


@pytest.mark.parametrize(("phi", "noises", "least"), [(0.0, [0.003, 0.009, 0.014], 0.93), (0.8, [0.0015, 0.003], 0.88)])
def test_with_stopping_the_interval_still_covers(phi, noises, least):
    hits, ends = [], []
    for noise in noises:
        for trace in traces(350, 400, phi, noise):
            num_steps, _ = run(trace)  # no steps come after a look: coverage is least there
            rest = trace[stats.mser5(trace[:num_steps]) : num_steps]
            interval = stats.batch_means(rest)
            hits.append(abs(interval.mean - 1.0) <= interval.half_width)
            ends.append(num_steps)
    assert least <= np.mean(hits) <= 0.97
    assert min(ends) < 120 < max(ends)  # so that both early and late stops are among them


def test_a_quiet_run_stops_early_because_its_interval_is_narrow():
    num_steps, reason = run(traces(1, 400, 0.5, 0.001)[0], asked_at=range(400))
    assert num_steps == 112
    assert reason.startswith("the interval is narrow enough, ±0.0")


def test_the_interval_was_narrow_at_the_look_before_too():
    for trace in traces(100, 400, 0.5, 0.006):
        num_steps, reason = run(trace)
        if reason != "the maximum":
            look_before = LOOKS[LOOKS.index(num_steps) - 1]
            interval = stats.batch_means(trace[stats.mser5(trace[:look_before]) : look_before])
            assert interval.half_width <= 0.0025 * interval.mean


def test_a_wider_interval_is_enough_where_it_is_asked_for():
    (trace,) = traces(1, 400, 0.0, 0.02)
    assert run(trace, half_width=0.01)[0] < run(trace, half_width=0.004)[0]


def test_a_noisy_run_stops_because_more_steps_are_pointless():
    ends = [run(trace) for trace in traces(50, 1000, 0.5, 0.05)]
    hopeless = [num_steps for num_steps, reason in ends if reason.startswith("noise has stabilised")]
    assert len(hopeless) > 45
    assert np.median(hopeless) < 300


@pytest.mark.parametrize(("noise", "most"), [(0.008, 0.0), (0.0128, 0.05)])
def test_a_run_that_can_get_there_is_not_given_up(noise, most):
    reasons = [run(trace)[1] for trace in traces(100, 1000, 0.5, noise)]
    assert np.mean([reason.startswith("noise has stabilised") for reason in reasons]) <= most


def test_a_run_whose_noise_grows_is_not_given_up():
    growing = 1.0 + (traces(30, 400, 0.0, 0.1) - 1.0) * np.linspace(0.0, 1.0, 400) ** 2
    assert np.mean([run(trace, half_width=0.0001)[1] == "the maximum" for trace in growing]) > 0.9


@pytest.mark.parametrize("change", [0.03, -0.06, 0.3])
def test_a_run_that_drifts_goes_on_to_the_maximum(change):
    drifting = traces(30, 300, 0.5, 0.003) * np.linspace(1.0, 1.0 + change, 300)
    assert np.mean([run(trace) == (300, "the maximum") for trace in drifting]) > 0.9


def test_a_run_that_changes_its_level_does_not_stop_soon_after():
    changed = traces(30, 400, 0.5, 0.001)
    changed[:, 70:] *= 1.03
    assert min(run(trace)[0] for trace in changed) > 200


def test_what_a_look_says_does_not_depend_on_when_it_is_asked_for():
    for trace in traces(50, 400, 0.5, 0.005):
        assert len({stop_reason(trace[:num_steps], 0.0025, 400) for num_steps in (112, 113, 130, 156)}) == 1


def test_too_few_steps_stop_nothing_but_at_the_maximum():
    assert stop_reason([], 0.0025, 100) is None
    assert stop_reason([0.5] * 111, 0.0025, 1000) is None
    assert stop_reason([0.5] * 20, 0.0025, 20) == "the maximum"


def test_steps_without_any_noise_are_enough():
    assert stop_reason([0.5] * 112, 0.0025, 1000) == "the interval is narrow enough, ±0.00% of the mean"


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -0.5])
@pytest.mark.parametrize("num_bad", [1, 400])
def test_bad_step_times_stop_nothing_before_the_maximum(bad, num_bad):
    assert run([bad] * num_bad + [0.5] * (401 - num_bad)) == (401, "the maximum")
