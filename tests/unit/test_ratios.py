"""The statistics between runs, by simulation: intervals cover as often as they say, and the rest follows from them."""

import math

import numpy as np
import pyperf
import pytest

from cctrain import ratios

DRAWS = 20_000
TRUTH = math.log(0.7)


def runs(num, between, shared=0.0, within=0.002, seed=1):
    """Log throughputs of `num` runs of each: their own level, one that a pair shares, noise of the median."""
    rng = np.random.default_rng([seed, num])
    pair = shared * rng.normal(size=(DRAWS, num))
    off = pair + between * rng.normal(size=(DRAWS, num)) + within * rng.normal(size=(DRAWS, num))
    on = TRUTH + pair + between * rng.normal(size=(DRAWS, num)) + within * rng.normal(size=(DRAWS, num))
    return off, on


@pytest.mark.parametrize("num_pairs", [3, 5, 10])
@pytest.mark.parametrize("shared", [0.0, 0.05])
def test_the_interval_of_pairs_covers_the_truth_as_often_as_said(num_pairs, shared):
    off, on = runs(num_pairs, between=0.01, shared=shared)
    middle, half = ratios.paired(on - off)
    assert 0.945 <= np.mean(np.abs(middle - TRUTH) <= half) <= 0.955


@pytest.mark.parametrize("num_pairs", [3, 5, 10])
def test_the_interval_of_pairs_covers_where_runs_have_slow_outliers(num_pairs):
    off, on = runs(num_pairs, between=0.01)
    slow = np.random.default_rng(7).random((2, *off.shape)) < 0.05  # one run in twenty is slower by 3 %
    middle, half = ratios.paired(on - 0.03 * slow[0] - (off - 0.03 * slow[1]))
    assert 0.93 <= np.mean(np.abs(middle - TRUTH) <= half) <= 0.97


@pytest.mark.parametrize("num_pairs", [3, 5, 10])
def test_the_interval_covers_from_the_steps_up(num_pairs):
    """Steps are AR(1) 0.5 with spikes; a run's figure is the median of its steps, as compare takes it."""
    rng = np.random.default_rng(num_pairs)
    figures = []
    for level in (0.0, TRUTH):
        steps = rng.normal(size=(60, 2000, num_pairs))
        for step in range(1, len(steps)):
            steps[step] = 0.5 * steps[step - 1] + math.sqrt(0.75) * steps[step]
        spikes = 0.7 * (rng.random(steps.shape) < 0.03)
        run = level + 0.01 * rng.normal(size=(2000, num_pairs))
        figures.append(np.median(run + 0.01 * steps - spikes, axis=0))
    middle, half = ratios.paired(figures[1] - figures[0])
    assert 0.93 <= np.mean(np.abs(middle - TRUTH) <= half) <= 0.97


@pytest.mark.parametrize("num_runs", [3, 5, 10])
def test_welchs_interval_covers_where_modes_vary_unequally_and_runs_are_unequally_many(num_runs):
    off, _ = runs(num_runs, between=0.005)
    _, on = runs(num_runs + 1, between=0.02, seed=2)
    middle, half = ratios.welch(off, on)
    assert 0.93 <= np.mean(np.abs(middle - TRUTH) <= half) <= 0.97


def test_pairing_narrows_the_interval_where_pairs_share_their_level():
    off, on = runs(5, between=0.002, shared=0.03)
    assert np.median(ratios.paired(on - off)[1]) < 0.3 * np.median(ratios.welch(off, on)[1])


def test_ratios_are_symmetric_and_need_two_runs_of_each_for_an_interval():
    ratio, ci95 = ratios.ratio_of_runs([100.0, 102.0, 101.0], [50.0, 51.5, 50.2], is_paired=True)
    back, back95 = ratios.ratio_of_runs([50.0, 51.5, 50.2], [100.0, 102.0, 101.0], is_paired=True)
    assert ratio == pytest.approx(1 / back)
    assert ci95 == pytest.approx((1 / back95[1], 1 / back95[0]))
    assert ratios.ratio_of_runs([100.0], [70.0], is_paired=True) == (pytest.approx(0.7), None)
    assert ratios.ratio_of_runs([100.0], [70.0, 71.0], is_paired=False)[1] is None


def test_the_geometric_mean_of_pairs_ratios_is_the_ratio_of_their_runs():
    off, on = [100.0, 102.0, 101.0], [50.0, 51.5, 50.2]
    mean, ci95 = ratios.geometric_mean([b / a for a, b in zip(off, on, strict=True)])
    ratio, ratio95 = ratios.ratio_of_runs(off, on, is_paired=True)
    assert (mean, *ci95) == pytest.approx((ratio, *ratio95))
    assert ratios.geometric_mean([0.7]) == (pytest.approx(0.7), None)


def test_runs_without_any_noise_have_an_interval_of_no_width():
    for is_paired in (True, False):
        ratio, ci95 = ratios.ratio_of_runs([100.0] * 3, [70.0] * 3, is_paired=is_paired)
        assert ratio == pytest.approx(0.7)
        assert ci95 == pytest.approx((0.7, 0.7))


@pytest.mark.parametrize(
    ("ci95", "verdict"),
    [
        ((0.69, 0.72), "costs"),
        ((0.985, 0.999), "costs"),
        ((0.992, 0.998), "free"),
        ((0.995, 1.005), "free"),
        ((0.98, 1.005), "unclear"),
        ((1.02, 1.05), "gains"),
        (None, "unclear"),
    ],
)
def test_the_verdict_follows_from_the_interval(ci95, verdict):
    assert ratios.verdict(ci95, 0.01) == verdict


def test_as_many_runs_as_asked_for_settle_it_four_times_in_five():
    spread = 0.03
    more = ratios.more_runs(0.96, spread, 2, 0.01)
    logs = math.log(0.96) + spread * np.random.default_rng(3).normal(size=(DRAWS, 2 + more.num))
    middle, half = ratios.paired(logs)
    assert 0.75 <= np.mean(middle + half < 0) <= 0.87
    assert not more.is_assumed


def test_one_pair_needs_few_more_for_a_large_loss_and_many_for_none():
    large = ratios.more_runs(0.7, None, 1, 0.01)
    none = ratios.more_runs(0.995, None, 1, 0.01)
    assert (large.num, large.is_assumed, large.spread) == (1, True, pytest.approx(ratios.ASSUMED_SPREAD))
    assert none.num > 20
    assert ratios.more_runs(0.995, 0.2, 3, 0.01).num is None


def benchmark(values):
    return pyperf.Benchmark([pyperf.Run(values.tolist(), metadata={"name": "step"}, collect_metadata=False)])


@pytest.mark.parametrize(("change", "is_significant"), [(1.42, True), (1.02, True), (1.0, False)])
def test_pyperf_finds_the_same_ratio_and_significance(tmp_path, change, is_significant):
    rng = np.random.default_rng(4)
    off, on = (level * np.exp(0.003 * rng.normal(size=10)) for level in (0.2, 0.2 * change))
    for name, times in (("off", off), ("on", on)):
        benchmark(times).dump(str(tmp_path / f"{name}.json"))
    ratio, ci95 = ratios.ratio_of_runs((1 / off).tolist(), (1 / on).tolist(), is_paired=False)
    assert 1 / ratio == pytest.approx(benchmark(on).mean() / benchmark(off).mean(), rel=1e-4)
    assert (not ci95[0] <= 1 <= ci95[1]) == is_significant
    said = compare_to(tmp_path / "off.json", tmp_path / "on.json")
    assert (f"{1 / ratio:.2f}x slower" in said) == is_significant
    assert ("not significant" in said) != is_significant


def compare_to(*paths):
    import subprocess
    import sys

    command = [sys.executable, "-m", "pyperf", "compare_to", *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout
