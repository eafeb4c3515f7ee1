"""A campaign killed at every point, resumed, and read by others: a stand-in trial writes a record and leaves."""

import contextlib
import json
import multiprocessing
import signal
import sys
from collections import Counter

import pytest

from cctrain.campaign.ledger import MOST_KILLS, Ledger, read, standings
from cctrain.campaign.matrix import parse
from cctrain.campaign.plan import planned
from cctrain.campaign.run import Campaign, is_complete, settle_killed, standing_of
from cctrain.errors import PlatformError, RequestError
from cctrain.processes import this_process

STAND_IN = """
import json, os, pathlib, signal, sys, time
root, recipe = pathlib.Path(sys.argv[1]), sys.argv[2]
if "hangs" in recipe:
    time.sleep(600)
if "refused" in recipe:
    print("a word of a library's", json.dumps({"error": "no such file"}), sep="\\n")
    sys.exit("also said")
if "broken" in recipe:
    sys.exit("Traceback ...\\nImportError: no torch")
if "silent" in recipe:
    sys.exit(7)
run = root / ("20261124-000000-" + recipe + "-off-" + os.environ["CCTRAIN_TRIAL"])
run.mkdir()
if "early" in recipe:
    sys.exit(9)
with (root / "starts").open("a") as starts:
    starts.write(sys.argv[2] + sys.argv[3] + "\\n")
record = {"status": "partial" if "bad" in recipe else "complete", "failure": "out of memory"}
(run / "run.json").write_text(json.dumps(record))
if "deadly" in recipe:
    (run / "run.json").write_text(json.dumps({"status": "partial", "failure": "still running"}))
    os.kill(os.getppid(), signal.SIGKILL)
sys.exit(4 if "bad" in recipe else 3 if "unready" in recipe else 0)
"""


class CrashError(Exception):
    """The process is gone."""


class CrashingLedger(Ledger):
    """Dies at a write: before it, in its middle, or after it."""

    writes_left = 1 << 30
    share = 1.0

    def append(self, event, **content):
        self.writes_left -= 1
        if self.writes_left >= 0:
            super().append(event, **content)
            return
        before = self.path.read_bytes()
        super().append(event, **content)
        whole = self.path.read_bytes()
        keep = len(before) + round((len(whole) - len(before)) * self.share)
        self.path.write_bytes(whole[:keep])
        raise CrashError


class Quiet:
    def __init__(self):
        self.said = []

    def begins(self, trial, attempt):
        self.said.append((trial.label, attempt))

    def runs(self, run_dir):
        pass

    def ended(self, ending, num_left, seconds_left):
        self.said.append((ending.outcome, num_left, seconds_left is not None))


def command(root):
    def of(trial):
        recipe = trial.settings[0].removeprefix("recipe=")
        return [sys.executable, "-I", "-S", "-c", STAND_IN, str(root), recipe, f" {trial.mode} {trial.repeat}"]

    return of


def trials_of(*arguments):
    return {trial.label: trial for trial in planned(parse(["recipe=a", *arguments]))}


def go(root, trials, kind=Ledger, mode="off", deadline_s=None, **crash):
    """One start of the campaign; returns what it waits for and what it said."""
    watcher = Quiet()
    with kind(root / "campaign.jsonl", lock_wait_s=10) as ledger:
        for name, value in crash.items():
            setattr(ledger, name, value)
        ledger.opened(mode)
        settle_killed(ledger, root)
        standing = standing_of(trials, ledger.events, root)
        campaign = Campaign(trials, standing, ledger, root, command(root), watcher, deadline_s)
        return campaign.run(mode), watcher.said


def starts(root):
    return Counter((root / "starts").read_text().splitlines())


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_campaign_killed_at_any_write_runs_every_trial_once(tmp_path, share):
    trials = trials_of("cc=off", "campaign.repeats=2")
    for writes in range(6):
        root = tmp_path / str(writes)
        root.mkdir()
        with contextlib.suppress(CrashError):  # the last has no write left to die at
            go(root, trials, CrashingLedger, writes_left=writes, share=share)
        go(root, trials)
        standing = standing_of(trials, read(root / "campaign.jsonl")[0], root)
        assert all(one.run and is_complete(root / one.run) for one in standing.values())
        assert set(starts(root).values()) == {1}
        assert len(list(root.glob("*/run.json"))) == len(trials)


def test_a_campaign_that_dies_again_and_again_still_ends(tmp_path):
    trials = trials_of("cc=off", "campaign.repeats=3")
    for _ in range(40):
        try:
            go(tmp_path, trials, CrashingLedger, writes_left=3, share=0.5)
            break
        except CrashError:
            continue
    go(tmp_path, trials)
    assert set(starts(tmp_path).values()) == {1}


def test_the_same_command_after_the_end_starts_nothing(tmp_path):
    trials = trials_of("cc=off", "campaign.repeats=2")
    go(tmp_path, trials)
    assert go(tmp_path, trials) == (None, [])


def test_more_repeats_add_to_what_is_there(tmp_path):
    go(tmp_path, trials_of("cc=off", "campaign.repeats=1"))
    go(tmp_path, trials_of("cc=off", "campaign.repeats=3"))
    assert starts(tmp_path) == {"a off 1": 1, "a off 2": 1, "a off 3": 1}


def test_a_failing_trial_is_retried_once_then_recorded_and_the_rest_goes_on(tmp_path):
    trials = trials_of("cc=off", "campaign.repeats=1") | {
        trial.label: trial for trial in planned(parse(["recipe=bad,good", "campaign.repeats=1"]))
    }
    _, said = go(tmp_path, trials)
    assert [each[0] for each in said if len(each) == 3] == ["complete", "failed", "failed", "complete"]
    assert starts(tmp_path) == {"a off 1": 1, "bad auto 1": 2, "good auto 1": 1}
    standing = standing_of(trials, read(tmp_path / "campaign.jsonl")[0], tmp_path)
    (failed,) = [one for one in standing.values() if one.is_failed]
    assert failed.failures == ["out of memory"] * 2
    assert go(tmp_path, trials) == (None, [])


def test_a_trial_that_hangs_is_ended_at_its_deadline_and_has_failed(tmp_path):
    trials = {trial.label: trial for trial in planned(parse(["recipe=hangs", "campaign.repeats=1"]))}
    _, said = go(tmp_path, trials, deadline_s=0.2)
    assert [each[0] for each in said if len(each) == 3] == ["failed", "failed"]
    (standing,) = standing_of(trials, read(tmp_path / "campaign.jsonl")[0], tmp_path).values()
    why = "ended after its deadline of 0.2 s (it ended with exit code -15 and said nothing)"
    assert standing.failures == [why, why]
    with Ledger(tmp_path / "campaign.jsonl", lock_wait_s=0):  # a trial that went on would hold it
        pass


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ("refused", "no such file"),
        ("broken", "ImportError: no torch"),
        ("silent", "it ended with exit code 7 and said nothing"),
    ],
)
def test_a_trial_that_cannot_start_failed_for_what_it_said_last(tmp_path, recipe, why):
    trials = {trial.label: trial for trial in planned(parse([f"recipe={recipe}", "campaign.repeats=1"]))}
    go(tmp_path, trials)
    (standing,) = standing_of(trials, read(tmp_path / "campaign.jsonl")[0], tmp_path).values()
    assert (standing.failures, standing.is_failed) == ([why, why], True)


def go_elsewhere(root, trials):
    """The same in a process of its own. Returns its exit code, which is negative where a signal killed it."""
    process = multiprocessing.get_context("fork").Process(target=go, args=(root, trials))
    process.start()
    process.join()
    return process.exitcode


def test_a_trial_that_kills_the_campaign_comes_after_the_others_then_and_is_given_up_in_the_end(tmp_path):
    trials = {trial.label: trial for trial in planned(parse(["recipe=a,deadly,b", "campaign.repeats=1"]))}
    assert [go_elsewhere(tmp_path, trials) for _ in range(MOST_KILLS + 1)] == [*[-signal.SIGKILL] * MOST_KILLS, 0]
    assert starts(tmp_path) == {"a auto 1": 1, "deadly auto 1": MOST_KILLS, "b auto 1": 1}
    events, _ = read(tmp_path / "campaign.jsonl")
    standing = standing_of(trials, events, tmp_path)
    (deadly,) = [one for one in standing.values() if one.is_failed]
    assert deadly.why.startswith("the campaign was killed while it ran, from outside or for host memory")
    assert [event["outcome"] for event in events if event["event"] == "end"] == [
        *("complete", "killed", "killed", "complete", *["killed"] * (MOST_KILLS - 2)),
    ]


@pytest.mark.parametrize("num_failures", [0, 1])
def test_a_trial_that_is_killed_less_often_is_neither_lost_nor_counted_twice(tmp_path, num_failures):
    trials = trials_of("cc=off", "campaign.repeats=1")
    with Ledger(tmp_path / "campaign.jsonl") as ledger:
        for attempt in range(MOST_KILLS - 1 + num_failures):
            what = {"key": next(iter(trials)), "token": f"{attempt:08d}"}
            ledger.append("begin", **what)
            ledger.append("end", **what, outcome="failed" if attempt < num_failures else "killed", why="why")
    go(tmp_path, trials)
    assert starts(tmp_path) == {"a off 1": 1}


def test_a_trial_that_takes_the_machine_down_is_told_from_one_that_was_killed(tmp_path):
    trials = {trial.label: trial for trial in planned(parse(["recipe=deadly", "campaign.repeats=1"]))}
    assert go_elsewhere(tmp_path, trials) == -signal.SIGKILL
    path = tmp_path / "campaign.jsonl"
    path.write_text(path.read_text().replace(this_process()["process_start"].partition(":")[0], "an-earlier-boot"))
    with Ledger(path) as ledger:
        ledger.opened("off")
        settle_killed(ledger, tmp_path)
        (deadly,) = standings(ledger.events).values()
    assert (deadly.failures, deadly.is_failed) == ([], False)
    assert deadly.kills[0].startswith("the machine went down while it ran; if that was not its doing")


def test_trials_wait_for_the_mode_that_the_machine_is_not_in_and_brackets_keep_their_order(tmp_path):
    trials = trials_of("cc=off,on", "campaign.repeats=2")
    assert go(tmp_path, trials, mode="off")[0] == "on"
    assert starts(tmp_path) == {"a off 1": 1}
    assert go(tmp_path, trials, mode="off")[0] == "on"
    assert go(tmp_path, trials, mode="on")[0] == "off"
    assert starts(tmp_path) == {"a off 1": 1, "a on 1": 1, "a on 2": 1}
    assert go(tmp_path, trials, mode="off")[0] is None
    assert starts(tmp_path) == {"a off 1": 1, "a on 1": 1, "a on 2": 1, "a off 2": 1}


def test_a_machine_that_is_not_ready_stops_the_campaign_and_fails_no_trial(tmp_path):
    trials = {trial.label: trial for trial in planned(parse(["recipe=badunready", "campaign.repeats=1"]))}
    stand_in = STAND_IN.replace("sys.exit(4", "sys.exit(3")
    with Ledger(tmp_path / "campaign.jsonl") as ledger:
        standing = standing_of(trials, ledger.events, tmp_path)

        def unready(trial):
            return [sys.executable, "-I", "-S", "-c", stand_in, str(tmp_path), "badunready", "1"]

        with pytest.raises(PlatformError, match="out of memory"):
            Campaign(trials, standing, ledger, tmp_path, unready, Quiet()).run("off")
        (standing,) = standings(ledger.events).values()
    assert (standing.failures, standing.open_tokens, standing.is_settled) == ([], [], False)


def test_a_run_whose_directory_is_lost_is_run_again(tmp_path):
    trials = trials_of("cc=off", "campaign.repeats=2")
    go(tmp_path, trials)
    lost = next(tmp_path.glob("*/run.json"))
    lost.unlink()
    lost.parent.rmdir()
    go(tmp_path, trials)
    standing = standing_of(trials, read(tmp_path / "campaign.jsonl")[0], tmp_path)
    assert all(one.run and is_complete(tmp_path / one.run) for one in standing.values())
    assert sorted(starts(tmp_path).values()) == [1, 2]


def test_a_partial_record_left_by_a_kill_is_no_run_and_its_trial_is_tried_again(tmp_path):
    trials = trials_of("cc=off", "campaign.repeats=1")
    with Ledger(tmp_path / "campaign.jsonl") as ledger:
        ledger.append("begin", key=next(iter(trials)), token="abcd1234")
        run_dir = tmp_path / "20261124-000000-a-off-abcd1234"
        run_dir.mkdir()
        (run_dir / "run.json").write_text(json.dumps({"status": "partial", "failure": "still running"}))
        assert settle_killed(ledger, tmp_path) == 1
        assert settle_killed(ledger, tmp_path) == 0
        (standing,) = standings(ledger.events).values()
    assert (standing.run, standing.failures, len(standing.kills), standing.is_settled) == (None, [], 1, False)


def test_an_attempt_that_ended_before_its_first_record_names_no_run(tmp_path):
    trials = {trial.label: trial for trial in planned(parse(["recipe=early", "campaign.repeats=1"]))}
    go(tmp_path, trials)
    ends = [event for event in read(tmp_path / "campaign.jsonl")[0] if event["event"] == "end"]
    why = "it ended with exit code 9 and said nothing"
    assert [(one["outcome"], one["run"], one["why"]) for one in ends] == [("failed", None, why)] * 2


@pytest.mark.parametrize("has_record", [False, True])
def test_a_killed_attempt_names_its_run_where_there_is_a_record_of_one(tmp_path, has_record):
    run_dir = tmp_path / "20261124-000000-a-off-abcd1234"
    run_dir.mkdir()
    if has_record:
        (run_dir / "run.json").write_text(json.dumps({"status": "partial"}))
    with Ledger(tmp_path / "campaign.jsonl") as ledger:
        ledger.append("begin", key=next(iter(trials_of("cc=off", "campaign.repeats=1"))), token="abcd1234")
        settle_killed(ledger, tmp_path)
    events, _ = read(tmp_path / "campaign.jsonl")
    assert (events[-1]["outcome"], events[-1]["run"]) == ("killed", run_dir.name if has_record else None)


def test_half_a_line_is_left_out_and_what_follows_is_whole(tmp_path):
    path = tmp_path / "campaign.jsonl"
    with Ledger(path) as ledger:
        ledger.opened("off")
    path.write_bytes(path.read_bytes() + b'{"event": "begin", "key": "a\xff')
    with Ledger(path) as ledger:
        assert ledger.damaged == [2]
        ledger.opened("on")
    events, damaged = read(path)
    assert ([event["event"] for event in events], damaged) == (["opened", "opened"], [2])


def test_a_campaign_began_in_the_mode_in_which_the_first_of_its_own_trials_did(tmp_path):
    with Ledger(tmp_path / "campaign.jsonl") as ledger:
        assert ledger.opened("on", {"another's"}) == "on"
        ledger.append("begin", key="another's", token="aaaa")
    with Ledger(tmp_path / "campaign.jsonl") as ledger:
        assert ledger.opened("off", {"mine"}) == "off"
        ledger.append("begin", key="mine", token="bbbb")
    with Ledger(tmp_path / "campaign.jsonl") as ledger:
        assert ledger.opened("on", {"mine"}) == "off"


@pytest.mark.parametrize("text", ["# Notes\n\nmine\n", '{"kind": "tolls"}\n'])
def test_a_file_that_is_no_ledger_is_refused_and_left_as_it_was(tmp_path, text):
    path = tmp_path / "notes.md"
    path.write_text(text)
    with pytest.raises(RequestError, match=r"tune.ledger=.*notes.md is no ledger.*give a file of its own"):
        Ledger(path, verb="tune")
    with pytest.raises(RequestError, match=r"campaign.ledger=.*is no ledger"):
        read(path)
    assert path.read_text() == text


def test_a_ledger_whose_first_line_was_cut_short_goes_on(tmp_path):
    path = tmp_path / "campaign.jsonl"
    path.write_text('{"event": "ope')
    with Ledger(path) as ledger:
        assert (ledger.damaged, ledger.opened("off")) == ([1], "off")


def test_two_campaigns_at_once_on_one_ledger_are_refused_by_name(tmp_path):
    with Ledger(tmp_path / "campaign.jsonl") as ledger:
        ledger.opened("off")
        with pytest.raises(RequestError, match=r"another campaign is at it, process \d+ on .*campaign.ledger=FILE"):
            Ledger(tmp_path / "campaign.jsonl", lock_wait_s=0)


def test_a_ledger_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(RequestError, match="cannot be written"):
        Ledger(tmp_path)
