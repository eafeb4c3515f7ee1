"""`benchmarks/peers_turns.py`: runs that are made ready side by side and measured one by one, with programs that take
steps and write them down as ranks do.
"""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RANK = """
import json, os, sys, time
folder, num, holds_itself, parent = sys.argv[1], int(sys.argv[2]), len(sys.argv) > 3, os.getppid()
os.makedirs(folder + "/samples")
with open(folder + "/samples/rank0.jsonl", "w", buffering=1) as file:
    file.write(json.dumps({"event": "start", "pid": 0 if holds_itself else os.getpid()}) + "\\n")
    for step in range(1, num + 1):
        time.sleep(0.05)
        if os.getppid() != parent:
            break
        file.write('{"step":%d,"at":%r}\\n' % (step, time.time()))
        if holds_itself and step == 3:
            os.kill(os.getpid(), 19)
"""
LAUNCHER = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', *sys.argv[1:]]))"


@pytest.fixture
def turns(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import peers_turns as module

    monkeypatch.setattr(module, "_DRAIN_S", 0.1)
    monkeypatch.setattr(module, "_LOOK_S", 0.2)
    return module


def run(folder, name, turn, *, num_steps=30, more=()):
    """As a cell does it: started, waited for. Returns the exit code."""
    turn.process = subprocess.Popen([sys.executable, "-c", LAUNCHER, RANK, folder / name, str(num_steps), *more])
    return turn.process.wait()


def stamps(folder, name):
    """When each step was over, in unix time."""
    lines = (folder / name / "samples" / "rank0.jsonl").read_text().splitlines()
    return [json.loads(line)["at"] for line in lines[1:]]


@pytest.mark.parametrize("more", [(), ("holds itself",)], ids=["held from outside", "held by itself"])
def test_all_are_made_ready_before_the_first_goes_on_and_then_each_has_the_machine_to_itself(turns, tmp_path, more):
    runs = [partial(run, tmp_path, name, more=more) for name in ("a", "b")]
    assert turns.side_by_side(runs, tmp_path) == [0, 0]
    a, b = stamps(tmp_path, "a"), stamps(tmp_path, "b")
    assert len(a) == len(b) == 30
    alone = [at for at in b if at > a[-1]]
    assert len(alone) >= 15
    before = b[: -len(alone)]
    assert len(before) >= turns.READY_STEPS
    assert sum(at > before[-1] for at in a) >= 15  # which a took when b was held


def test_one_that_ends_before_it_is_ready_keeps_nobody_waiting(turns, tmp_path):
    runs = [partial(run, tmp_path, "short", num_steps=1), partial(run, tmp_path, "a")]
    assert turns.side_by_side(runs, tmp_path) == [0, 0]
    assert len(stamps(tmp_path, "a")) == 30


def test_one_that_follows_on_one_that_failed_and_holds_itself_is_let_go_of(turns, tmp_path):
    def twice(turn):
        run(tmp_path, "first", turn)
        turn.process = subprocess.Popen([sys.executable, "-c", RANK, tmp_path / "second", "6", "holds itself"])
        return turn.process.wait()

    assert turns.side_by_side([twice, partial(run, tmp_path, "a")], tmp_path) == [0, 0]
    assert len(stamps(tmp_path, "second")) == 6


def test_a_rank_of_an_earlier_call_that_had_the_same_pid_is_no_sign_of_readiness(turns, tmp_path):
    old = tmp_path / "old" / "samples" / "rank0.jsonl"
    old.parent.mkdir(parents=True)
    old.write_text(json.dumps({"event": "start", "pid": os.getpid()}) + "\n" + '{"step":1}\n' * 9)
    assert turns.Turn(tmp_path)._num_steps(os.getpid()) == 0
    assert turns.Turn(tmp_path / "elsewhere")._num_steps(os.getpid()) == 0
    turn = turns.Turn(tmp_path)
    (tmp_path / "new" / "samples").mkdir(parents=True)
    (tmp_path / "new" / "samples" / "rank0.jsonl").write_text(old.read_text())
    assert turn._num_steps(os.getpid()) == 9


def test_one_that_hangs_ends_by_its_own_deadline_and_the_others_are_measured(turns, tmp_path):
    import peers_run

    def of(argv, deadline_s):
        return lambda turn: peers_run._finished(argv, time.monotonic() + deadline_s, turn)

    hangs = of([sys.executable, "-c", "import time; time.sleep(60)"], 4)
    ranks = [of([sys.executable, "-c", LAUNCHER, RANK, tmp_path / name, "60"], 5.5) for name in ("a", "b")]
    (_, hung), *good = turns.side_by_side([hangs, *ranks], tmp_path)
    assert hung == "not done by its deadline"
    assert [error for _, error in good] == [None, None]
    assert len(stamps(tmp_path, "a")) == len(stamps(tmp_path, "b")) == 60


def test_what_one_of_them_raises_is_raised_when_all_are_over(turns, tmp_path):
    def broken(turn):
        raise ValueError("no such line")

    with pytest.raises(ValueError, match="no such line"):
        turns.side_by_side([broken, partial(run, tmp_path, "a")], tmp_path)
    assert len(stamps(tmp_path, "a")) == 30


def test_a_stop_ends_those_that_are_held_and_starts_nothing_more(turns, tmp_path, monkeypatch):
    seen = []

    def wait(seconds):
        if seconds == turns._DRAIN_S:  # both are held
            raise KeyboardInterrupt
        time.sleep(seconds)

    def kept(name, turn):
        seen.append(turn)
        return run(tmp_path, name, turn, num_steps=400)

    monkeypatch.setattr(turns, "time", SimpleNamespace(sleep=wait, time=time.time))
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        turns.side_by_side([partial(kept, "a"), partial(kept, "b")], tmp_path)
    assert time.monotonic() - begin < 15  # of 20 s and more that either would take
    assert [turn.process.returncode for turn in seen] == [-signal.SIGTERM] * 2
    assert all(turn.is_over for turn in seen)


def test_the_time_that_one_was_held_is_known(turns, tmp_path):
    seen = []

    def kept(name, turn):
        seen.append(turn)
        return run(tmp_path, name, turn)

    turns.side_by_side([partial(kept, "a"), partial(kept, "b")], tmp_path)
    first, second = (turn.waited_s for turn in seen)
    assert 0.1 <= first < second


@pytest.mark.parametrize(
    ("held_at", "why"),
    [(None, None), (11.5, None), (13.5, "it was held in step 4, after its warm-up of 3; give it a longer --warmup")],
)
def test_a_run_that_was_held_after_its_warm_up_is_no_measurement(turns, tmp_path, held_at, why):
    record = tmp_path / "run.json"
    record.write_text(json.dumps({"steps": [{"step": n, "rank_begin_s": [9.0 + n]} for n in range(1, 9)]}))
    turn = turns.Turn(tmp_path)
    turn.held_at, turn.went_on_at = held_at and 11.0, held_at
    assert turns.held_too_late(record, turn, 3) == why
    assert turns.held_too_late(record, None, 3) is None
