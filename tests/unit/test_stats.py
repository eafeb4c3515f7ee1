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


@pytest.mark.parametrize(("phi", "least", "most"), [(0.0, 0.93, 0.97), (0.5, 0.91, 0.95), (0.8, 0.86, 0.90)])
def test_the_interval_covers_the_true_mean_as_often_as_said(phi, least, most):
    hits = [abs(i.mean - 1.0) <= i.half_width for i in map(stats.batch_means, traces(2000, 100, phi))]
    assert least <= np.mean(hits) <= most


@pytest.mark.parametrize("first_steps", [5, 20, 40])
def test_slow_first_steps_leave_no_bias(first_steps):
    means = []
    for trace in traces(300, 100):
        trace[:first_steps] *= 1.2
        means.append(np.mean(trace[stats.mser5(list(trace)) :]))
    assert abs(np.mean(means) - 1.0) < 0.003
    assert np.quantile(np.abs(np.asarray(means) - 1.0), 0.95) < 0.003


@pytest.mark.parametrize("num_steps", [30, 100, 300])
def test_steady_steps_are_called_unsteady_at_most_once_in_twenty(num_steps):
    found = [stats.find_steady(list(trace)) for trace in traces(1000, num_steps, phi=0.5, noise=0.02)]
    assert np.mean([one.shift is not None or one.is_settling for one in found]) <= 0.05


def test_a_slowdown_in_the_middle_is_not_hidden_as_warm_up():
    found = []
    for trace in traces(100, 120, phi=0.5):
        trace[60:] *= 1.02
        found.append(stats.find_steady(list(trace)).shift)
    assert np.mean([shift is not None and abs(shift.index - 60) <= 3 for shift in found]) > 0.9


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_a_lasting_shift_of_three_percent_is_found_with_its_step(share):
    found = []
    for trace in traces(200, 100, phi=0.5):
        trace[int(100 * share) :] *= 1.03
        shift = stats.find_shift(list(trace))
        found.append(shift is not None and abs(shift.index - 100 * share) <= 3 and 0.01 < shift.change < 0.04)
    assert np.mean(found) > 0.9


def test_a_drift_is_found():
    drift = np.linspace(1.0, 1.05, 100)
    assert np.mean([stats.find_shift(list(trace * drift)) is not None for trace in traces(100, 100)]) > 0.9


def test_single_spikes_are_not_taken_for_a_shift():
    alarms = []
    for trace in traces(300, 100, noise=0.02):
        trace[[20, 55, 90]] *= 4
        alarms.append(stats.find_shift(list(trace)) is not None)
    assert np.mean(alarms) <= 0.05


def test_steps_without_any_noise_are_steady():
    assert stats.find_shift([0.5] * 50) is None


@pytest.mark.parametrize("num_values", [1, 9])
def test_few_steps_have_no_interval(num_values):
    interval = stats.batch_means([2.0] * num_values)
    assert (interval.mean, interval.half_width) == (2.0, None)
    assert stats.mser5([2.0] * num_values) == 0
    assert stats.find_shift([2.0] * num_values) is None
