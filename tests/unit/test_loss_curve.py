"""The curve of loss against tokens: along which size it goes, and which points are one line."""

import dataclasses

from make_records import emulated_record, write

from cctrain.comparison.compare import compare
from cctrain.comparison.groups import Options
from cctrain.load import read_runs
from cctrain.report.plots.canvas import WIDE
from cctrain.report.plots.keep import has_lines, losses_by_tokens


def curve(tmp_path, sizes, by):
    """Tokens of each line's points, by its name. `sizes`: rows of a micro-batch, micro-batches a step, tokens a row."""
    for number, (rows, num_micro_batches, seq_len) in enumerate(sizes):
        record = emulated_record(number, seq_len=seq_len)
        batch = {"local_batch_size": rows, "global_batch_size": rows * num_micro_batches}
        tokens = rows * num_micro_batches * seq_len
        steps = tuple(dataclasses.replace(step, padded_tokens=tokens, real_tokens=tokens) for step in record.steps)
        record = dataclasses.replace(record, identity={**record.identity, "batch": batch}, steps=steps)
        write(tmp_path, dataclasses.replace(record, run_id=f"run-{number}"))
    answer = compare(read_runs([tmp_path]), Options(by=by, allow=("steady",)))
    if not has_lines(answer):
        return {}
    axes = losses_by_tokens(answer, WIDE).axes[0]
    lines = [line for line in axes.lines if not line.get_label().startswith("_")]
    return {line.get_label(): list(line.get_xdata()) for line in lines}


def test_a_step_of_as_many_tokens_in_fewer_micro_batches_lies_further_on(tmp_path):
    found = curve(tmp_path, [(1, 4, 256), (2, 2, 256), (4, 1, 256)], by=("batch",))
    assert list(found.values()) == [[256, 512, 1024]]


def test_batches_of_other_lengths_are_lines_of_their_own(tmp_path):
    found = curve(tmp_path, [(1, 4, 256), (4, 1, 256), (1, 4, 1024), (4, 1, 1024)], by=("batch", "sequence"))
    assert sorted(found.values()) == [[256, 1024], [1024, 4096]]
    assert [name.split(", ")[1] for name in found] == ["seq_len 256", "seq_len 1024"]


def test_one_size_is_no_curve(tmp_path):
    assert curve(tmp_path, [(4, 1, 256)], by=("batch",)) == {}
