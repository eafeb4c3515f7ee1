"""Following ranks from outside. The ranks here are plain Python processes that wait; the test writes their samples."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cctrain import samples
from cctrain.follow import Follower
from cctrain.processes import is_alive
from cctrain.records import strict_json
from cctrain.reduce import Reduction, reduce_samples

WAITING = """
import faulthandler, json, signal, sys
from cctrain.processes import this_process
faulthandler.register(signal.SIGUSR1, file=open(sys.argv[1], "w"))
print(json.dumps(this_process()), flush=True)
sys.stdin.read()
"""


class FakeRank:
    """A living process and the samples file in its name."""

    def __init__(self, run_dir: Path, rank: int, world: int) -> None:
        self.stacks = run_dir / "logs" / f"rank{rank}.log"
        command = [sys.executable, "-c", WAITING, str(self.stacks)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.identity = json.loads(self.process.stdout.readline())
        self.start = {"event": "start", "rank": rank, "world_size": world, **self.identity}
        self.path = run_dir / "samples" / f"rank{rank}.jsonl"
        self.write(self.start)

    def write(self, line: dict) -> None:
        with self.path.open("a") as file:
            file.write(strict_json(line))

    def step(self, number: int) -> None:
        self.write({"step": number, "step_time_s": 0.1})

    def says_where_it_is(self, timeout_s: float = 5.0) -> bool:
        """Whether it was asked for its stacks, which it writes a moment later."""
        deadline = time.monotonic() + timeout_s
        while not self.stacks.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        return "most recent call first" in self.stacks.read_text()

    def die(self) -> None:
        self.process.kill()
        self.process.wait()


class Scene:
    """A run under a clock of its own: `then` lists what happens, one action a poll."""

    def __init__(self, run_dir: Path, ranks: list[FakeRank]) -> None:
        self.run_dir, self.ranks = run_dir, ranks
        self.follower = Follower(run_dir, setup_timeout_s=100.0, step_timeout_s=20.0)
        self.now, self.code = 0.0, None
        self.seen: list[dict[int, int | None]] = []

    def exit(self, code: int) -> None:
        self.code = code

    def follow(self, *then, launched_by_us: bool = True, poll_s: float = 0.2) -> str | None:
        actions = list(then)

        def sleep(_: float) -> None:
            self.now += poll_s
            if actions:
                actions.pop(0)()

        def look(ranks) -> None:
            self.seen.append({number: rank.last_step and rank.last_step["step"] for number, rank in ranks.items()})

        watch = {"is_ours": launched_by_us, "clock": lambda: self.now, "sleep": sleep}
        return self.follower.follow(lambda: self.code, look, **watch)


@pytest.fixture
def scene(tmp_path) -> Iterator[Scene]:
    """Two ranks that have done three steps."""
    for name in ("samples", "logs"):
        (tmp_path / name).mkdir()
    ranks = [FakeRank(tmp_path, rank, world=2) for rank in (0, 1)]
    for rank in ranks:
        for number in (1, 2, 3):
            rank.step(number)
    yield Scene(tmp_path, ranks)
    for rank in ranks:
        rank.die()
        rank.process.stdin.close()
        rank.process.stdout.close()


def ends(rank: FakeRank):
    return lambda: rank.write({"event": "end"})


def fails(rank: FakeRank, message: str, time: float = 1.0):
    return lambda: rank.write({"event": "error", "time": time, "kind": "RuntimeError", "message": message})


def test_a_run_is_complete_when_every_rank_has_ended_and_the_launcher_too(scene):
    first, second = scene.ranks
    assert scene.follow(ends(first), ends(second), lambda: None, lambda: scene.exit(0)) is None
    assert scene.now == pytest.approx(0.8)
    assert scene.seen[0] == {0: 3, 1: 3}


def test_ranks_that_are_done_but_do_not_leave_are_not_waited_for_forever(scene):
    assert scene.follow(*map(ends, scene.ranks), poll_s=5.0) is None
    assert 60 < scene.now < 80


def test_in_a_job_of_somebody_elses_a_complete_run_is_over_at_once(scene):
    assert scene.follow(*map(ends, scene.ranks), launched_by_us=False) is None
    assert scene.now == pytest.approx(0.4)


def test_a_killed_rank_is_named_with_how_far_it_had_come(scene):
    failure = scene.follow(scene.ranks[1].die)
    assert failure.startswith("rank 1 was killed after step 3")


def test_the_launcher_gets_a_few_seconds_to_end_the_others(scene):
    scene.follow(scene.ranks[1].die)
    assert 4.0 < scene.now < 5.0


def test_a_ranks_own_error_is_the_reason(scene):
    assert scene.follow(fails(scene.ranks[1], "ValueError: bad"), lambda: scene.exit(1)) == "rank 1: ValueError: bad"


def test_the_error_that_came_first_is_the_reason(scene):
    late, early = fails(scene.ranks[0], "second", time=2.0), fails(scene.ranks[1], "first", time=1.0)
    assert scene.follow(late, early, lambda: scene.exit(1)) == "rank 1: first"


def test_a_rank_that_was_told_to_stop_after_an_error_is_not_blamed(scene):
    failure = scene.follow(scene.ranks[0].die, fails(scene.ranks[1], "ValueError: bad"), lambda: scene.exit(1))
    assert failure == "rank 1: ValueError: bad"


def test_a_killed_rank_is_the_reason_where_the_other_only_lost_its_peer(scene):
    echo = fails(scene.ranks[0], "RuntimeError: [pair.cc:553] Connection closed by peer [127.0.0.1]:31337")
    failure = scene.follow(echo, scene.ranks[1].die, lambda: scene.exit(1))
    assert failure.startswith("rank 1 was killed")


def test_no_step_until_the_deadline_is_a_hang(scene):
    failure = scene.follow(lambda: scene.ranks[0].step(4), poll_s=5.0)
    assert failure.startswith("rank 1 hangs after step 3, rank 0 hangs after step 4")
    assert "measure.step_timeout_s" in failure
    assert 5 + 20 < scene.now < 5 + 20 + 15
    for rank in scene.ranks:
        assert rank.says_where_it_is()


def test_set_up_has_a_deadline_of_its_own(scene):
    scene.ranks[1].path.write_text(json.dumps(scene.ranks[1].start) + "\n")
    failure = scene.follow(poll_s=30.0)
    assert "measure.setup_timeout_s" in failure
    assert 100 < scene.now < 200


def test_a_launcher_that_ends_before_any_rank_is_told_with_its_exit_code(tmp_path):
    (tmp_path / "samples").mkdir()
    failure = Follower(tmp_path, 100.0, 20.0).follow(lambda: 7, lambda _: None)
    assert "exit code 7 before any rank started" in failure


def test_a_rank_of_another_machine_is_not_taken_for_dead(scene):
    far = scene.ranks[1]
    far.path.write_text(json.dumps(far.start | {"host": "far"}) + "\n")
    far.die()
    failure = scene.follow(fails(scene.ranks[0], "ValueError: bad"), lambda: scene.exit(1))
    assert failure == "rank 0: ValueError: bad"


def test_a_line_is_read_once_it_is_whole(scene):
    first, second = scene.ranks
    line = strict_json({"step": 4, "step_time_s": 0.1})

    def append(text: str) -> None:
        with first.path.open("a") as file:
            file.write(text)

    halves = (lambda: append(line[:9]), lambda: None, lambda: append(line[9:]), lambda: None)
    assert scene.follow(*halves, ends(first), ends(second), lambda: scene.exit(0)) is None
    assert scene.seen == [{0: 3, 1: 3}, {0: 4, 1: 3}, {0: 4, 1: 3}, {0: 4, 1: 3}]


def test_ranks_and_launcher_are_killed_at_the_end(scene):
    launcher = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    scene.ranks[0].process.send_signal(signal.SIGSTOP)
    scene.follower.end_ranks(launcher)
    assert launcher.returncode == -signal.SIGKILL
    assert [rank.process.wait(10) for rank in scene.ranks] == [-signal.SIGKILL] * 2


def test_a_process_that_only_has_the_pid_of_a_rank_is_left_alone(scene):
    other = scene.ranks[1]
    other.path.write_text(json.dumps(other.start | {"process_start": "another boot:1"}) + "\n")
    scene.follower.end_ranks(None)
    assert scene.ranks[0].process.wait(10) == -signal.SIGKILL
    assert is_alive(other.identity)


def test_in_a_job_of_somebody_elses_a_rank_that_has_ended_leaves_by_itself(scene):
    ends(scene.ranks[0])()
    scene.follower.end_ranks(None)
    assert scene.ranks[1].process.wait(10) == -signal.SIGKILL
    assert is_alive(scene.ranks[0].identity)


# What it reads, summed up


def sample(number):
    counts = dict.fromkeys(("padded_tokens", "real_tokens", "label_tokens", "num_images"), 7)
    return {"step": number, "step_time_s": 0.1 * number, "data_wait_s": 0.0, "loss": 1.0, **counts}


@pytest.fixture
def sampled(scene) -> Scene:
    """Two ranks that have said what a reduction needs of them, and done three whole steps."""
    for number, rank in enumerate(scene.ranks):
        lines = (rank.start, {"event": "ready", "data_rank": number}, *map(sample, (1, 2, 3)))
        rank.path.write_text("".join(map(strict_json, lines)))
    scene.follower.reduction = Reduction(1)
    return scene


def test_what_was_taken_in_as_it_came_is_what_the_files_say(sampled):
    first, second = sampled.ranks
    later = (lambda: first.write(sample(4)), lambda: second.write(sample(4)), lambda: second.write(sample(5)))
    assert sampled.follow(*later, ends(second), ends(first), lambda: sampled.exit(0)) is None
    reduced = sampled.follower.reduction.reduced()
    assert [(step.step, step.is_warmup) for step in reduced.steps] == [(1, True), (2, False), (3, False), (4, False)]
    assert [len(rank.steps) for rank in reduced.ranks.values()] == [0, 1]
    assert reduced == reduce_samples(sampled.run_dir, Reduction(1))


def test_what_ranks_wrote_before_they_were_killed_is_taken_in(sampled):
    first, second = sampled.ranks
    sampled.follower.dead_here()
    for rank in (first, second):
        rank.write(sample(4))
    sampled.follower.end_ranks(None)
    assert len(sampled.follower.reduction.steps) == 4


def test_many_lines_at_once_are_all_taken_in_and_the_last_tells_where_a_rank_is(sampled, monkeypatch):
    monkeypatch.setattr(samples, "_BLOCK_BYTES", 500)
    for rank in sampled.ranks:
        for number in range(4, 40):
            rank.write(sample(number))
    sampled.follow(ends(sampled.ranks[0]), ends(sampled.ranks[1]), lambda: sampled.exit(0))
    assert sampled.seen[0] == {0: 39, 1: 39}
    assert [step.step for step in sampled.follower.reduction.steps] == list(range(1, 40))


def test_a_sample_that_cannot_be_summed_up_ends_no_run_and_leaves_the_files_to_its_end(sampled):
    first, second = sampled.ranks
    later = (lambda: first.step(4), lambda: second.step(4))  # without its tokens
    assert sampled.follow(*later, ends(first), ends(second), lambda: sampled.exit(0)) is None
    assert sampled.follower.reduction is None


def test_a_stop_while_it_reads_leaves_the_files_to_the_runs_end(sampled):
    class Stopped(Reduction):
        def take(self, number, lines):
            raise KeyboardInterrupt

    sampled.follower.reduction = Stopped(1)
    with pytest.raises(KeyboardInterrupt):
        sampled.follow()
    assert sampled.follower.reduction is None


def test_a_rank_whose_first_line_is_damaged_ends_nobody_that_can_be_followed(sampled):
    first = sampled.ranks[0].path
    first.write_text(first.read_text()[20:])
    assert sampled.follower.read()
    assert set(sampled.follower.ranks) == {1}
