"""What a run measures, on two gloo ranks: phases of micro-batches, FLOPs, the seed's figure, and when it stops."""

import itertools
import json
import re
import statistics

import pytest


@pytest.fixture(scope="module")
def run(start_cctrain):
    """Two micro-batches a step on each of two ranks; told to stop as the parent tells them, once there are 30 steps."""
    micro_batches = ("train.step_scheduler.local_batch_size=1", "train.step_scheduler.global_batch_size=4")
    auto = ("measure.steps=auto", "measure.max_steps=100000", "data.seq_len=64")
    run = start_cctrain("recipe=tiny_llama_peft", "measure=seed", *auto, *micro_batches)
    run.wait_until(lambda: bool(run.run_dirs) and len(samples(run, 0)) >= 30, "no 30 steps")
    (run.run_dir / "stop.json").write_text('{"why": "enough"}')
    return run.finish()


def test_ranks_that_are_told_to_stop_do_so_with_the_same_step(run):
    assert run.code == 0, run.stderr
    record = run.record
    assert (record["status"], record["notes"]) == ("complete", ["enough"])
    counts = [len(samples(run, rank)) for rank in (0, 1)]
    assert 30 <= counts[0] == counts[1] == len(record["steps"]) < 10000


def samples(run, rank):
    path = run.run_dir / "samples" / f"rank{rank}.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if '"step"' in line]


def test_phases_are_kept_apart_by_micro_batch(run):
    for step in run.record["steps"]:
        parts = step["micro_batches_s"]
        assert set(parts) == {"forward", "backward"}
        for phase, spans in parts.items():
            assert len(spans) == 2
            assert sum(spans) == pytest.approx(step["phases_s"][phase])


def test_every_rank_begins_a_step_where_the_one_before_ended(run):
    steps = run.record["steps"]
    for rank in (0, 1):
        for step, following in itertools.pairwise(steps):
            end = step["rank_begin_s"][rank] + step["rank_step_time_s"][rank]
            assert following["rank_begin_s"][rank] == pytest.approx(end, abs=1e-5)


def test_flops_are_those_of_the_tokens_and_an_unknown_device_gives_no_utilization(run):
    record = run.record
    for step in record["steps"]:
        assert 0 < step["model_flops"] <= step["hardware_flops"]
        # Llama's 4 FLOPs a weight and token, of the tiny model's matrices
        weights = 2 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256) + 128 * 1024
        assert step["hardware_flops"] / step["padded_tokens"] == pytest.approx(4 * weights, rel=0.15)
    assert record["summary"]["mfu"] is None
    assert record["gpu_state"] is None


def test_the_seeds_figure_is_what_automodels_own_log_says(run):
    log = (run.run_dir / "logs" / "rank0.log").read_text()
    printed = [(int(step), float(rate)) for step, rate in re.findall(r"step (\d+) \| epoch.*?\(([\d.]+)/gpu\)", log)]
    seed = run.record["summary"]["seed"]
    assert seed["tokens_per_s_per_gpu"] == pytest.approx(
        statistics.median(rate for step, rate in printed if step >= 10), rel=1e-3
    )
    assert seed["engine_version"] == "0.7.0"
    assert "of the padded tokens" in run.stdout
