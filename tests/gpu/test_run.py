"""A run on a GPU, two layers of the 8B shape: the record against what is known by other means."""

import itertools
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

BATCH, SEQ_LEN, WARMUP, STEPS = 2, 512, 5, 40


@pytest.fixture(scope="module", params=["automodel", "hf"])
def run(tmp_path_factory, request):
    """The record of a finished run, its samples' first lines and the run's directory."""
    overrides = [
        *(
            "recipe=llama8b_peft",
            f"engine={request.param}",
            "weights=random",
            "data=synthetic",
            f"data.seq_len={SEQ_LEN}",
        ),
        *(f"measure.warmup={WARMUP}", f"measure.steps={STEPS}", "+train.model.config.num_hidden_layers=2"),
        f"train.step_scheduler.local_batch_size={BATCH}",
        f"train.step_scheduler.global_batch_size={2 * BATCH}",
        f"run_root={tmp_path_factory.mktemp('runs')}",
        "track=none",
    ]
    done = subprocess.run([sys.executable, "-m", "cctrain", *overrides], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run_dir = Path(json.loads(done.stdout.splitlines()[-1])["run_dir"])
    return json.loads((run_dir / "run.json").read_text()), read_lines(run_dir / "samples" / "rank0.jsonl"), run_dir


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_steps_are_timed_by_the_gpus_clock_and_phases_add_up(run):
    record, samples, _ = run
    assert samples[1]["clock"] == "globaltimer"
    for step in record["steps"]:
        assert sum(step["phases_s"].values()) == pytest.approx(step["step_time_s"])
        assert all(seconds >= 0 for seconds in step["phases_s"].values())


def test_micro_batches_add_up_to_their_phases(run):
    record, _, _ = run
    for step in record["steps"]:
        for phase, parts in step["micro_batches_s"].items():
            assert len(parts) == 2
            assert sum(parts) == pytest.approx(step["phases_s"][phase])


def test_steps_follow_each_other_on_the_hosts_clock(run):
    record, _, _ = run
    steps = record["steps"]
    for step, following in itertools.pairwise(steps):
        assert following["rank_begin_s"][0] == pytest.approx(step["rank_begin_s"][0] + step["step_time_s"], abs=1e-5)
    started = datetime.fromisoformat(record["started_at"]).timestamp()
    ended = datetime.fromisoformat(record["ended_at"]).timestamp()
    assert started < steps[0]["rank_begin_s"][0] < steps[-1]["rank_begin_s"][0] < ended + 1


def test_energy_is_power_times_time_and_utilization_a_fraction(run):
    record, _, _ = run
    state, summary = record["gpu_state"], record["summary"]
    power_w = state["total"]["energy_j"] / state["seconds"]
    assert power_w == pytest.approx(state["total"]["power_w"], rel=0.3)
    real_tokens = summary["real_tokens_per_s_per_gpu"]
    assert summary["joules_per_token"] == pytest.approx(power_w / real_tokens, rel=0.01)
    assert 0.001 < summary["mfu"] <= summary["hfu"] < 1


def test_steps_add_up_to_the_wall_time_between_automodels_own_log_lines(run):
    record, _, run_dir = run
    if record["engine"] == "hf":
        pytest.skip("it keeps no log of its own")
    stamps = [datetime.fromisoformat(line["timestamp"]) for line in read_lines(run_dir / "checkpoints/training.jsonl")]
    steps = sum(step["step_time_s"] for step in record["steps"][WARMUP + 1 :])
    assert steps == pytest.approx((stamps[-1] - stamps[WARMUP]).total_seconds(), rel=0.02)


def test_tokens_are_those_that_were_asked_for(run):
    record, _, _ = run
    assert {step["padded_tokens"] for step in record["steps"]} == {2 * BATCH * SEQ_LEN}
    assert {step["real_tokens"] for step in record["steps"]} == {2 * BATCH * SEQ_LEN}


def test_the_peak_of_memory_is_more_than_what_lies_there_at_rest(run):
    record, _, _ = run
    hidden, intermediate, vocabulary, kv = 4096, 14336, 128256, 1024
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * intermediate
    weights_gib = 2 * (2 * layer + 2 * hidden * vocabulary) / 2**30
    logits_gib = 2 * BATCH * SEQ_LEN * vocabulary / 2**30
    assert record["summary"]["peak_memory_gib"] > weights_gib + logits_gib
