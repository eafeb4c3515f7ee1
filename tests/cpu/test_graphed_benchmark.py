"""benchmarks/graphed.py: both steps in one process train the same, and typing errors are told before any set-up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "graphed.py"


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_lines_take_turns_on_the_same_data(tmp_path):
    out = tmp_path / "out.json"
    done = run("recipe=tiny_llama_peft", *("--shape", "2x32", "--rounds", "2", "--block", "2", "--out", str(out)))
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
def test_what_is_mistyped_is_refused_before_anything_is_set_up(arguments, message):
    done = run(*arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "setting up" not in done.stdout
