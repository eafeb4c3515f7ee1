"""The verb compare from the command line: what is printed, and the exit code."""

import dataclasses
import io
import json
import subprocess
import sys

import pytest
from make_records import emulated_record, run_record, write
from rich.console import Console

from cctrain.__main__ import main
from cctrain.comparison.compare import compare
from cctrain.comparison.groups import Options
from cctrain.load import read_runs
from cctrain.report.ratios_table import print_answer


@pytest.fixture
def runs(tmp_path):
    for number in range(3):
        write(tmp_path / "runs", run_record("off", 2 * number))
        write(tmp_path / "runs", run_record("on", 2 * number + 1, step_time_s=0.28))
    return str(tmp_path / "runs")


def said(capsys, *arguments):
    code = main(["compare", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_table_a_sentence_and_a_json_line_are_printed(capsys, runs):
    code, out, err = said(capsys, runs)
    facts = json.loads(out.splitlines()[-1])
    assert (code, err) == (0, "")
    assert "CC on / CC off" in out
    assert "llama8b_peft: CC costs 28" in out
    assert set(facts) >= {"keep_ratio", "ci95", "verdict", "num_runs", "why", "comparisons", "allowed", "exit_code"}
    assert (facts["verdict"], facts["num_runs"]) == ("costs", 6)
    assert facts["ci95"][0] < facts["keep_ratio"] < facts["ci95"][1]


def test_names_of_recipes_are_whole_in_80_columns(tmp_path):
    for number, recipe in enumerate(("tiny_llama_peft", "tiny_llama_sft")):
        write(tmp_path, emulated_record(number, recipe=recipe, keep=0.9))
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    print_answer(compare(read_runs([tmp_path]), Options()), console)
    rows = [line for line in console.file.getvalue().splitlines() if line.startswith("│")]
    first_cells = "".join(row.split("│")[1].strip() for row in rows)
    assert "tiny_llama_peft" in first_cells
    assert "tiny_llama_sft" in first_cells


def test_json_prints_the_line_only_and_markdown_prints_none(capsys, runs):
    _, out, _ = said(capsys, runs, "--json")
    assert len(out.splitlines()) == 1
    code, out, _ = said(capsys, runs, "--markdown")
    assert code == 0
    assert "| CC on / CC off | 0.7" in out
    assert "{" not in out


def test_the_gate_decides_the_exit_code(capsys, runs):
    code, out, err = said(capsys, runs, "--min-keep", "0.9")
    assert code == 1
    assert json.loads(out.splitlines()[-1])["gate"] == {"min_keep": 0.9, "is_passed": False}
    assert "is below --min-keep 0.9" in err
    assert said(capsys, runs, "--min-keep", "0.5")[0] == 0


def test_a_refusal_names_why_and_exits_2(capsys, runs):
    write(runs, run_record("on", 9, step_time_s=0.28, status="partial"))
    code, out, err = said(capsys, runs)
    facts = json.loads(out.splitlines()[-1])
    assert code == facts["exit_code"] == 2
    assert facts["keep_ratio"] is None
    assert facts["why"] == ["status of 20261120-000009-llama8b_peft-on is partial"]
    assert "--allow status" in err
    assert said(capsys, runs, "--allow", "status")[0] == 0
    assert said(capsys, runs, "--markdown")[1] == ""


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--by", "setp"], "Did you mean step?"),
        (["--margin", "5"], "--margin 5: allowed is"),
        (["--min-keep", "-1"], "--min-keep -1: allowed is"),
        (["--allow", "stedy"], "Did you mean steady?"),
        (["--html", "/nowhere/at/all.html"], "no file can be written there"),
        (["--json", "--markdown"], "--markdown and --json: give one"),
        (["--nonsense"], "unrecognized arguments"),
        (["missing.json"], "missing.json: no such file or directory"),
    ],
)
def test_a_wrong_request_says_what_is_allowed(capsys, runs, flags, text):
    code, out, err = said(capsys, runs, *flags)
    assert code == 2
    assert text in err
    if "--markdown" not in flags:
        assert text in json.loads(out.splitlines()[-1])["error"]


def test_a_hostile_file_is_named_and_nothing_of_it_is_printed_raw(capsys, runs, tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text('{"schema_version": 3, "run_id": "\\u001b[31mx", "mode": "off"}')
    code, out, err = said(capsys, runs, bad)
    assert code == 2
    assert str(bad) in err
    assert "\x1b" not in out + err


def test_emulated_is_labelled_everywhere(capsys, tmp_path):
    for number in range(2):
        write(tmp_path, emulated_record(number, keep=0.8))
    _, out, _ = said(capsys, tmp_path)
    assert "Emulated CC (b300)" in out
    assert "never a measurement of CC" in " ".join(out.split())
    facts = json.loads(out.splitlines()[-1])
    assert facts["is_emulated"]
    assert facts["comparisons"][0]["is_emulated"]


def test_markdown_keeps_names_text(capsys, tmp_path):
    for number, mode in enumerate(("off", "on")):
        write(tmp_path, run_record(mode, number, recipe="<b>x|y*</b>", run_id=f"run{number}"))
    _, out, _ = said(capsys, tmp_path, "--markdown")
    assert "&lt;b&gt;x\\|y\\*&lt;/b&gt;" in out
    assert "<b>" not in out


def test_neither_torch_nor_matplotlib_is_imported_for_a_table(runs):
    script = f"import sys; from cctrain.__main__ import main; main(['compare', {runs!r}]); print(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    imported = out.splitlines()[-1]
    assert "'cctrain.comparison.compare'" in imported
    assert "'torch'" not in imported
    assert "'matplotlib'" not in imported


def test_markup_in_a_name_is_printed_as_it_is(capsys, tmp_path):
    for number, mode in enumerate(("off", "on")):
        write(tmp_path, run_record(mode, number, recipe="[red]a:warning:[/red]", run_id=f"run{number}"))
    assert "[red]a:warning:[/red]: CC: unclear" in said(capsys, tmp_path)[1]


def test_the_report_and_the_figures_are_written_where_asked(capsys, runs, tmp_path):
    code, out, _ = said(capsys, runs, "--html", tmp_path / "report.html", "--png", tmp_path / "figures", "--json")
    facts = json.loads(out)
    assert code == 0
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert facts["html"] == str(tmp_path / "report.html")
    assert sorted(facts["png"]) == sorted(map(str, (tmp_path / "figures").iterdir()))


def test_a_secret_in_somebody_elses_record_is_in_no_output(capsys, tmp_path):
    token = "hf_" + "q" * 34
    for number, mode in enumerate(("off", "on")):
        record = run_record(mode, number, notes=(f"logged in with {token}",), num_steps=40)
        record = dataclasses.replace(
            record,
            command=(*record.command, f"train.model.token={token}"),
            platform={**record.platform, "environment": {"HF_HOME": f"/home/{token}", "HF_TOKEN": "of-no-known-form"}},
        )
        write(tmp_path / "runs", record)
    assert token in next((tmp_path / "runs").glob("*/run.json")).read_text()
    flags = ("--allow", "steady", "--html", tmp_path / "report.html")
    outputs = [said(capsys, tmp_path / "runs", *flags, *more)[1] for more in ((), ("--json",), ("--markdown",))]
    page = (tmp_path / "report.html").read_text()
    for text in (*outputs, page):
        assert token not in text
        assert "of-no-known-form" not in text
    assert "train.model.token=[redacted]" in page


def test_a_row_of_the_seed_post_that_emulation_does_not_reach_is_said_to_be_missed(capsys, tmp_path):
    for number in range(3):
        write(tmp_path, emulated_record(number, recipe="llama70b_peft", keep=0.9))
    for flags in ((), ("--markdown",)):
        out = said(capsys, tmp_path, *flags)[1]
        assert "It misses the seed post's 29.7 % by -19" in out.replace("\\", "")
