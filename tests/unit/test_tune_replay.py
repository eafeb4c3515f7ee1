"""`benchmarks/tune.py replay` on a grid of a synthetic machine, as `record` would have written it."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from synthetic_steps import Machine, problem

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "tune.py"


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A file whose last line was cut short by a kill."""
    whole = problem(steps=("stock",))
    machine = Machine(whole, "saturating", 3)
    prior = {"middle": whole.prior.middle.tolist(), "spread": whole.prior.spread.tolist()}
    limits = {"memory_gib": whole.memory_gib, "memory_margin": whole.memory_margin, "min_keep": None}
    header = {"arguments": [], "gpu": ["NVIDIA H200"], "num_ranks": 1, "prior": prior, **limits}
    lines = [
        {"observation": asdict(machine.trial(point)), "work": asdict(whole.works[point])} for point in whole.points
    ]
    path = tmp_path_factory.mktemp("grid") / "grid.jsonl"
    texts = [json.dumps(line) for line in ({"header": header}, *lines)]
    path.write_text("\n".join(texts)[:-40])
    return path, len(lines)


def replayed(*arguments):
    command = [sys.executable, BENCHMARK, "replay", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=BENCHMARK.parents[1])
    return done.stdout.splitlines()


@pytest.mark.parametrize("flags", [(), ("--plain",)])
def test_a_recorded_grid_is_searched_from_several_starts(grid, flags):
    path, num_points = grid
    *_, last = lines = replayed(path, "--starts", "4", *flags)
    facts = json.loads(last)
    assert (facts["num_points"], facts["num_starts"], len(lines)) == (num_points - 1, 4, 6)
    assert facts["most_trials"] <= 8
    assert facts["share_within_2_percent"] == 1.0
    assert len({start["base"] for start in facts["starts"]}) == 4
    assert all(start["path"][0] == start["base"] for start in facts["starts"])


def test_fewer_trials_come_less_near(grid):
    path, _ = grid
    facts = json.loads(replayed(path, "--max-trials", "1")[-1])
    assert facts["most_trials"] == 1
    assert facts["worst_distance"] > 0.1


TINY = ("recipe=tiny_llama_peft", "tune.over=[micro_batch,step,activation_checkpointing]", "track=none")


def left(tmp_path, *arguments, settings=TINY):
    """Points that `record` says are left where no trial is begun."""
    grid = ("record", tmp_path / "grid.jsonl", *settings, f"run_root={tmp_path}", "--for-s", "0.000001", *arguments)
    done = subprocess.run(
        [sys.executable, BENCHMARK, *map(str, grid)],
        capture_output=True,
        text=True,
        check=False,
        cwd=BENCHMARK.parents[1],
    )
    assert done.returncode == 1, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["num_left"]


def test_shares_of_a_grid_are_the_whole_of_it(tmp_path):
    whole = left(tmp_path)
    shares = [left(tmp_path, "--share", f"{index}/3") for index in range(3)]
    assert sum(shares) == whole
    assert max(shares) - min(shares) <= 1


def test_a_grid_goes_on_whatever_the_order_of_its_settings(tmp_path):
    assert left(tmp_path) == left(tmp_path, settings=reversed(TINY))
