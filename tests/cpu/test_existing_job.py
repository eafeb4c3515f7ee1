"""cctrain started as a rank by somebody else's torchrun."""

import os
import signal

import pytest

from tests.cpu.conftest import free_ports

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def in_torchrun(run_cctrain):
    data = ("data=synthetic", "data.seq_len=64", "measure.warmup=2", "measure.steps=4")
    return run_cctrain("recipe=tiny_llama_peft", *data, launcher=TORCHRUN)


def test_ranks_that_torchrun_started_share_one_run(in_torchrun):
    assert in_torchrun.code == 0, in_torchrun.stderr
    assert in_torchrun.last_line["run_dir"] == str(in_torchrun.run_dir)
    assert in_torchrun.record["status"] == "complete"
    assert in_torchrun.record["identity"]["layout"]["world"] == 2
    assert [len(step["rank_step_time_s"]) for step in in_torchrun.record["steps"]] == [2] * 6
    assert in_torchrun.processes() == []


def test_a_job_leaves_nothing_beside_the_run_directory(in_torchrun):
    assert [path.name for path in in_torchrun.run_root.iterdir()] == [in_torchrun.run_dir.name]


def test_token_counts_are_those_counted_by_hand(in_torchrun):
    for step in in_torchrun.record["steps"]:
        assert step["padded_tokens"] == step["real_tokens"] == 4 * 64  # global batch of 4, samples of 64
        assert 0.8 * 4 * 64 < step["label_tokens"] < 4 * 64  # the loss is on the answer, nearly all of a sample


def test_a_dry_run_in_whatever_words_is_shown_once_and_ends_every_rank(run_cctrain):
    run = run_cctrain("recipe=tiny_llama_peft", "dry_run=yes", launcher=TORCHRUN)
    assert run.code == 0, run.stderr
    assert run.last_line["dry_run"]


def test_a_request_that_is_refused_ends_every_rank(run_cctrain):
    run = run_cctrain("recipe=tiny_llama_peft", "train.step_scheduler.local_batch_size=3", launcher=TORCHRUN)
    assert run.code != 0
    assert "multiple of 6" in run.stderr
    assert run.processes() == []
    assert list(run.run_root.iterdir()) == []


def test_the_record_is_finished_although_the_first_rank_was_killed(start_cctrain):
    endless = ("data=recipe", "measure.warmup=5", "measure.steps=5000")
    run = start_cctrain("recipe=tiny_llama_peft", *endless, launcher=TORCHRUN)
    run.wait_for_steps(4)
    steps = run.steps_older_than(2)
    os.kill(run.pids()[0], signal.SIGKILL)
    run.wait_until_gone()
    assert run.finish().code != 0
    assert run.record["status"] == "partial"
    assert {step["step"] for step in run.record["steps"]} >= steps
    assert "rank 0 was killed" in run.stderr


def test_a_first_rank_that_is_stopped_before_it_trains_leaves_no_parent_behind(start_cctrain):
    job = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    run = start_cctrain("recipe=tiny_llama_peft", **job)  # its peer never comes
    run.wait_until(lambda: any(run.run_root.glob("*/config.json")), "no run directory")
    run.process.kill()
    run.wait_until_gone()
    assert run.record["status"] == "partial"
    assert not (run.run_dir / "running.json").exists()
