"""benchmarks/predicted.py: which records are taken, and what their distances come to."""

import json
import sys

import pytest

from benchmarks.predicted import cases, main, summary
from cctrain.predict import predict, read_base
from tests.unit.test_predict import CROSSINGS, PROFILE, RECORD

RUN = RECORD | {
    "mode": "emulated",
    "step_kind": "stock",
    "summary_off": RECORD["summary"],
    "tolls": {"name": PROFILE.name, "sha256": PROFILE.sha256, "content": PROFILE.to_dict()},
    "steps": [{"rank_step_time_s": [0.2]}],
}


@pytest.fixture
def records(tmp_path):
    """Writes each record, which measured a loss of so many per cent, to a file; returns their directory."""

    def write(*losses, **changes):
        for number, loss in enumerate(losses):
            keep = {"value": 1 - loss / 100, "ci95": [0.99 - loss / 100, 1.01 - loss / 100]}
            record = RUN | {"run_id": f"run {number}", "keep_ratio": keep} | changes
            (tmp_path / f"{number}.json").write_text(json.dumps(record))
        return tmp_path

    return write


@pytest.fixture
def predicted(records):
    """The predicted loss of each of these records, in per cent."""
    path = records(50.0) / "0.json"
    return predict(read_base(path), PROFILE).loss


def test_distances_are_predicted_minus_measured_points(records, predicted):
    value = 100 * predicted.value
    found = summary(cases([records(value + 3, value - 1, value)], 1))
    assert found["num_runs"] == 3
    assert found["median_points_off"] == pytest.approx(1)
    assert found["lowest_points_off"] == pytest.approx(-3)
    assert found["highest_points_off"] == pytest.approx(1)


def test_an_interval_can_meet_the_range_that_its_value_is_outside_of(records, predicted):
    high = 100 * predicted.high
    found = summary(cases([records(high - 0.1, high + 0.5, high + 1.5)], 1))
    assert (found["num_in_range"], found["num_intervals_met"]) == (1, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "off"},
        {"step_kind": "graphed"},
        {"crossings": None},
        {"crossings": CROSSINGS | {"counted_by": "operators"}},
        {"steps": [{"rank_step_time_s": [0.2, 0.2]}]},
        {"keep_ratio": None, "steps": []},
        {"keep_ratio": {"value": 0.9, "ci95": None}},
    ],
)
def test_others_than_stock_steps_counted_on_one_gpu_are_passed_over(records, changes):
    assert cases([records(10.0, **changes)], 1) == []


def test_a_run_in_two_files_counts_once(records):
    folder = records(10.0, 20.0, run_id="the same")
    assert len(cases([folder, folder / "0.json"], 1)) == 1


def test_the_worst_come_first_and_last_and_json_ends_it(records, predicted, monkeypatch, capsys):
    value = 100 * predicted.value
    monkeypatch.setattr(sys, "argv", ["predicted.py", str(records(value - 5, value + 5, value))])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("/")[-1] for line in lines[1:4]] == ["1.json", "2.json", "0.json"]
    assert json.loads(lines[-1])["num_runs"] == 3


def test_where_there_is_none_the_error_says_what_is_wanted(records, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["predicted.py", str(records(10.0)), "--gpus", "2"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "cc=emulated on 2 GPU" in capsys.readouterr().err
