"""What goes wrong once ranks run. However it ends: exit code 4, a readable partial record, and nothing left alive."""

import contextlib
import json
import os
import signal
import subprocess

import pytest
import torch

from cctrain.worker import explained

ENDLESS = ("data=recipe", "measure.warmup=5", "measure.steps=5000")
TWO_RANKS = ("recipe=tiny_llama_peft", "launch.nproc_per_node=2", *ENDLESS)
ONE_RANK = ("recipe=tiny_llama_sft", "launch.nproc_per_node=1", *ENDLESS)
TRAINED_S = 4.0


def assert_failed_as_promised(run, steps, because):
    """`steps`: those finished more than 2 s before the end. `because`: words of the failure."""
    assert run.processes() == []
    assert run.code == 4, run.stderr
    assert run.record["status"] == "partial"
    assert because in run.record["failure"]
    assert because in run.stderr.splitlines()[-1]
    assert {step["step"] for step in run.record["steps"]} >= steps
    assert run.last_line["run_dir"] == str(run.run_dir)
    assert (run.last_line["status"], run.last_line["exit_code"]) == ("partial", 4)
    assert because in run.last_line["error"]
    assert not (run.run_dir / "running.json").exists()


@pytest.fixture
def trained(start_cctrain):
    """Start a run and wait until its ranks have trained for some seconds."""

    def start(*overrides, **options):
        run = start_cctrain(*overrides, **options)
        run.wait_for_steps(TRAINED_S)
        return run

    return start


def test_a_killed_rank_ends_the_run(trained):
    run = trained(*TWO_RANKS)
    steps = run.steps_older_than(2)
    os.kill(run.pids()[1], signal.SIGKILL)
    run.wait_until_gone()
    assert_failed_as_promised(run.finish(), steps, because="rank 1 was killed")
    assert steps
    assert "rank1.log" in run.stderr


def test_a_rank_that_hangs_ends_the_run_at_the_deadline(trained):
    run = trained(*TWO_RANKS, "measure.step_timeout_s=6")
    steps = run.steps_older_than(2)
    os.kill(run.pids()[1], signal.SIGSTOP)
    run.wait_until_gone()
    assert_failed_as_promised(run.finish(), steps, because="no step (measure.step_timeout_s) for 6 s")
    assert "last lines of" in run.stderr
    assert "most recent call first" in (run.run_dir / "logs" / "rank0.log").read_text()  # where the other one waits


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_before_the_first_step_is_a_stop_too(start_cctrain, stop):
    run = start_cctrain(*TWO_RANKS)
    run.wait_until(lambda: len(run.run_dirs) == 1 and len(run.pids()) == 2, "no ranks")
    run.process.send_signal(stop)
    run.wait_until_gone()
    assert_failed_as_promised(run.finish(), set(), because="stopped by Ctrl-C, SIGTERM")
    assert "Traceback" not in run.stderr
    assert run.record["steps"] == []
    assert run.last_line["tokens_per_s_per_gpu"] is None


def test_a_loss_that_is_no_number_ends_the_run(run_cctrain):
    run = run_cctrain(*ONE_RANK, "train.optimizer.lr=1e30", "train.clip_grad_norm.max_norm=1e30")
    assert_failed_as_promised(run, {1}, because="is nan; is train.optimizer.lr too high?")
    assert run.record["steps"][-1]["loss"] is None
    assert "last lines of" in run.stderr


def test_torchs_own_words_for_no_more_memory_are_told_as_such():
    with pytest.raises(RuntimeError) as ran_out:
        torch.empty(1 << 60)
    assert explained(ran_out.value)["kind"] == "out_of_memory"


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("needs the right to mount a disk of its own")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_ends_the_run_and_what_was_written_stays_readable(trained, small_disk):
    run = trained(*TWO_RANKS, run_root=small_disk / "runs")
    steps = run.steps_older_than(2)
    with (small_disk / "other").open("wb", buffering=0) as other, contextlib.suppress(OSError):
        while True:
            other.write(bytes(4096))
    run.wait_until_gone()
    assert_failed_as_promised(run.finish(), steps, because="space left on")
    for samples in run.run_dir.glob("samples/*.jsonl"):
        *whole, _ = samples.read_text().split("\n")
        assert steps <= {json.loads(line).get("step") for line in whole[:-1]}


def test_adapters_that_match_no_layer_end_the_run_with_the_key_that_names_them(run_cctrain):
    run = run_cctrain("recipe=tiny_llama_peft", "launch.nproc_per_node=1", "train.peft.target_modules=[nothing]")
    assert_failed_as_promised(run, set(), because="train.peft.target_modules may match no layer")
