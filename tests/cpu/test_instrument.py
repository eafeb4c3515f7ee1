"""benchmarks/instrument.py: its statistics on steps of known times, and others' instruments around steps of none."""

import itertools
import json
import math
import random
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TOKENS = 2 * 32


@pytest.fixture
def instrument(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import instrument as module

    return module


class FixedSteps:
    """A Bench whose steps take 100 ms bare and a known share longer under each instrument."""

    def __init__(self, instrument, longer, noise=0.0):
        self.longer = {"bare": 0.0, **longer}
        self.kinds = dict.fromkeys(self.longer)
        self.others = {name: self for name in longer if name not in (instrument.OURS, instrument.TIMERS)}
        self.says = {name: [] for name in ("AutoModel's tps", *self.kinds)}
        self.timers = lambda _: self
        self._ours, self._noise, self._rows, self._random = instrument.OURS, noise, [], random.Random(0)

    def steps(self, count, kind):
        seconds = 0.1 * count * (1 + self.longer[kind]) * math.exp(self._random.gauss(0, self._noise))
        self._last_s = seconds
        if kind == self._ours:
            self._rows = [{"step_time_s": seconds / count}] * count
            self.says["AutoModel's tps"] += [TOKENS / 0.1] * count
        return seconds

    def take_rows(self):
        return self._rows

    def elapsed(self):
        return self._last_s

    def at_the_end(self):
        return [TOKENS / 0.2]


def cost(instrument, bench, rounds=12):
    return instrument.cost(bench, Namespace(micro_batch=2, accumulate=1, seq_len=32, rounds=rounds, block=4))


def test_an_instruments_cost_is_how_much_longer_its_steps_take_than_bare_ones(instrument):
    longer = {instrument.OURS: 0.001, instrument.TIMERS: 0.03, "torch.profiler": 0.5}
    found = cost(instrument, FixedSteps(instrument, longer))
    assert found["bare_step_s"] == pytest.approx(0.1)
    assert found["cost"] == pytest.approx(0.001)
    assert found["timers_cost"] == pytest.approx(0.03)
    assert found["torch.profiler cost"] == pytest.approx(0.5)
    assert found["stamps_over_wall"] == pytest.approx(1)


def test_its_interval_holds_the_cost_and_is_as_wide_as_the_noise_makes_it(instrument):
    widths = []
    for noise in (0.002, 0.02):
        found = cost(instrument, FixedSteps(instrument, {instrument.OURS: 0.03, instrument.TIMERS: 0.0}, noise))
        low, high = found["cost_ci95"]
        assert low < 0.03 < high
        widths.append(high - low)
    assert widths[1] > 5 * widths[0]


def test_what_an_instrument_says_stands_beside_the_wall_clock_of_its_own_steps(instrument):
    found = cost(instrument, FixedSteps(instrument, {instrument.OURS: 0.0, instrument.TIMERS: 0.25, "TraceML": 1.0}))
    says = {name: (one["harmonic_mean_tokens_per_s"], one["wall_tokens_per_s"]) for name, one in found["says"].items()}
    assert says["bare"] == says[instrument.OURS] == pytest.approx((640, 640))
    assert says[instrument.TIMERS] == pytest.approx((512, 512))
    assert says["TraceML"] == pytest.approx((320, 320))


def test_the_table_has_a_line_for_each_with_what_it_says_over_the_truth(instrument):
    found = cost(instrument, FixedSteps(instrument, {instrument.OURS: 0.0, instrument.TIMERS: 0.0, "TraceML": 0.0}))
    made = instrument.table({"recipe": "r", "micro_batch": 2, "seq_len": 32, "device": "cpu", **found})
    columns = [list(column.cells) for column in made.columns]
    ratios = dict(zip(columns[0], columns[3], strict=True))
    assert ratios.keys() == {"wall clock, bare steps", "AutoModel's tps", instrument.OURS, instrument.TIMERS, "TraceML"}
    assert ratios["TraceML"] == "0.5000"  # it said 200 ms a step where the wall clock had 100
    assert ratios[instrument.OURS] == "1.0000"


def block(kind, steps=5):
    """What an instrument says of a block of steps that do next to nothing."""
    kind.start(TOKENS, 2)
    for _ in range(steps):
        with kind.around(torch.nn.Linear(2, 2)):
            torch.zeros(4).add(1)
        kind.step_end()
    return kind.stop()


def test_lightnings_throughput_is_its_tokens_over_the_time_it_was_told(instrument):
    pytest.importorskip("lightning")
    other = instrument.instruments.Lightning()
    other.now = itertools.count(0.0, 0.25).__next__  # a step every 250 ms
    assert block(other) == [pytest.approx(TOKENS / 0.25)]


def test_trainers_speed_is_all_its_tokens_over_the_time_since_it_began(instrument):
    other = instrument.instruments.HuggingFace()
    other.start(TOKENS, 2)
    other.begin -= 100.0  # as if it had begun so long ago
    for _ in range(5):
        other.step_end()
    assert other.stop() == [pytest.approx(5 * TOKENS / 100.0, rel=0.05)]


def test_the_profiler_has_a_span_for_each_step(instrument):
    says = block(instrument.instruments.TorchProfiler())
    assert len(says) == 5
    assert all(0 < rate < math.inf for rate in says)


def test_all_of_it_runs_on_a_tiny_recipe():
    options = ("--recipe", "tiny_llama_peft", "--micro-batch", "2", "--seq-len", "32", "--rounds", "2", "--block", "2")
    command = [sys.executable, str(BENCHMARKS / "instrument.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["stamps_over_wall"] == pytest.approx(1, abs=0.02)
    assert found["says"].keys() == {"AutoModel's tps", "bare", "cctrain's stamps", "AutoModel's Timers"}
