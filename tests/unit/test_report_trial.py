"""The trial under way, on a terminal and elsewhere."""

import io
import json

import pytest
from rich.console import Console

from cctrain.report.trial import TrialProgress


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "running.json").write_text(json.dumps({"warmup": 2, "steps": 8, "ranks": 1}))
    return tmp_path


def write(run_dir, *lines):
    with (run_dir / "samples" / "rank0.jsonl").open("a") as samples:
        samples.writelines(json.dumps(line) + "\n" for line in lines)


def shown(run_dirs, *, is_terminal):
    """What is seen of trials that are looked at twice each, having taken three steps in between."""
    file = io.StringIO()
    progress = TrialProgress(Console(file=file, force_terminal=is_terminal, width=120, color_system=None))
    for run_dir in run_dirs:
        write(run_dir, {"event": "start", "world_size": 1})
        progress.show(run_dir)
        write(run_dir, {"step": 3, "step_time_s": 0.5, "padded_tokens": 100, "loss": 1.25})
        progress.show(run_dir)
        progress.end()
    return file.getvalue()


def test_on_a_terminal_a_trial_has_the_bar_of_a_run(run_dir):
    text = shown([run_dir], is_terminal=True)
    assert f"log: {run_dir}/logs/rank0.log" in text
    assert " 3/10 " in text
    assert "200 tokens/s/GPU  loss 1.250" in text


def test_elsewhere_it_is_one_line_that_says_where_its_log_is(run_dir):
    assert shown([run_dir], is_terminal=False) == f"    log: {run_dir}/logs/rank0.log\n"


def test_a_directory_without_its_first_file_yet_is_looked_at_again(run_dir):
    file = io.StringIO()
    progress = TrialProgress(Console(file=file, width=120))
    hidden = (run_dir / "running.json").rename(run_dir / "running.json.part")
    progress.show(run_dir)
    assert file.getvalue() == ""
    hidden.rename(run_dir / "running.json")
    progress.show(run_dir)
    assert "rank0.log" in file.getvalue()


def test_every_trial_has_its_own(run_dir, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "samples").mkdir()
    (other / "running.json").write_text((run_dir / "running.json").read_text())
    text = shown([run_dir, other], is_terminal=False)
    assert [line.split()[-1] for line in text.splitlines()] == [f"{each}/logs/rank0.log" for each in (run_dir, other)]
