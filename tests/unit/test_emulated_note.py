"""What emulation assumes and leaves out stands beside every emulated figure, and beside no other."""

import contextlib
import io
import json

import pytest
from make_records import emulated_record, run_record, write
from rich.console import Console

from benchmarks import peers_table
from cctrain.__main__ import main
from cctrain.emulation.profile import ASSUMED, NOT_EMULATED
from cctrain.report import tuned
from cctrain.tolls import table
from cctrain.tolls.record import Reading, TollsRecord
from cctrain.tune.point import COMPLETE, Observation
from cctrain.tune.request import checked


def runs(folder, *, is_emulated):
    for number in range(2):
        write(folder, emulated_record(number) if is_emulated else run_record("off", 2 * number))
        write(folder, emulated_record(number + 2) if is_emulated else run_record("on", 2 * number + 1))
    return folder


def of_compare(folder, *flags, is_emulated):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main(["compare", str(runs(folder, is_emulated=is_emulated)), *flags])
    return out.getvalue()


def of_tolls(folder, *, is_emulated):
    reading = Reading(name="launch", unit="us", value=1.0, interval=None, num_blocks=7, conditions={})
    mode, tolls = ("emulated", {"name": "b300"}) if is_emulated else ("off", None)
    console = Console(file=io.StringIO(), width=100, markup=False)
    record = TollsRecord(mode=mode, tolls=tolls, identity={"num_gpus": 0}, measured_at="now", readings=(reading,))
    table.print_tolls(record, console)
    return console.file.getvalue()


def of_tune(folder, *, is_emulated):
    problem = checked(["recipe=tiny_llama_peft", "data=synthetic", "data.seq_len=256", f"run_root={folder}"]).problem
    seen = [Observation(point=problem.base, outcome=COMPLETE, rate=10.0, keep_ratio=0.7 if is_emulated else None)]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        tuned.print_trials(problem, seen)
    return out.getvalue()


def of_peers(folder, *, is_emulated):
    cells = [{"task": "lora", "shape": "4x256", "line": "ours", "repeat": 0, "error": None, "run_dir": None}]
    cells[0]["timed"] = {mode: {"step_times_s": [0.1] * 40, "tokens_per_step": 100} for mode in ("off", "tolled")}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        peers_table.show(peers_table.results(cells, folder, "ours", None, "b300") | {"not_run": []})
    return out.getvalue()


WAYS = {
    "compare": of_compare,
    "compare --json": lambda folder, **kind: json.loads(of_compare(folder, "--json", **kind))["emulated"] or "",
    "compare --markdown": lambda folder, **kind: of_compare(folder, "--markdown", **kind).replace("\\", ""),
    "tolls": of_tolls,
    "tune": of_tune,
}


@pytest.mark.parametrize("name", [*WAYS, "peers"])
def test_assumptions_stand_beside_emulated_figures(tmp_path, name):
    text = " ".join({**WAYS, "peers": of_peers}[name](tmp_path, is_emulated=True).split())
    for said in ("never a measurement of CC", *ASSUMED, *NOT_EMULATED):
        assert said in text


@pytest.mark.parametrize("name", WAYS)
def test_assumptions_stand_beside_no_other_figures(tmp_path, name):
    text = " ".join(WAYS[name](tmp_path, is_emulated=False).split())
    for said in ("never a measurement of CC", *ASSUMED, *NOT_EMULATED):
        assert said not in text


def test_the_table_of_the_peers_names_the_profile(tmp_path):
    assert "emulated b300" in " ".join(of_peers(tmp_path, is_emulated=True).split())
