"""`benchmarks/peers.py`, without training: other libraries' lines through a program that prints what others/run.py
prints, the order of the lines, and what is not run.
"""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from cctrain.platform import host

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TIMES = {"off": [0.5] + [0.1, 0.11, 0.09, 0.1] * 10, "tolled": [0.5] + [0.2, 0.21, 0.19, 0.2] * 10}


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import peers as module

    return module


def program(path, *, tolled="times", off="times", processes=1):
    """Stands for both Pythons: cctrain's, which makes rows and emulates, and the other library's."""
    times = {mode: {"step_times_s": seconds, "tokens_per_step": 64} for mode, seconds in TIMES.items()}
    plain = {"off": times["off"]}
    kinds = {"times": {"tolled": times, "off": plain}, "plain": {"tolled": plain}, "nothing": {"tolled": {}, "off": {}}}
    dies = "echo 'out of memory' >&2; exit 1"
    say = {
        mode: f"echo 'loading'; echo '{json.dumps({'timed': kinds[how][mode]})}'" if how in kinds else dies
        for mode, how in (("off", off), ("tolled", tolled))
    }
    path.write_text(
        "#!/bin/sh\n"
        f'echo "$*" >> {path}.calls\n'
        'case "$*" in\n'
        '*peers_rows.py*) : > "$2" ;;\n'
        f"*emulate*) {say['tolled']}; echo '{json.dumps({'processes': processes})}' ;;\n"
        f"*) {say['off']} ;;\n"
        "esac\n"
    )
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def trained(peers, tmp_path, monkeypatch):
    """What a cell of torchtune came to, with such a program in place of it."""

    def run(**behaviour):
        fake = program(tmp_path / "python", **behaviour)
        monkeypatch.setattr(sys, "executable", fake)
        cell = peers.Cell("lora", "2x32", "torchtune", 0)
        return peers.run(cell, settings(peers, tmp_path, {"torchtune": {"python": fake, "version": "0.6.1"}}))

    return run


def settings(peers, folder, others, **more):
    known = {"tasks": {"lora": "tiny_llama_peft"}, "shapes": ["2x32"], "repeats": 2, "lines": peers.LINES}
    known |= {
        "only_repeat": None,
        "tolls": "b300",
        "steps": 40,
        "warmup": 1,
        "blocks": 2,
        "cell_s": 60.0,
        "together": 1,
        "folder": folder,
    }
    return SimpleNamespace(**(known | {"others": others} | more))


def results(peers, cell, tmp_path):
    return peers.peers_table.results([cell], tmp_path, "torchtune", None, "b300")


def test_another_librarys_line_is_its_median_rate_over_the_steady_steps_off_and_tolled(peers, trained, tmp_path):
    cell = trained()
    assert cell["error"] is None
    (row,) = results(peers, cell, tmp_path)["rows"]
    assert row["off"]["tokens_per_s_per_gpu"] == pytest.approx(640)
    assert row["tolled"]["tokens_per_s_per_gpu"] == pytest.approx(320)
    assert (row["off"]["num_unsteady"], row["keep_ratio"]) == (0, pytest.approx(0.5))


@pytest.mark.parametrize("tolled", ["times", "dies"])
def test_its_cell_is_all_there_is_of_it_and_says_when_and_where_it_ran_and_which_version(trained, tolled):
    before = datetime.now(UTC)
    cell = trained(tolled=tolled)
    assert before - timedelta(seconds=1) <= datetime.fromisoformat(cell["ended_at"]) <= datetime.now(UTC)
    assert cell["boot"] == host.observe({})["boot"]
    assert cell["version"] == "0.6.1"
    assert (cell["error"] is None) == (tolled == "times")


def test_it_trains_on_the_recipes_rows_which_are_made_once(trained, tmp_path):
    trained()
    trained()
    calls = (tmp_path / "python.calls").read_text().splitlines()
    (made,) = [call for call in calls if "peers_rows.py" in call]
    assert len(calls) == 3
    assert all("emulate --" in call and "--tolls b300 --blocks 2" in call for call in calls if call != made)
    rows = str(tmp_path / "rows" / "lora-2x32.pt")
    for words in (rows, "--steps 41", "recipe=tiny_llama_peft", "data.seq_len=32", "local_batch_size=2"):
        assert words in made
    assert all(f"--rows {rows} --steps 40 --warmup 1" in call for call in calls if call != made)


def test_a_level_that_shifts_is_named_unsteady(peers):
    assert not peers.peers_table._of_steps([0.1] * 30 + [0.2] * 30, 64).is_steady
    assert peers.peers_table._of_steps([0.1, 0.11, 0.09] * 20, 64).is_steady


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        ({"tolled": "dies"}, "emulated: out of memory"),
        ({"tolled": "nothing"}, "emulated: it printed no step times of both modes"),
        ({"tolled": "plain"}, "emulated: it printed no step times of both modes"),
        ({"processes": 0}, "emulated: the emulation met no process of it: is there a GPU?"),
    ],
)
def test_where_it_cannot_be_emulated_it_runs_once_more_without_tolls(peers, trained, tmp_path, behaviour, error):
    cell = trained(**behaviour)
    assert cell["error"] == error
    found = results(peers, cell, tmp_path)
    assert found["rows"][0]["off"]["tokens_per_s_per_gpu"] == pytest.approx(640)
    assert found["rows"][0]["tolled"] is None
    assert [one["error"] for one in found["failed"]] == [error]


def test_one_that_is_late_is_not_begun_once_more_and_keeps_what_it_has(peers, tmp_path, monkeypatch):
    fake = tmp_path / "python"
    timed = {mode: {"step_times_s": seconds[:9], "tokens_per_step": 64} for mode, seconds in TIMES.items()}
    fake.write_text(
        "#!/bin/sh\n"
        f'echo "$*" >> {fake}.calls\n'
        'case "$*" in *peers_rows.py*) : > "$2"; exit ;; esac\n'
        f"trap \"echo '{json.dumps({'timed': timed}).replace(chr(34), chr(92) + chr(34))}'; exit 1\" TERM\n"
        "sleep 4 > /dev/null 2>&1 & wait\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    flags = settings(peers, tmp_path, {"torchtune": {"python": str(fake)}}, cell_s=1.0)
    cell = peers.run(peers.Cell("lora", "2x32", "torchtune", 0), flags)
    assert (cell["error"], cell["timed"]) == ("not done by its deadline", timed)
    assert results(peers, cell, tmp_path)["rows"][0]["tolled"]["num_runs"] == 1
    assert len((tmp_path / "python.calls").read_text().splitlines()) == 2  # its rows, and the emulated one


def test_one_that_does_not_train_has_an_error_and_no_row(peers, trained, tmp_path):
    cell = trained(off="dies", tolled="dies")
    assert cell["error"] == "emulated: out of memory; off: out of memory"
    assert results(peers, cell, tmp_path)["rows"] == []


def test_a_python_that_is_gone_fails_its_own_line_only(peers, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python", tolled="dies"))
    flags = settings(peers, tmp_path, {"torchtune": {"python": "/gone/python"}})
    cell = peers.run(peers.Cell("lora", "2x32", "torchtune", 0), flags)
    assert cell["error"].endswith("off: cannot start /gone/python: No such file or directory")


def test_the_most_telling_lines_come_first_and_the_next_repeat_turns_the_order_round(peers, tmp_path):
    ready = {name: {"python": "python"} for name in ("torchtune", "torchtitan", "axolotl")}
    order = list(peers.plan(settings(peers, tmp_path, ready)))
    first = [cell.line for cell in order if cell.repeat == 0]
    assert first[:5] == ["ours", "AutoModel", "AutoModel, layers compiled", "Trainer + PEFT", "torchtune"]
    assert [cell.line for cell in order if cell.repeat == 1] == first[::-1]


def test_a_recipes_line_has_its_own_further_overrides(peers, tmp_path):
    import peers_run

    flags = settings(peers, tmp_path, None, tasks={"lora": "llama8b_peft", "sft": "llama8b_sft"}, lines=peers.LINES)
    lora, full, plain = (
        peers_run.command(peers.Cell(task, "2x32", line, 0), flags)
        for task, line in (
            ("lora", "AutoModel, layers compiled"),
            ("sft", "AutoModel, layers compiled"),
            ("lora", "AutoModel"),
        )
    )
    assert "train.peft.use_triton=false" in lora
    assert "+train.distributed.enable_compile=true" in full
    assert not any("use_triton" in one for one in full + plain)


def test_one_repeat_alone_is_the_same_as_among_all(peers, tmp_path):
    whole = list(peers.plan(settings(peers, tmp_path, None)))
    alone = [list(peers.plan(settings(peers, tmp_path, None, only_repeat=number))) for number in (1, 2)]
    assert alone[0] + alone[1] == whole


@pytest.mark.parametrize(
    ("others", "line", "shape", "why"),
    [
        (None, "torchtune", "2x32", "no --others FILE"),
        ({}, "torchtune", "2x32", "others/install.py DIR torchtune"),
        ({"torchtune": {"failed_at": "import", "error": "ImportError: no"}}, "torchtune", "2x32", "ImportError: no"),
        ({"torchtune": {"version": "0.6.1"}}, "torchtune", "2x32", "names no python for it"),
        ({"unsloth": {"failed_at": "import", "error": "ImportError: nms"}}, "Unsloth", "2x32", "ImportError: nms"),
        ({"torchtitan": {"python": "python"}}, "torchtitan", "packed64", "rows of one document"),
    ],
)
def test_a_line_that_is_not_run_says_why(peers, tmp_path, others, line, shape, why):
    flags = settings(peers, tmp_path, others, shapes=[shape], lines={"ours": (), line: peers.LINES[line]})
    assert {cell.line for cell in peers.plan(flags)} == {"ours"}
    (row,) = peers.not_run(flags)
    assert (row["line"], row["shape"]) == (line, shape)
    assert why in row["why"]


@pytest.mark.parametrize("line", ["torchtune", "Axolotl", "Unsloth"])
def test_libraries_that_keep_documents_apart_are_run_on_packed_rows(peers, tmp_path, line):
    ready = {peers.LINES[line][0]: {"python": "python"}}
    flags = settings(peers, tmp_path, ready, shapes=["packed64"], lines={"ours": (), line: peers.LINES[line]})
    assert {cell.line for cell in peers.plan(flags)} == {"ours", line}
    assert peers.not_run(flags) == []


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["--lines", "our"], "allowed is ours; AutoModel; AutoModel, layers compiled"),
        (["--ours", "mine"], "--ours mine: allowed is one of the lines"),
        (["--line", "mine"], "allowed is 'NAME: OVERRIDE ...'"),
        (["--line", "ours: engine=hf"], "with a new name"),
        (["--shapes", "4by256"], "allowed is SAMPLESxTOKENS"),
        (["--shapes", "0x256"], "allowed is SAMPLESxTOKENS"),
        (["--tasks", "qlora"], "allowed is lora, sft, or NAME=RECIPE"),
        (["--tasks", "=tiny_llama_peft"], "allowed is lora, sft, or NAME=RECIPE"),
        (["--tasks", "lora=tiny_lama_peft"], "Did you mean tiny_llama_peft?"),
        (["--cell-s", "-1"], "--cell-s -1.0: allowed is 1 or more"),
        (["--budget-s", "nan"], "--budget-s nan: allowed is 0 or more"),
        (["--repeats", "0"], "--repeats 0: allowed is 1 or more"),
        (["--tolls", "nope"], "no toll profile nope"),
        (["--only-repeat", "0"], "--only-repeat 0: allowed is 1 to 3"),
        (["--only-repeat", "4"], "--only-repeat 4: allowed is 1 to 3"),
        (["--others", "nowhere.json"], "allowed is the others.json of others/install.py"),
    ],
)
def test_a_typing_error_is_told_before_anything_runs(tmp_path, typed, told):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "peers.py", tmp_path / "folder", *typed],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert told in done.stderr
    assert not (tmp_path / "folder").exists()


def test_a_file_in_place_of_the_folder_is_named(peers, tmp_path, monkeypatch, capsys):
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr(sys, "argv", ["peers.py", str(tmp_path / "taken")])
    with pytest.raises(SystemExit, match="2"):
        peers.parse()
    assert "taken is a file; allowed is a directory" in capsys.readouterr().err


def test_what_is_not_said_is_as_the_folder_was_begun(peers, tmp_path, monkeypatch):
    peers._same_settings(settings(peers, tmp_path, None, steps=40))
    monkeypatch.setattr(sys, "argv", ["peers.py", str(tmp_path), "--budget-s", "0"])
    flags = peers.parse()
    assert (flags.steps, flags.tasks) == (40, {"lora": "tiny_llama_peft"})
    monkeypatch.setattr(sys, "argv", ["peers.py", str(tmp_path), "--steps", "50"])
    assert peers.parse().steps == 50  # and is refused where it is compared with the folder's


def test_a_further_line_comes_where_lines_have_it_or_last(peers, tmp_path, monkeypatch):
    def order(*lines):
        monkeypatch.setattr(sys, "argv", ["peers.py", str(tmp_path), "--line", "mine: step=auto", "--lines", *lines])
        return peers.parse().lines

    assert list(order("ours", "mine", "torchtune")) == ["ours", "mine", "torchtune"]
    assert list(order("ours", "torchtune")) == ["ours", "torchtune", "mine"]
    assert order("ours")["mine"] == ("step=auto",)


@pytest.mark.parametrize(("budget_s", "is_measured"), [(0.0, False), (9.0, True), (None, True)])
def test_the_table_of_what_is_there_measures_nothing(peers, tmp_path, monkeypatch, budget_s, is_measured):
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python"))
    assert peers.matmul_tflops(settings(peers, tmp_path, None, budget_s=budget_s, matmul_tflops=None)) is None
    assert (tmp_path / "python.calls").exists() == is_measured


def test_a_folder_that_was_begun_with_other_settings_is_left_alone(peers, tmp_path):
    peers._same_settings(settings(peers, tmp_path, None))
    peers._same_settings(settings(peers, tmp_path, None, tasks={"sft": "tiny_llama_sft"}))
    with pytest.raises(SystemExit, match=r"--steps=50: .* was begun with 40; name another folder"):
        peers._same_settings(settings(peers, tmp_path, None, steps=50))
    with pytest.raises(SystemExit, match="--tasks lora=llama8b_peft"):
        peers._same_settings(settings(peers, tmp_path, None, tasks={"lora": "llama8b_peft"}))
