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


def events(path, kind):
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if line["event"] == kind]


@pytest.fixture(scope="module")
def campaign(start_cctrain, tmp_path_factory):
    """The starts of one campaign: killed in its first trial, stopped in the one after it, and come to its end. Moments
    differ from one test run to the next."""
    root = tmp_path_factory.mktemp("campaign")
    seed, starts = os.getpid(), []
    print("moments are those of seed", seed)
    moments = random.Random(seed)
    # The one that was killed is the second to begin, too: it must not be stopped again.
    for stop, last in ((signal.SIGKILL, 1), (signal.SIGINT, 3)):
        start = start_cctrain(*CAMPAIGN, run_root=root)
        start.wait_until(lambda last=last: len(events(root / "campaign.jsonl", "begin")) == last, "not begun")
        time.sleep(moments.uniform(0.0, 1.5))  # two imports of torch, one after the other, take any trial longer
        start.process.send_signal(stop)
        starts.append(start.finish())
    starts[-1].wait_until_gone()
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
    assert [event["outcome"] for event in others] == ["killed", "interrupted"]
    for event in others:
        if event["run"]:
            assert json.loads((root / event["run"] / "run.json").read_text())["status"] == "partial"
    begun = [event["token"] for event in events(root / "campaign.jsonl", "begin")]
    ended = [event["token"] for event in events(root / "campaign.jsonl", "end")]
    assert sorted(begun) == sorted(ended)


def test_a_ctrl_c_says_how_to_go_on_and_leaves_nothing_running(campaign):
    _, starts = campaign
    stopped = starts[-2]
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


def test_a_start_says_what_is_done_and_where_the_log_of_what_runs_is(campaign):
    root, starts = campaign
    assert "note: 1 of 4 trials already done" in starts[-1].stderr
    logs = [line.split("log: ")[1] for line in starts[-1].stderr.splitlines() if "log: " in line]
    assert len(logs) == 3
    assert all((root / log).is_file() for log in logs)


def test_the_same_command_after_its_end_runs_nothing_and_compares_again(campaign, start_cctrain):
    root, starts = campaign
    again = start_cctrain(*CAMPAIGN, run_root=root).finish()
    assert again.code == 0
    assert again.last_line["comparison"] == starts[-1].last_line["comparison"]
    assert again.last_line["runs"] == starts[-1].last_line["runs"]
