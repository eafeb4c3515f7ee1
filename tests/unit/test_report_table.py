"""The summary's table: it says which engine and which step a run had, where they were not AutoModel's own."""

import dataclasses
import io
import sys
from pathlib import Path

import pytest
from make_records import run_record
from rich.console import Console

from cctrain.console import console_of
from cctrain.reduce import summarize
from cctrain.report.table import print_summary

RECORDED = {"num_graphs": 2, "replayed_micro_batches": 40, "eager_micro_batches": 2, "compiled": True}
UNRECORDED = {"num_graphs": 0, "replayed_micro_batches": 0, "eager_micro_batches": 42, "compiled": False}


def printed(run_dir="runs/one", width=400, **changes):
    console = Console(file=io.StringIO(), width=width, markup=False)
    record = dataclasses.replace(run_record("off", 1), **changes)
    print_summary(Path(run_dir), dataclasses.asdict(record), console)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"step_kind": "graphed", "graphs": {"why": "asked for", **RECORDED}},
            "graphed: 2 CUDA graphs, 40 micro-batches",
        ),
        ({"step_kind": "graphed", "graphs": {"why": "no graphs here", **UNRECORDED}}, "graphed, no graphs here"),
        ({"step_kind": "stock", "graphs": {"why": "step=auto: a pipeline"}}, "stock, step=auto: a pipeline"),
        ({"engine": "hf"}, "hf"),
    ],
)
def test_an_engine_or_step_that_is_not_automodels_own_is_named(changes, said):
    rows = [line.split("│")[1:3] for line in printed(**changes).splitlines() if line.startswith("│")]
    named = {name.strip(): value.strip() for name, value in rows}
    assert named["engine" if "engine" in changes else "step"].startswith(said)


def test_an_interval_that_reaches_zero_is_no_figure():
    summary = summarize(run_record("off", 1).steps, 1, None)
    wide = dataclasses.replace(summary.tokens_per_s_per_gpu, mean=1280.0, ci95=(-3533.0, 6093.0))
    text = printed(summary=dataclasses.replace(summary, tokens_per_s_per_gpu=wide))
    assert "1,280, ± more than that: the steps are too few for how much they vary" in text
    assert "4,813" not in text


def test_automodels_own_step_needs_no_word():
    text = printed()
    assert "│ step  " not in text
    assert "engine" not in text


def test_the_records_path_is_whole_on_a_narrow_terminal():
    run_dir = f"runs/{'long-' * 30}[x]"
    assert f"record: {run_dir}/run.json" in printed(run_dir, width=80).splitlines()


def test_a_reader_that_leaves_is_told_to_the_program(monkeypatch):
    class Closed(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):
        console_of().print("a table")


def test_phases_are_shares_of_the_steps_that_are_summed_up():
    """Of an emulated run neither its plain steps nor the first of a block, which settle."""
    unlike = {"data_wait": 9.0, "forward": 0.1}
    steps = [
        dataclasses.replace(step, arm=arm, is_warmup=is_warmup, phases_s=phases)
        for step, (arm, is_warmup, phases) in zip(
            run_record("off", 1, num_steps=40).steps,
            15 * [("off", False, unlike), ("all", True, unlike), ("all", False, {"data_wait": 0.1, "forward": 0.3})],
            strict=True,
        )
    ]
    summary = summarize([step for step in steps if step.arm == "all"], 1, None)
    assert "data_wait 25%, forward 75%" in printed(steps=tuple(steps), summary=summary)
