"""Real searches of a tiny recipe on this CPU: to their end, killed and resumed, out of memory, and with a trial that
hangs. What is fastest on these cores says nothing of any GPU; that it is found, and that nothing is left behind, does.
"""

import json
import os
import signal
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
LIMIT_KIB = 4_300_000
"""Address space of every process: a rank with its libraries takes 3 GB of it before it trains."""
DEADLINE_S = 60


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


def test_a_trial_that_runs_out_of_memory_costs_one_trial_and_no_more(start_cctrain, tmp_path):
    """A real limit: 256 rows of 256 tokens at once want several times what the processes may have."""
    settings = ("data.seq_len=256", "train.step_scheduler.global_batch_size=256", "measure.steps=2")
    first = tuple(one.replace("local_batch_size=2", "local_batch_size=8") for one in TINY)
    inside = ("bash", "-c", f'ulimit -v {LIMIT_KIB}; exec "$@"', "bash")
    run = start_cctrain("tune", *first, *settings, "tune.max_trials=3", run_root=tmp_path, inside=inside).finish(400)
    assert run.code == 0, run.stderr
    trials = run.last_line["trials"]
    outcomes = [trial["outcome"] for trial in trials]
    assert outcomes[0] == "complete"
    assert "out of memory" in outcomes[1:]
    assert len(events(tmp_path, "begin")) == len(trials) <= 3
    ran_out = next(trial for trial in trials if trial["outcome"] == "out of memory")
    record = json.loads((tmp_path / ran_out["run"] / "run.json").read_text())
    assert (record["status"], "out of host memory" in record["failure"]) == ("partial", True)
    assert run.last_line["real_tokens_per_s_per_gpu"] == max(trial["rate"] or 0 for trial in trials)
    assert run.processes() == []


def test_a_trial_that_hangs_ends_at_its_deadline_and_the_search_goes_on(start_cctrain, tmp_path):
    settings = ("data.seq_len=64", "train.step_scheduler.global_batch_size=4", "measure.steps=10", "tune.max_trials=2")
    run = start_cctrain("tune", *TINY, *settings, f"tune.trial_timeout_s={DEADLINE_S}", run_root=tmp_path)
    run.wait_until(lambda: bool(list(tmp_path.glob("*/samples/rank0.jsonl"))) and bool(run.pids()), "no rank")
    os.kill(run.pids()[0], signal.SIGSTOP)
    run.finish(400)
    assert run.code == 0, run.stderr
    hung, other = run.last_line["trials"]
    assert (hung["outcome"], other["outcome"]) == ("failed", "complete")
    assert f"ended after its deadline of {DEADLINE_S} s" in hung["why"]
    assert run.last_line["gain"] is None
    assert "gain: unknown" in run.stdout
    assert run.processes() == []
