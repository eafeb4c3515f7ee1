"""launch=nemo_run: the tiny recipe on NeMo-Run's local executor."""

import importlib.util

import pytest

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("nemo_run"), reason="the extra nemo_run is not installed")
SETTINGS = (
    *("recipe=tiny_llama_peft", "data=synthetic", "data.seq_len=64", "measure.warmup=2", "measure.steps=4"),
    *("launch=nemo_run", "launch.nproc_per_node=2"),
)


def test_the_local_executor_trains_and_leaves_one_record(run_cctrain, tmp_path):
    run = run_cctrain(*SETTINGS, NEMORUN_HOME=str(tmp_path))
    assert run.code == 0, run.stderr
    assert run.last_line["status"] == "SUCCEEDED"
    assert run.record["status"] == "complete"
    assert [len(step["rank_step_time_s"]) for step in run.record["steps"]] == [2] * 6


def test_a_dry_run_starts_nothing(run_cctrain, tmp_path):
    run = run_cctrain(*SETTINGS, "dry_run=true", NEMORUN_HOME=str(tmp_path))
    assert (run.code, run.last_line["executor"]) == (0, "local"), run.stderr
    assert not run.run_root.exists()


def test_an_executor_or_an_option_it_lacks_is_refused(run_cctrain, tmp_path):
    run = run_cctrain(*SETTINGS, "launch.executor=nowhere", NEMORUN_HOME=str(tmp_path))
    assert run.code == 2
    assert "launch.executor=nowhere: allowed is dgxcloud, docker" in run.stderr
    run = run_cctrain(*SETTINGS, 'launch.options=["acount=me"]', NEMORUN_HOME=str(tmp_path))
    assert (run.code, "LocalExecutor has no acount" in run.stderr) == (2, True)
