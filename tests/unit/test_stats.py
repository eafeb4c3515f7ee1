"""The statistics of one run, by simulation: what is claimed in the docstrings is what is found."""

import numpy as np
import pytest

from cctrain import stats


def traces(num_traces, num_steps, phi=0.0, noise=0.003):
    source = np.random.default_rng(7)
    for _ in range(num_traces):
        values, value = [], 0.0
        for shock in source.normal(size=num_steps + 50):
            value = phi * value + shock
            values.append(value)
        yield 1.0 + noise * np.asarray(values[50:])


@pytest.mark.parametrize(("phi", "least", "most"), [(0.0, 0.93, 0.97), (0.5, 0.85, 0.97), (0.8, 0.70, 0.97)])
def test_the_interval_covers_the_true_mean_as_often_as_said(phi, least, most):
    hits = [abs(i.mean - 1.0) <= i.half_width for i in map(stats.batch_means, traces(1500, 100, phi))]
    assert least <= np.mean(hits) <= most


@pytest.mark.parametrize("first_steps", [5, 20, 40])
def test_slow_first_steps_leave_no_bias(first_steps):
    means = []
    for trace in traces(300, 100):
        trace[:first_steps] *= 1.2
        means.append(np.mean(trace[stats.mser5(list(trace)) :]))
    assert abs(np.mean(means) - 1.0) < 0.003
    assert np.quantile(np.abs(np.asarray(means) - 1.0), 0.95) < 0.003


def test_steady_steps_are_rarely_called_moving():
    alarms = [stats.still_moves(list(t), stats.mser5(list(t))) for phi in (0.0, 0.5) for t in traces(400, 30, phi)]
    assert np.mean(alarms) <= 0.05


def test_a_run_that_never_settles_is_called_moving():
    alarms = []
    for steady in traces(100, 100):
        trace = steady * np.linspace(1.3, 1.0, 100)
        alarms.append(stats.still_moves(list(trace), stats.mser5(list(trace))))
    assert np.mean(alarms) > 0.9


@pytest.mark.parametrize("num_values", [1, 9])
def test_few_steps_have_no_interval(num_values):
    interval = stats.batch_means([2.0] * num_values)
    assert (interval.mean, interval.half_width) == (2.0, None)
    assert stats.mser5([2.0] * num_values) == 0
