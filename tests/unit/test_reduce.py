"""Samples of the ranks to steps and summary."""

import dataclasses
import random

import pytest

from cctrain import reduce, samples
from cctrain.records import StepRecord, strict_json
from cctrain.reduce import Reduction, of_the_ranks, reduce_samples, summarize


def write_rank(run_dir, rank, seconds, *, world=2, data_rank=None, tokens=100, end=True, cut=False, has_flops=True):
    folder = run_dir / "samples"
    folder.mkdir(exist_ok=True)
    lines = [
        {"event": "start", "rank": rank, "world_size": world},
        {"event": "ready", "data_rank": rank if data_rank is None else data_rank},
    ]
    for number, time in enumerate(seconds, start=1):
        counts = {"padded_tokens": tokens, "real_tokens": tokens - 10, "label_tokens": 5, "num_images": 1}
        counts |= {"model_flops": 1e12 * tokens, "hardware_flops": 2e12 * tokens} if has_flops else {}
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
    text = "".join(strict_json(line) for line in lines)
    (folder / f"rank{rank}.jsonl").write_text(text[:-20] if cut else text)


def test_a_step_takes_as_long_as_its_slowest_rank(tmp_path):
    write_rank(tmp_path, 0, [0.2, 0.9])
    write_rank(tmp_path, 1, [0.7, 0.3])
    steps = reduce_samples(tmp_path, Reduction(1)).steps
    assert [step.step_time_s for step in steps] == [0.7, 0.9]
    assert steps[0].rank_step_time_s == (0.2, 0.7)
    assert [step.is_warmup for step in steps] == [True, False]
    assert steps[0].data_wait_s == 0.01


def test_ranks_that_are_late_in_turn_do_not_make_the_run_longer_than_it_was(tmp_path):
    write_rank(tmp_path, 0, [0.7, 0.3] * 10)
    write_rank(tmp_path, 1, [0.3, 0.7] * 10)
    summary = summarize(reduce_samples(tmp_path, Reduction(0)).steps, 2, None)
    assert summary.step_time_s.mean == pytest.approx(0.5)
    assert summary.step_time_s.median == 0.7
    assert summary.tokens_per_s_per_gpu.mean == pytest.approx(200 / 0.5 / 2)


def test_steps_of_unequal_length_do_not_blur_a_rate_that_is_the_same_in_all(tmp_path):
    seconds = [0.1 * (1 + number % 7) for number in range(100)]
    write_rank(tmp_path, 0, seconds, world=1)
    steps = [
        dataclasses.replace(step, padded_tokens=round(1000 * step.step_time_s) + step.step % 2)
        for step in reduce_samples(tmp_path, Reduction(0)).steps
    ]
    low, high = summarize(steps, 1, None).tokens_per_s_per_gpu.ci95
    assert low < summarize(steps, 1, None).tokens_per_s_per_gpu.mean < high
    assert high - low < 0.01 * 1000


def test_ranks_that_share_their_samples_count_them_once(tmp_path):
    for rank in range(4):
        write_rank(tmp_path, rank, [0.5], world=4, data_rank=rank // 2)
    (step,) = reduce_samples(tmp_path, Reduction(0)).steps
    assert (step.padded_tokens, step.real_tokens, step.label_tokens, step.num_images) == (200, 180, 10, 2)


def test_flops_are_those_of_every_data_rank_once(tmp_path):
    for rank in range(4):
        write_rank(tmp_path, rank, [0.5], world=4, data_rank=rank // 2, tokens=100 + rank // 2)
    (step,) = reduce_samples(tmp_path, Reduction(0)).steps
    assert (step.model_flops, step.hardware_flops) == (201e12, 402e12)


def test_flops_that_ranks_could_not_count_are_unknown(tmp_path):
    write_rank(tmp_path, 0, [0.5], world=1, has_flops=False)
    (step,) = reduce_samples(tmp_path, Reduction(0)).steps
    assert (step.model_flops, step.hardware_flops) == (None, None)


def test_flops_that_one_rank_did_not_count_are_unknown_and_the_rest_is_known(tmp_path):
    write_rank(tmp_path, 0, [0.5])
    write_rank(tmp_path, 1, [0.7], has_flops=False)
    (step,) = reduce_samples(tmp_path, Reduction(0)).steps
    assert (step.model_flops, step.step_time_s, step.padded_tokens) == (None, 0.7, 200)
    assert step.rank_begin_s == (1e9 + 1, 1e9 + 1)


def test_what_every_rank_must_have_written_is_missed_by_its_name(tmp_path):
    draw = random.Random(0)
    whole, lacking = random_sample(draw, 1), random_sample(draw, 1)
    del lacking["step_time_s"]
    write_lines(tmp_path, [[whole], [lacking]], data_ranks=[0, 1])
    with pytest.raises(KeyError, match="step_time_s"):
        reduce_samples(tmp_path, Reduction(0))


def test_what_a_rank_need_not_have_written_is_unknown(tmp_path):
    draw = random.Random(0)
    whole, bare = random_sample(draw, 1), random_sample(draw, 1)
    for name in ("begin_s", "model_flops", "hardware_flops"):
        del bare[name]
    write_lines(tmp_path, [[whole], [bare]], data_ranks=[0, 1])
    (step,) = reduce_samples(tmp_path, Reduction(0)).steps
    assert (step.rank_begin_s, step.model_flops, step.hardware_flops) == (None, None, None)
    assert step.rank_step_time_s == (whole["step_time_s"], bare["step_time_s"])


def test_tokens_per_gpu_are_per_rank_of_the_whole_world(tmp_path):
    for rank in range(4):
        write_rank(tmp_path, rank, [0.5] * 20, world=4, data_rank=rank // 2)
    reduced = reduce_samples(tmp_path, Reduction(5))
    summary = of_the_ranks(summarize(reduced.steps, len(reduced.ranks), None), reduced.steps, reduced)
    assert summary.tokens_per_s_per_gpu.mean == pytest.approx(200 / 0.5 / 4)
    assert summary.real_tokens_per_s_per_gpu == pytest.approx(180 / 0.5 / 4)
    assert summary.steady_state.num_steps == 15
    assert summary.peak_memory_gib == 4.0
    assert summary.rank_peak_memory_gib == {"allocated": [1, 2, 3, 4], "reserved": [2, 3, 4, 5]}


@pytest.mark.parametrize(("num_steps", "is_looked_for"), [(10, False), (19, False), (20, True)])
def test_steps_too_few_to_find_a_change_in_are_said_to_be(tmp_path, num_steps, is_looked_for):
    write_rank(tmp_path, 0, [0.5] * num_steps, world=1)
    state = summarize(reduce_samples(tmp_path, Reduction(0)).steps, 1, None).steady_state
    assert state.is_steady
    assert ("too few to find a change of level in" not in state.why) is is_looked_for


def test_after_a_crash_the_steps_that_all_ranks_finished_are_kept(tmp_path):
    write_rank(tmp_path, 0, [0.5] * 7, end=False)
    write_rank(tmp_path, 1, [0.5] * 9, end=False, cut=True)
    reduced = reduce_samples(tmp_path, Reduction(2))
    assert [step.step for step in reduced.steps] == [1, 2, 3, 4, 5, 6, 7]
    summary = of_the_ranks(summarize(reduced.steps, len(reduced.ranks), None), reduced.steps, reduced)
    assert summary.peak_memory_gib is None
    assert not summary.steady_state.is_steady
    assert summary.step_time_s.ci95 is None


def test_a_rank_that_never_started_leaves_no_steps(tmp_path):
    write_rank(tmp_path, 0, [0.5] * 7)
    assert reduce_samples(tmp_path, Reduction(0)).steps == ()
    assert summarize((), 1, None) is None


def test_a_run_that_ends_inside_its_warm_up_has_no_summary(tmp_path):
    write_rank(tmp_path, 0, [0.5] * 3, world=1)
    assert summarize(reduce_samples(tmp_path, Reduction(5)).steps, 1, None) is None


def test_a_clock_that_stood_still_leaves_no_summary(tmp_path):
    write_rank(tmp_path, 0, [0.5] * 20 + [0.0] + [0.5] * 20, world=1)
    assert summarize(reduce_samples(tmp_path, Reduction(5)).steps, 1, None) is None


def test_samples_read_block_by_block_give_the_same_steps(tmp_path, monkeypatch):
    write_rank(tmp_path, 0, [0.5] * 40)
    write_rank(tmp_path, 1, [0.6] * 43, end=False, cut=True)
    whole = reduce_samples(tmp_path, Reduction(5))
    monkeypatch.setattr(samples, "_BLOCK_BYTES", 700)
    monkeypatch.setattr(reduce, "_AT_ONCE", 3)
    reduced = reduce_samples(tmp_path, Reduction(5))
    assert reduced == whole
    assert [step.is_warmup for step in reduced.steps] == [True] * 5 + [False] * 35
    assert [len(rank.steps) for rank in reduced.ranks.values()] == [0, 2]
    assert {last.rank for last in reduced.lasts.values()} == {1}


def random_sample(draw, step):
    documents = [[draw.randrange(1, 60) for _ in range(draw.choice([1, 1, 1, 2]))] for _ in range(3)]
    spans = {name: draw.uniform(0.1, 0.2) for name in ("data_wait", "forward", "optimizer")}
    return {
        "step": step,
        "loss": draw.random(),
        "padded_tokens": 3 * 128,
        "real_tokens": sum(map(sum, documents)),
        "label_tokens": draw.randrange(50),
        "num_images": draw.randrange(3),
        "model_flops": draw.uniform(1e12, 2e12),
        "hardware_flops": draw.uniform(2e12, 3e12),
        "begin_s": 1e9 + step + draw.random(),
        "step_time_s": sum(spans.values()),
        "data_wait_s": spans["data_wait"],
        "phases_s": spans,
        "is_tolled": step % 2 == 0,
        "crossings": {"launches": draw.randrange(9)},
    }


def write_lines(run_dir, samples_of_ranks, *, data_ranks):
    (run_dir / "samples").mkdir()
    for rank, lines in enumerate(samples_of_ranks):
        start = {"event": "start", "rank": rank, "world_size": len(samples_of_ranks), "host": "node"}
        ready = {"event": "ready", "data_rank": data_ranks[rank]}
        text = "".join(line if isinstance(line, str) else strict_json(line) for line in (start, ready, *lines))
        (run_dir / "samples" / f"rank{rank}.jsonl").write_text(text)


def test_a_step_is_what_the_lines_of_its_ranks_say_together(tmp_path):
    draw = random.Random(0)
    ranks = [[random_sample(draw, step) for step in range(1, 81)] for _ in range(4)]
    lines = [ranks[0], ranks[1][:77], [dict(sorted(sample.items())) for sample in ranks[2]], ranks[3]]
    write_lines(tmp_path, lines, data_ranks=[0, 0, 1, 1])
    reduced = reduce_samples(tmp_path, Reduction(5))
    assert [step.step for step in reduced.steps] == list(range(1, 78))
    for record, *written in zip(reduced.steps, *ranks, strict=False):
        slowest = max(written, key=lambda sample: sample["step_time_s"])
        counted = (written[1], written[3])
        assert record == StepRecord(
            step=written[0]["step"],
            step_time_s=slowest["step_time_s"],
            rank_step_time_s=tuple(sample["step_time_s"] for sample in written),
            rank_begin_s=tuple(sample["begin_s"] for sample in written),
            data_wait_s=max(sample["data_wait_s"] for sample in written),
            phases_s=slowest["phases_s"],
            padded_tokens=2 * 3 * 128,
            real_tokens=sum(sample["real_tokens"] for sample in counted),
            label_tokens=sum(sample["label_tokens"] for sample in counted),
            num_images=sum(sample["num_images"] for sample in counted),
            model_flops=sum(sample["model_flops"] for sample in counted),
            hardware_flops=sum(sample["hardware_flops"] for sample in counted),
            loss=written[0]["loss"],
            is_warmup=record.step <= 5,
            is_tolled=record.step % 2 == 0,
        )
        assert [counts[record.step] for counts in reduced.crossings] == [sample["crossings"] for sample in written]


def test_a_step_that_a_rank_wrote_damaged_is_left_out_and_the_others_are_kept(tmp_path):
    draw = random.Random(0)
    ranks = [[random_sample(draw, step) for step in range(1, 11)] for _ in range(2)]
    lines = [ranks[0], [*ranks[1][:3], strict_json(ranks[1][3])[:90] + "\n", *ranks[1][4:]]]
    write_lines(tmp_path, lines, data_ranks=[0, 1])
    reduced = reduce_samples(tmp_path, Reduction(2))
    assert [step.step for step in reduced.steps] == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert [step.is_warmup for step in reduced.steps] == [True] * 2 + [False] * 7
    assert [list(rank.steps) for rank in reduced.ranks.values()] == [[4], []]
