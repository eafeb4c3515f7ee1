"""benchmarks/graphed.py: both steps in one process train the same, and typing errors are told before any set-up."""

import importlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cctrain.emulation.profile import emulated_note

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "graphed.py"


@pytest.fixture
def benchmark(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("graphed")


def test_lines_take_turns_on_the_same_data(tmp_path):
    out = tmp_path / "out.json"
    options = ("--shape", "2x32", "--rounds", "2", "--block", "2", "--out", str(out))
    command = [sys.executable, str(SCRIPT), "recipe=tiny_llama_peft", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["modes"] == ["off"]  # on a CPU
    assert found["num_steps"] == 8 + 2 * (2 + 2)
    stock, graphed = found["lines"].values()
    assert (stock["step"]["kind"], graphed["step"]["eager_updates"]) == ("stock", 16)
    assert graphed["loss_difference"]["largest"] < 1e-5
    seconds = json.loads(out.read_text())["seconds_by_round"]
    assert [len(line["off"]) for line in seconds.values()] == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("recipe=tiny_llama_pefd",), "Did you mean tiny_llama_peft?"),
        (("recipe=tiny_llama_peft", "--line", "mine: step=grahped"), "Did you mean graphed?"),
        (("recipe=tiny_llama_peft", "--tolls", "b30"), "Did you mean b300?"),
        (("recipe=tiny_llama_peft", "--rounds", "0"), "--rounds 0: allowed is 1 or more"),
        (("recipe=tiny_llama_peft", "--shape", "2by64"), "shape 2by64: allowed is SAMPLESxTOKENS"),
    ],
)
def test_what_is_mistyped_is_refused_before_anything_is_set_up(benchmark, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit) as refused:
        benchmark.parse()
    assert message in f"{refused.value}{capsys.readouterr().err}"


@pytest.mark.parametrize("tolls", ["b300", None])
def test_tolled_steps_are_called_emulated_with_the_profile_and_what_they_rest_on(benchmark, tolls):
    modes = ("off", benchmark.TOLLED) if tolls else ("off",)
    line = {"step_s": dict.fromkeys(modes, 0.1), "over_first": dict.fromkeys(modes), "keep_ratio": None}
    series = benchmark.difference([1.0, 2.0], [1.0, 2.0])
    line |= {"floor_s": None, "mfu": None, "loss_difference": series, "norm_difference": series}
    console = Console(file=io.StringIO(), width=140)
    for table in benchmark.tables({"num_steps": 2, "lines": {"stock": line}}, "a title", tolls):
        console.print(table)
    text = " ".join(console.file.getvalue().split())
    assert ("emulated b300" in text) == (emulated_note() in text) == bool(tolls)
    assert "tolled" not in text
