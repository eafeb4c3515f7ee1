"""A real campaign on this CPU, killed and stopped at random moments, and resumed by the same command until its end."""

import json
import os
import random
import signal
import time

import pytest

TINY = (
    *("recipe=tiny_llama_peft", "data.seq_len=64", "launch.nproc_per_node=1", "track=none"),
    *("measure.warmup=2", "measure.steps=16", "cc.blocks=2"),
)
CAMPAIGN = ("campaign", *TINY, "cc=off,emulated", "tolls=b300", "campaign.repeats=2", "campaign.allow=steady")
KILLS = 3


def events(path, kind):
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if line["event"] == kind]


@pytest.fixture(scope="module")
def campaign(start_cctrain, tmp_path_factory):
    """The starts of one campaign, the last of which came to its end; moments differ from one test run to the next."""
    root = tmp_path_factory.mktemp("campaign")
    moments, starts = random.Random(os.getpid()), []
    for number in range(KILLS):
        begun = len(events(root / "campaign.jsonl", "begin"))
        start = start_cctrain(*CAMPAIGN, run_root=root)
        # The one that was killed is tried once more: it must not be killed again.
        most = begun + (number > 0)
        start.wait_until(lambda most=most: len(events(root / "campaign.jsonl", "begin")) > most, "nothing begun")
        time.sleep(moments.uniform(0.0, 4.0))
        start.process.send_signal(signal.SIGINT if number == KILLS - 1 else signal.SIGKILL)
        starts.append(start.finish())
    starts.append(start_cctrain(*CAMPAIGN, run_root=root).finish(300))
    return root, starts


def test_every_trial_is_complete_exactly_once(campaign):
    root, starts = campaign
    assert starts[-1].code == 0, starts[-1].stderr
    ended = [event for event in events(root / "campaign.jsonl", "end") if event["outcome"] == "complete"]
    assert len({event["key"] for event in ended}) == len(ended) == 4
    records = [json.loads(path.read_text()) for path in root.glob("*/run.json")]
    assert sorted(record["mode"] for record in records if record["status"] == "complete") == [
        *("emulated", "emulated", "off", "off"),
    ]
    assert {event["run"] for event in ended} == {
        record["run_id"] for record in records if record["status"] == "complete"
    }


def test_what_was_killed_is_partial_and_named_in_the_ledger(campaign):
    root, _ = campaign
    others = [event for event in events(root / "campaign.jsonl", "end") if event["outcome"] != "complete"]
    assert {event["outcome"] for event in others} <= {"interrupted", "killed"}
    for event in others:
        if event["run"]:
            assert json.loads((root / event["run"] / "run.json").read_text())["status"] == "partial"
    begun = [event["token"] for event in events(root / "campaign.jsonl", "begin")]
    ended = [event["token"] for event in events(root / "campaign.jsonl", "end")]
    assert sorted(begun) == sorted(ended)


def test_a_ctrl_c_says_how_to_go_on_and_leaves_nothing_running(campaign):
    _, starts = campaign
    stopped = starts[-2]
    if stopped.code == 0:
        pytest.skip("all trials were over before the signal came")
    assert stopped.code == 130, stopped.stderr
    assert "the same command goes on" in stopped.stderr
    assert stopped.last_line["num_left"] > 0


def test_it_ends_in_the_comparison_of_its_runs(campaign):
    root, starts = campaign
    last = starts[-1].last_line
    assert (last["num_complete"], last["num_left"], last["failed"]) == (4, 0, {})
    assert "emulated b300 / own plain steps" in starts[-1].stdout
    (compared,) = last["comparison"]
    (row,) = compared["comparisons"]
    assert row["num_runs"] == 2
    assert {str(root / run) for run in row["other_runs"]} < set(last["runs"])
    assert "left, about" in "".join(start.stderr for start in starts)


def test_the_same_command_after_its_end_runs_nothing_and_compares_again(campaign, start_cctrain):
    root, starts = campaign
    again = start_cctrain(*CAMPAIGN, run_root=root).finish()
    assert again.code == 0
    assert again.last_line["comparison"] == starts[-1].last_line["comparison"]
    assert again.last_line["runs"] == starts[-1].last_line["runs"]


def test_trials_that_cannot_start_are_tried_twice_and_recorded(start_cctrain, tmp_path):
    failing = ("recipe=tiny_llama_peft", "data=jsonl", "data.path=one.jsonl,two.jsonl", "campaign.repeats=1")
    run = start_cctrain("campaign", *failing, run_root=tmp_path).finish()
    assert run.code == 4, run.stderr
    assert [event["attempt"] for event in events(tmp_path / "campaign.jsonl", "begin")] == [1, 2, 1, 2]
    assert {"one.jsonl" in why or "two.jsonl" in why for why in run.last_line["failed"].values()} == {True}
    assert (run.last_line["num_failed"], run.last_line["num_left"]) == (2, 0)


def test_a_trial_during_which_the_campaign_was_killed_twice_is_recorded_and_the_rest_goes_on(start_cctrain, tmp_path):
    ledger, two = tmp_path / "campaign.jsonl", ("campaign", *TINY[:-1], "cc=off", "campaign.repeats=2")
    for kill in (1, 2):
        start = start_cctrain(*two, run_root=tmp_path)
        start.wait_until(lambda kill=kill: len(events(ledger, "begin")) == kill, "nothing begun")
        start.process.kill()
        start.finish()
    last = start_cctrain(*two, "campaign.allow=steady", run_root=tmp_path).finish()
    assert last.code == 4, last.stderr
    assert (last.last_line["num_failed"], last.last_line["num_complete"], last.last_line["num_left"]) == (1, 1, 0)
    (why,) = last.last_line["failed"].values()
    assert "the campaign was killed while it ran" in why


def test_a_mode_that_this_machine_is_not_in_waits_and_what_to_do_is_said(start_cctrain, tmp_path):
    waiting = start_cctrain("campaign", *TINY[:-1], "cc=on", "campaign.repeats=1", run_root=tmp_path).finish()
    assert waiting.code == 3
    assert "1 trial left, the next with CC on" in waiting.stderr
    assert "--set-cc-mode=on" in waiting.stderr
    assert "give the same command again" in waiting.stderr
