"""benchmarks/tolls_agree.py: which bar a reading is held to, and the exit code."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cctrain.records import to_json
from cctrain.tolls.record import Reading, TollsRecord

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tolls_agree.py"
READINGS = [
    ("launch_wait", "us", {"via": "torch"}),
    ("copy", "us", {"bytes": 64}),
    ("copy", "GB/s", {"bytes": 1 << 20}),
    ("alloc", "us", {"where": "host"}),
    ("matmul", "TFLOP/s", {}),
]
ONE = TollsRecord(
    mode="off",
    identity={"gpu": "H200"},
    measured_at="2026-11-23",
    readings=tuple(
        Reading(name=name, unit=unit, value=100.0, interval=None, num_blocks=9, conditions=conditions)
        for name, unit, conditions in READINGS
    ),
)


@pytest.fixture
def agreed(tmp_path):
    """The exit code and the last line for two records."""

    def run(other):
        (tmp_path / "a.json").write_text(to_json(ONE))
        (tmp_path / "b.json").write_text(to_json(other))
        command = [sys.executable, str(SCRIPT), str(tmp_path / "a.json"), str(tmp_path / "b.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, json.loads(done.stdout.splitlines()[-1]) if done.stdout else done.stderr

    return run


def times(factor):
    readings = [dataclasses.replace(reading, value=reading.value * factor) for reading in ONE.readings]
    return dataclasses.replace(ONE, readings=tuple(readings))


@pytest.mark.parametrize(
    ("factor", "over"),
    [
        (1.049, []),
        (1 / 1.049, []),
        (1.06, ["launch_wait (torch)", "copy (1 MiB)", "matmul ()"]),
        (1 / 1.14, ["launch_wait (torch)", "copy (1 MiB)", "matmul ()"]),
        (0.8, ["launch_wait (torch)", "copy (64 B)", "copy (1 MiB)", "alloc (host)", "matmul ()"]),
    ],
)
def test_launches_large_copies_and_matmul_are_held_to_5_percent_the_rest_to_15(agreed, factor, over):
    code, last = agreed(times(factor))
    assert (code, last["over"]) == (bool(over), over)


def test_a_reading_that_one_file_lacks_is_no_agreement(agreed):
    code, last = agreed(dataclasses.replace(ONE, readings=ONE.readings[1:]))
    assert (code, last["num_in_one_only"]) == (1, 1)


def test_files_of_two_machines_are_refused(agreed):
    code, message = agreed(dataclasses.replace(ONE, identity={"gpu": "B300"}))
    assert code == 2
    assert "H200 and B300" in message
