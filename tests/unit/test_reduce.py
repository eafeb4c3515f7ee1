"""Samples of the ranks to steps and summary."""

import dataclasses
import json

import pytest

from cctrain import flops, reduce, samples
from cctrain.packaged import RECIPES
from cctrain.reduce import of_the_ranks, reduce_samples, summarize


def write_rank(run_dir, rank, seconds, *, world=2, data_rank=None, tokens=100, end=True, cut=False, model=None):
    folder = run_dir / "samples"
    folder.mkdir(exist_ok=True)
    lines = [
        {"event": "start", "rank": rank, "world_size": world},
        {"event": "ready", "data_rank": rank if data_rank is None else data_rank, "model_config": model},
    ]
    for number, time in enumerate(seconds, start=1):
        counts = {"padded_tokens": tokens, "real_tokens": tokens - 10, "label_tokens": 5, "num_images": 1}
        counts["rows"] = [[tokens, [tokens - 10]]]
        facts = {
            "step": number,
            "begin_s": 1e9 + number,
            "step_time_s": time,
            "data_wait_s": 0.01 * rank,
            "loss": 2.0 - 0.01 * number,
        }
        lines.append({**facts, **counts, "phases_s": {"forward": time}})
    if end:
        peaks = {"peak_allocated_bytes": (rank + 1) * 2**30, "peak_reserved_bytes": (rank + 2) * 2**30}
        lines.append({"event": "end", **peaks})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"rank{rank}.jsonl").write_text(text[:-20] if cut else text)


def test_a_step_takes_as_long_as_its_slowest_rank(tmp_path):
    write_rank(tmp_path, 0, [0.2, 0.9])
    write_rank(tmp_path, 1, [0.7, 0.3])
    steps = reduce_samples(tmp_path, warmup=1).steps
    assert [step.step_time_s for step in steps] == [0.7, 0.9]
    assert steps[0].rank_step_time_s == (0.2, 0.7)
    assert [step.is_warmup for step in steps] == [True, False]
    assert steps[0].data_wait_s == 0.01


def test_ranks_that_are_late_in_turn_do_not_make_the_run_longer_than_it_was(tmp_path):
    write_rank(tmp_path, 0, [0.7, 0.3] * 10)
    write_rank(tmp_path, 1, [0.3, 0.7] * 10)
    summary = summarize(reduce_samples(tmp_path, warmup=0).steps, 2, None)
    assert summary.step_time_s.mean == pytest.approx(0.5)
    assert summary.step_time_s.median == 0.7
    assert summary.tokens_per_s_per_gpu.mean == pytest.approx(200 / 0.5 / 2)


def test_steps_of_unequal_length_do_not_blur_a_rate_that_is_the_same_in_all(tmp_path):
    seconds = [0.1 * (1 + number % 7) for number in range(100)]
    write_rank(tmp_path, 0, seconds, world=1)
    steps = [
        dataclasses.replace(step, padded_tokens=round(1000 * step.step_time_s) + step.step % 2)
        for step in reduce_samples(tmp_path, warmup=0).steps
    ]
    low, high = summarize(steps, 1, None).tokens_per_s_per_gpu.ci95
    assert low < summarize(steps, 1, None).tokens_per_s_per_gpu.mean < high
    assert high - low < 0.01 * 1000


def test_ranks_that_share_their_samples_count_them_once(tmp_path):
    for rank in range(4):
        write_rank(tmp_path, rank, [0.5], world=4, data_rank=rank // 2)
    (step,) = reduce_samples(tmp_path, warmup=0).steps
    assert (step.padded_tokens, step.real_tokens, step.label_tokens, step.num_images) == (200, 180, 10, 2)


def test_flops_are_those_of_the_rows_of_every_data_rank_once(tmp_path):
    model = json.loads((RECIPES / "models" / "tiny-llama" / "config.json").read_text())
    for rank in range(4):
        write_rank(tmp_path, rank, [0.5], world=4, data_rank=rank // 2, tokens=100 + rank // 2, model=model)
    (step,) = reduce_samples(tmp_path, warmup=0, recipe={"model": {}}).steps
    shape, rows = flops.shape_of(model), flops.Sequences([100, 101], [[90], [91]])
    assert step.model_flops == flops.model_flops(shape, flops.Training(), rows)
    assert step.hardware_flops == flops.hardware_flops(shape, flops.Training(), rows)


def test_tokens_per_gpu_are_per_rank_of_the_whole_world(tmp_path):
    for rank in range(4):
        write_rank(tmp_path, rank, [0.5] * 20, world=4, data_rank=rank // 2)
    reduced = reduce_samples(tmp_path, warmup=5)
    summary = of_the_ranks(summarize(reduced.steps, len(reduced.ranks), None), reduced.steps, reduced)
    assert summary.tokens_per_s_per_gpu.mean == pytest.approx(200 / 0.5 / 4)
    assert summary.real_tokens_per_s_per_gpu == pytest.approx(180 / 0.5 / 4)
    assert summary.steady_state.num_steps == 15
    assert summary.peak_memory_gib == 4.0
    assert summary.rank_peak_memory_gib == {"allocated": [1, 2, 3, 4], "reserved": [2, 3, 4, 5]}


def test_after_a_crash_the_steps_that_all_ranks_finished_are_kept(tmp_path):
    write_rank(tmp_path, 0, [0.5] * 7, end=False)
    write_rank(tmp_path, 1, [0.5] * 9, end=False, cut=True)
    reduced = reduce_samples(tmp_path, warmup=2)
    assert [step.step for step in reduced.steps] == [1, 2, 3, 4, 5, 6, 7]
    summary = of_the_ranks(summarize(reduced.steps, len(reduced.ranks), None), reduced.steps, reduced)
    assert summary.peak_memory_gib is None
    assert not summary.steady_state.is_steady
    assert summary.step_time_s.ci95 is None


def test_a_rank_that_never_started_leaves_no_steps(tmp_path):
    write_rank(tmp_path, 0, [0.5] * 7)
    assert reduce_samples(tmp_path, warmup=0).steps == ()
    assert summarize((), 1, None) is None


def test_a_run_that_ends_inside_its_warm_up_has_no_summary(tmp_path):
    write_rank(tmp_path, 0, [0.5] * 3, world=1)
    assert summarize(reduce_samples(tmp_path, warmup=5).steps, 1, None) is None


def test_a_clock_that_stood_still_leaves_no_summary(tmp_path):
    write_rank(tmp_path, 0, [0.5] * 20 + [0.0] + [0.5] * 20, world=1)
    assert summarize(reduce_samples(tmp_path, warmup=5).steps, 1, None) is None


def test_samples_read_block_by_block_give_the_same_steps(tmp_path, monkeypatch):
    write_rank(tmp_path, 0, [0.5] * 40)
    write_rank(tmp_path, 1, [0.6] * 43, end=False, cut=True)
    whole = reduce_samples(tmp_path, warmup=5)
    monkeypatch.setattr(samples, "_BLOCK_BYTES", 700)
    monkeypatch.setattr(reduce, "_AT_ONCE", 3)
    reduced = reduce_samples(tmp_path, warmup=5)
    assert reduced == whole
    assert [step.is_warmup for step in reduced.steps] == [True] * 5 + [False] * 35
    assert [len(rank.steps) for rank in reduced.ranks.values()] == [0, 2]
    assert {last.rank for last in reduced.lasts.values()} == {1}
