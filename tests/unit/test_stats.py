"""The statistics of one run, by simulation: what is claimed in the docstrings is what is found."""

import math

import numpy as np
import pytest

from cctrain import stats


def traces(num_traces, num_steps, phi=0.0, noise=0.003):
    """Steady step times of 1 s: AR(1) noise with this standard deviation, one trace a row."""
    values = np.random.default_rng(1).normal(size=(num_steps + 50, num_traces))
    for step in range(1, len(values)):
        values[step] += phi * values[step - 1]
    return 1.0 + noise * math.sqrt(1 - phi**2) * np.ascontiguousarray(values[50:].T)


def is_steady(trace):
    found = stats.find_steady(trace)
    return found.shift is None and not found.is_settling


def coverage(all_traces, cut=lambda trace: 0):
    intervals = [stats.batch_means(trace[cut(trace) :]) for trace in all_traces]
    return np.mean([abs(interval.mean - 1.0) <= interval.half_width for interval in intervals])


@pytest.mark.parametrize(
    ("num_steps", "phi", "least", "least_after_cut"),
    [
        (30, 0.0, 0.93, 0.93),
        (30, 0.5, 0.92, 0.87),
        (30, 0.8, 0.90, 0.82),
        (60, 0.0, 0.93, 0.93),
        (60, 0.8, 0.93, 0.87),
        (100, 0.0, 0.93, 0.93),
        (100, 0.5, 0.94, 0.91),
        (100, 0.8, 0.93, 0.90),
        (300, 0.0, 0.93, 0.93),
        (300, 0.8, 0.93, 0.92),
    ],
)
def test_the_interval_covers_the_true_mean_as_often_as_said(num_steps, phi, least, least_after_cut):
    steady = traces(1500, num_steps, phi)
    assert least <= coverage(steady) <= 0.97
    assert least_after_cut <= coverage(steady, stats.mser5) <= 0.97


def test_the_interval_of_independent_steps_is_hardly_wider_than_need_be():
    widths = [stats.batch_means(trace).half_width for trace in traces(500, 100)]
    assert np.median(widths) < 1.25 * 1.96 * 0.003 / math.sqrt(100)


@pytest.mark.parametrize("first_steps", [5, 20, 40])
def test_slow_first_steps_leave_no_bias(first_steps):
    slow = traces(300, 100, phi=0.5)
    slow[:, :first_steps] *= 1.2
    means = np.asarray([trace[stats.mser5(trace) :].mean() for trace in slow])
    assert abs(means.mean() - 1.0) < 0.0005
    assert np.quantile(np.abs(means - 1.0), 0.95) < 0.003


def test_a_slow_step_late_in_the_run_does_not_hide_the_warm_up():
    slow = traces(200, 100, phi=0.5)
    slow[:, :20] *= 1.05
    slow[:, 80] *= 10
    assert np.mean([stats.mser5(trace) >= 20 for trace in slow]) > 0.95


def test_chance_excursions_at_the_start_are_rarely_cut():
    assert np.mean([stats.mser5(trace) > 0 for trace in traces(500, 100, phi=0.8)]) < 0.3


def recompiling(num_traces, num_steps, noise):
    """Three slow steps at random places of the first third."""
    source = np.random.default_rng(8)
    slow = traces(num_traces, num_steps, phi=0.5, noise=noise)
    for _ in range(3):
        slow[np.arange(num_traces), source.integers(0, num_steps // 3, num_traces)] *= source.uniform(5, 20, num_traces)
    return slow


@pytest.mark.parametrize("num_steps", [30, 100])
@pytest.mark.parametrize("noise", [0.003, 0.02])
def test_recompilations_leave_no_bias_and_are_not_taken_for_a_change(num_steps, noise):
    slow = recompiling(150, num_steps, noise)
    means = [trace[stats.find_steady(trace).cut :].mean() for trace in slow]
    assert abs(np.mean(means) - 1.0) < 0.003
    assert np.mean([is_steady(trace) for trace in slow]) > 0.9


@pytest.mark.parametrize("noise", [0.003, 0.01])
@pytest.mark.parametrize("time_constant", [10, 20])
@pytest.mark.parametrize("swing", [0.03, -0.02])
def test_thermal_settling_leaves_little_bias_where_the_run_is_called_steady(swing, time_constant, noise):
    settling = traces(150, 100, phi=0.5, noise=noise) * (1 + swing * np.exp(-np.arange(100) / time_constant))
    steady = [trace for trace in settling if is_steady(trace)]
    assert len(steady) > 60
    assert abs(np.mean([trace[stats.find_steady(trace).cut :].mean() for trace in steady]) - 1.0) < 0.003


def test_a_slow_step_late_in_the_run_stays_in_the_mean():
    late = traces(200, 100, phi=0.5)
    late[:, 80] *= 5
    found = [stats.find_steady(trace) for trace in late]
    means = [trace[one.cut :].mean() for trace, one in zip(late, found, strict=True)]
    assert np.mean(means) == pytest.approx(1.04, abs=0.002)
    assert np.mean([one.shift is None and not one.is_settling for one in found]) > 0.95
    assert np.mean([stats.batch_means(trace).half_width > 0.04 for trace in late]) == 1.0


@pytest.mark.parametrize(("num_steps", "num_traces"), [(30, 800), (60, 800), (100, 800), (300, 400)])
def test_steady_steps_are_called_unsteady_at_most_once_in_twenty(num_steps, num_traces):
    steady = traces(num_traces, num_steps, phi=0.5, noise=0.02)
    assert np.mean([is_steady(trace) for trace in steady]) >= 0.95


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize(("num_steps", "noise"), [(60, 0.005), (100, 0.01)])
def test_a_lasting_shift_of_three_percent_is_found_with_its_step(num_steps, noise, share):
    slower = traces(150, num_steps, phi=0.5, noise=noise)
    step = int(num_steps * share)
    slower[:, step:] *= 1.03
    shifts = [stats.find_steady(trace).shift for trace in slower]
    assert np.mean([s is not None and abs(s.index - step) <= 3 and 0.01 < s.change < 0.05 for s in shifts]) > 0.9


def test_single_slow_steps_and_a_slow_start_do_not_hide_a_shift():
    slower = traces(200, 100, phi=0.5)
    slower[:, :10] *= 1.2
    slower[:, [30, 55, 90]] *= 4
    slower[:, 70:] *= 1.03
    shifts = [stats.find_steady(trace).shift for trace in slower]
    assert np.mean([shift is not None and abs(shift.index - 70) <= 3 for shift in shifts]) > 0.9


def test_a_shift_in_the_first_quarter_is_warm_up():
    faster = traces(200, 100, phi=0.5)
    faster[:, :20] *= 1.03
    found = [stats.find_steady(trace) for trace in faster]
    assert np.mean([one.shift is None and not one.is_settling and one.cut >= 20 for one in found]) > 0.95


@pytest.mark.parametrize(("num_steps", "change"), [(30, 0.05), (100, 0.02), (100, -0.03), (300, 0.02)])
def test_a_drift_through_the_whole_run_is_not_steady(num_steps, change):
    drifting = traces(100, num_steps, phi=0.5) * np.linspace(1.0, 1.0 + change, num_steps)
    assert np.mean([stats.find_steady(trace).is_settling for trace in drifting]) > 0.9


def test_a_drift_and_a_shift_are_told_apart():
    drift = stats.find_change(traces(1, 100)[0] * np.linspace(0.98, 1.02, 100))
    assert isinstance(drift, stats.Drift)
    assert drift.change == pytest.approx(0.04, abs=0.003)
    assert isinstance(stats.find_change(traces(1, 100)[0] * np.repeat([1.0, 1.03], 50)), stats.Shift)


def test_single_spikes_are_not_taken_for_a_change():
    spiky = traces(300, 100, noise=0.02)
    spiky[:, [20, 55, 90]] *= 4
    assert np.mean([stats.find_change(trace) is not None for trace in spiky]) <= 0.05


@pytest.mark.parametrize("value", [0.1, 0.5, 1e-9, 3e7])
def test_steps_without_any_noise_are_steady_and_exact(value):
    assert stats.find_steady([value] * 50) == stats.Steady(0, None, is_settling=False)
    interval = stats.batch_means([value] * 50)
    assert interval.mean == pytest.approx(value)
    assert interval.half_width == pytest.approx(0.0, abs=1e-12 * value)


def test_a_shift_without_any_noise_is_found():
    assert stats.find_steady([0.5] * 30 + [0.6] * 30).shift == stats.Shift(30, pytest.approx(0.2))


@pytest.mark.parametrize("num_values", [1, 9])
def test_few_steps_have_no_interval(num_values):
    interval = stats.batch_means([2.0] * num_values)
    assert (interval.mean, interval.half_width) == (2.0, None)
    assert stats.find_steady([2.0] * num_values) == stats.Steady(0, None, is_settling=False)


@pytest.mark.parametrize("num_values", [3, 60])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_have_no_interval_and_are_not_steady(bad, num_values):
    values = [0.5] * num_values
    values[1] = bad
    interval = stats.batch_means(values)
    assert math.isnan(interval.mean)
    assert interval.half_width is None
    assert stats.mser5(values) == 0
    assert stats.find_change(values) is None
    assert stats.find_steady(values) == stats.Steady(0, None, is_settling=True)


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_values_that_are_not_above_zero_are_not_steady(bad):
    for values in ([bad] * 60, [0.5] * 30 + [bad] * 30):
        assert stats.find_steady(values) == stats.Steady(0, None, is_settling=True)
        assert stats.batch_means(values).mean == pytest.approx(np.mean(values))


def test_no_values_have_no_interval():
    assert math.isnan(stats.batch_means([]).mean)
    assert stats.batch_means([]).half_width is None
    assert stats.find_steady([]) == stats.Steady(0, None, is_settling=False)
