"""The curves of loss against tokens, models and layouts: along which it goes, and which points are one line."""

import dataclasses
import itertools
import re
import shutil

from make_records import emulated_record, write

from cctrain.comparison.compare import compare
from cctrain.comparison.groups import Options
from cctrain.load import read_runs
from cctrain.report.plots.canvas import WIDE
from cctrain.report.plots.losses import caption, has_lines, losses, title


def curve(tmp_path, sizes, by):
    """Tokens of each line's points, by its name. `sizes`: rows of a micro-batch, micro-batches a step, tokens a row."""
    for number, (rows, num_micro_batches, seq_len) in enumerate(sizes):
        record = emulated_record(number, seq_len=seq_len)
        batch = {"local_batch_size": rows, "global_batch_size": rows * num_micro_batches}
        tokens = rows * num_micro_batches * seq_len
        steps = tuple(dataclasses.replace(step, padded_tokens=tokens, real_tokens=tokens) for step in record.steps)
        record = dataclasses.replace(record, identity={**record.identity, "batch": batch}, steps=steps)
        write(tmp_path, dataclasses.replace(record, run_id=f"run-{number}"))
    return drawn(tmp_path, by)


def drawn(folder, by):
    answer = compare(read_runs([folder]), Options(by=by, allow=("steady",)))
    if not has_lines(answer):
        return {}
    axes = losses(answer, WIDE).axes[0]
    lines = [line for line in axes.lines if not line.get_label().startswith("_")]
    return {line.get_label(): list(line.get_xdata()) for line in lines}


def test_a_step_of_as_many_tokens_in_fewer_micro_batches_lies_further_on(tmp_path):
    found = curve(tmp_path, [(1, 4, 256), (2, 2, 256), (4, 1, 256)], by=("batch",))
    assert list(found.values()) == [[256, 512, 1024]]


def test_batches_of_other_lengths_are_lines_of_their_own(tmp_path):
    found = curve(tmp_path, [(1, 4, 256), (4, 1, 256), (1, 4, 1024), (4, 1, 1024)], by=("batch", "sequence"))
    assert sorted(found.values()) == [[256, 1024], [1024, 4096]]
    assert list(found) == ["seq_len 256", "seq_len 1024"]


def test_one_size_is_no_curve(tmp_path):
    assert curve(tmp_path, [(4, 1, 256)], by=("batch",)) == {}


GFLOP = {"llama1b_peft": 4.9, "llama8b_peft": 31.0, "llama70b_peft": 280.0}
MODELS = dict(zip(GFLOP, ("models/llama-3.2-1b", "models/llama-3.1-8b", "models/llama-3.3-70b"), strict=True))


def of_models(folder, recipes=tuple(GFLOP), widths=(1,), profiles=("b300",), **changed):
    """Runs of each recipe, on as many GPUs as share a layer."""
    for number, (recipe, width, profile) in enumerate(itertools.product(recipes, widths, profiles)):
        keep = 0.95 - 0.3 / (1 + GFLOP[recipe] / 10) - 0.02 * width
        record = emulated_record(number, recipe=recipe, profile=profile, keep=keep)
        steps = tuple(
            dataclasses.replace(step, model_flops=GFLOP[recipe] * 1e9 * step.padded_tokens) for step in record.steps
        )
        layout = {"world": width, "data": 1, "tensor": width, "pipeline": 1, "context": 1}
        facts = {**record.identity, "model": MODELS[recipe], "layout": layout, "recipe_hash": f"{recipe}{width}"}
        record = dataclasses.replace(record, identity=facts, steps=steps, run_id=f"run-{number}")
        write(folder, dataclasses.replace(record, **changed))


def test_recipes_of_other_sizes_are_one_line_along_models_for_each_profile(tmp_path):
    of_models(tmp_path, profiles=("b300", "hopper"))
    found = drawn(tmp_path, by=("model",))
    assert found == {f"emulated {name}": [4.9, 31, 280] for name in ("b300", "hopper")}


def test_layouts_are_lines_of_their_own_along_models(tmp_path):
    of_models(tmp_path, widths=(1, 2))
    found = drawn(tmp_path, by=("model", "layout"))
    assert list(found) == ["one rank", "tensor 2"]
    assert list(found.values()) == [[4.9, 31, 280]] * 2


def test_where_layouts_alone_are_told_apart_a_line_goes_along_them(tmp_path):
    of_models(tmp_path, recipes=("llama1b_peft", "llama8b_peft"), widths=(1, 2))
    found = drawn(tmp_path, by=("layout",))
    assert found == {name: [1, 2] for name in ("llama1b_peft", "llama8b_peft")}


def test_what_all_lines_are_stands_in_the_title(tmp_path):
    of_models(tmp_path, recipes=("llama1b_peft", "llama8b_peft"), widths=(1, 2))
    answer = compare(read_runs([tmp_path]), Options(by=("layout",), allow=("steady",)))
    assert title(answer) == "Loss against the width of tensor parallelism: emulated b300"
    only = compare(read_runs([tmp_path / "run-0", tmp_path / "run-1"]), Options(by=("layout",), allow=("steady",)))
    assert title(only) == "Loss against the width of tensor parallelism"
    assert [line.get_label() for line in losses(only, WIDE).axes[0].lines][1] == "llama1b_peft, emulated b300"


def test_labels_that_would_overlap_are_left_out(tmp_path):
    of_models(tmp_path, recipes=("llama1b_peft", "llama8b_peft", "llama70b_peft"))
    for path in tmp_path.glob("*/run.json"):  # nearly as large as the one before it
        path.write_text(path.read_text().replace('"model_flops":286720000000000.0', '"model_flops":34816000000000.0'))
    answer = compare(read_runs([tmp_path]), Options(by=("model",), allow=("steady",)))
    labels = [label.get_text() for label in losses(answer, WIDE).axes[0].get_xticklabels()]
    assert [bool(label) for label in labels] == [True, True, False]


def test_models_whose_flops_are_not_known_are_no_curve(tmp_path):
    of_models(tmp_path)
    for path in tmp_path.glob("*/run.json"):
        path.write_text(re.sub(r'"model_flops": *[0-9.e+]+', '"model_flops": null', path.read_text()))
    assert drawn(tmp_path, by=("model",)) == {}


def test_the_caption_speaks_of_intervals_where_there_are_some(tmp_path):
    of_models(tmp_path / "single", recipes=("llama1b_peft", "llama8b_peft"))
    shutil.copytree(tmp_path / "single", tmp_path / "repeated")
    for path in (tmp_path / "repeated").glob("*/run.json"):
        twin = path.parents[1] / f"{path.parent.name}-again"
        twin.mkdir()
        (twin / "run.json").write_text(path.read_text().replace(f'"{path.parent.name}"', f'"{twin.name}"'))
    captions = {
        folder: caption(compare(read_runs([tmp_path / folder]), Options(by=("model",), allow=("steady",))))
        for folder in ("single", "repeated")
    }
    assert captions["single"].startswith("Thin bars are from the noise within a single run")
    assert captions["repeated"].startswith("Bars are 95 % intervals over runs. A wider model")
    assert all("not measured under CC" in said for said in captions.values())
