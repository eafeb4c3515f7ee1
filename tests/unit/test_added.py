"""benchmarks/added.py: what the tolls add in each run, and whether the runs agree."""

import dataclasses
import json
import sys

import pytest
from make_records import emulated_record, run_record

from benchmarks.added import Estimate, main, pooled
from cctrain.records import to_json


@pytest.fixture
def answer(tmp_path, monkeypatch, capsys):
    """What it says of these records: its lines, and its JSON."""

    def ask(*records):
        paths = [tmp_path / f"{number}.json" for number in range(len(records))]
        for path, record in zip(paths, records, strict=True):
            path.write_text(to_json(record))
        monkeypatch.setattr(sys, "argv", ["added.py", *map(str, paths)])
        assert main() == 0
        *lines, last = capsys.readouterr().out.splitlines()
        return lines, json.loads(last)

    return ask


def test_the_mean_is_weighted_by_the_errors():
    found = pooled([Estimate(100.0, 2.262, 10), Estimate(130.0, 4.524, 10)])  # errors of 1 and 2 ms
    assert found["mean_ms"] == pytest.approx(106, abs=0.01)
    assert found["half_width_ms"] == pytest.approx(1.96 * 0.8**0.5, rel=1e-3)
    assert found["chi_squared"] == pytest.approx(6**2 / 1 + 24**2 / 4, rel=1e-3)


def test_runs_that_agree_have_a_likely_chi_squared_and_others_none():
    alike = [Estimate(value, 20.0, 12) for value in (140.0, 150.0, 155.0)]
    assert pooled(alike)["chance"] > 0.3
    assert pooled([*alike, Estimate(250.0, 20.0, 12)])["chance"] < 1e-6
    assert pooled(alike[:1])["chance"] is None


def test_runs_on_hosts_of_different_speed_add_the_same(answer):
    slow, quick = emulated_record(1, keep=0.8, step_time_s=0.4), emulated_record(2, keep=2 / 3, step_time_s=0.2)
    lines, found = answer(slow, quick, run_record("off", 3))
    assert found["added"]["num_runs"] == 2
    assert found["added"]["mean_ms"] == pytest.approx(100, abs=1)
    assert "unexplained" not in found
    assert len(lines) == 3


def test_what_explain_leaves_unexplained_is_taken_from_the_record(answer):
    explained = {"unexplained_s": -0.006, "unexplained_ci95": [-0.032, 0.02], "num_rounds": 12}
    lines, found = answer(dataclasses.replace(emulated_record(1, keep=0.8), explain=explained))
    assert found["unexplained"]["mean_ms"] == pytest.approx(-6)
    assert "-6.0 +-  26.0 ms, 12 rounds" in lines[1]


def test_records_without_a_tolled_step_are_refused(answer):
    with pytest.raises(SystemExit, match="2"):
        answer(run_record("off", 1))
