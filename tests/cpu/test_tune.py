"""Real searches of a tiny recipe on this CPU: to their end, killed and resumed, and with a trial that takes too long.
What is fastest on these cores says nothing of any GPU; that it is found, and that nothing is left behind, does.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TINY = (
    *("recipe=tiny_llama_peft", "data=synthetic", "launch.nproc_per_node=1", "track=none"),
    *("measure.warmup=1", "tune.over=[micro_batch]", "train.step_scheduler.local_batch_size=2"),
)
SEARCH = (
    *("tune", *TINY, "data.seq_len=64", "train.step_scheduler.global_batch_size=8"),
    *("cc=emulated", "tolls=b300", "cc.blocks=2", "measure.steps=16", "tune.max_trials=3"),
)


def events(root, kind):
    path = root / "tune.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if line["event"] == kind]


@pytest.fixture(scope="module")
def search(start_cctrain, tmp_path_factory):
    """A search killed in its second trial, and the same command after it."""
    root = tmp_path_factory.mktemp("tune")
    killed = start_cctrain(*SEARCH, run_root=root)
    killed.wait_until(lambda: len(events(root, "begin")) == 2, "no second trial")
    killed.process.kill()
    killed.finish()
    killed.wait_until_gone()
    return root, start_cctrain(*SEARCH, run_root=root).finish(300)


def test_a_search_finds_the_fastest_of_what_it_tried_with_its_gain(search):
    _, run = search
    assert run.code == 0, run.stderr
    facts = run.last_line
    assert facts["trials"][0]["point"]["micro_batch"] == 2
    assert 2 <= facts["num_trials"] <= 3
    rates = [trial["rate"] for trial in facts["trials"]]
    assert facts["real_tokens_per_s_per_gpu"] == max(rates)
    assert facts["gain"] == pytest.approx(max(rates) / rates[0])
    fastest = facts["trials"][rates.index(max(rates))]["point"]["micro_batch"]
    assert facts["chosen"] == [f"train.step_scheduler.local_batch_size={fastest}"] * (fastest != 2)
    assert {trial["point"]["global_batch"] for trial in facts["trials"]} == {8}


def test_a_trial_is_a_run_of_its_own_judged_by_its_tolled_steps(search):
    root, run = search
    for trial in run.last_line["trials"]:
        record = json.loads((root / trial["run"] / "run.json").read_text())
        assert record["identity"]["batch"]["local_batch_size"] == trial["point"]["micro_batch"]
        assert trial["rate"] == record["summary"]["real_tokens_per_s_per_gpu"]
        assert trial["keep_ratio"] == record["keep_ratio"]["value"]
        assert trial["real_tokens"] == pytest.approx(8 * 64)
        assert trial["crossings"] > 1000


def test_after_a_kill_finished_trials_are_not_repeated(search):
    root, run = search
    complete = [event for event in events(root, "end") if event["outcome"] == "complete"]
    assert len({event["key"] for event in complete}) == len(complete) == run.last_line["num_trials"]
    assert [event["outcome"] for event in events(root, "end")].count("killed") == 1
    begun = [event["token"] for event in events(root, "begin")]
    assert sorted(begun) == sorted(event["token"] for event in events(root, "end"))


def test_it_says_how_far_it_is_and_leaves_its_report(search):
    root, run = search
    assert "trial 2 of at most 3" in run.stderr
    assert "at most 1 left, about" in run.stderr
    assert "never a measurement of CC" in run.stdout.replace("\n", " ")
    assert (root / "tune-tiny_llama_peft.html").exists()


def test_the_same_command_again_runs_nothing_and_with_wandb_the_search_is_a_run_there(search, start_cctrain, tmp_path):
    root, run = search
    begun = len(events(root, "begin"))
    tracked = tuple(one.replace("track=none", "track=wandb") for one in SEARCH)
    there = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    again = start_cctrain(*tracked, run_root=root, **there).finish()
    assert again.code == 0, again.stderr
    assert len(events(root, "begin")) == begun
    assert again.last_line["trials"] == run.last_line["trials"]
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    inspect = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--summary", "--json", folder]
    found = json.loads(subprocess.check_output(inspect))
    assert found["name"] == "tune tiny_llama_peft (emulated)"
    assert found["summary"]["tune/gain"] == pytest.approx(run.last_line["gain"])
    assert {"trials", "figures/tune-tiny_llama_peft-by_micro_batch"} <= found["summary"].keys()


def test_a_trial_that_takes_too_long_ends_at_its_deadline_and_that_is_said(start_cctrain, tmp_path):
    run = start_cctrain("tune", *TINY, "tune.max_trials=1", "tune.trial_timeout_s=1", run_root=tmp_path).finish()
    assert run.code == 4, run.stderr
    (trial,) = run.last_line["trials"]
    assert trial["outcome"] == "failed"
    assert trial["why"].startswith("ended after its deadline of 1 s (")
    assert run.processes() == []
