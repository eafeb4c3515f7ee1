"""The benchmark of the peers, its flow: tiny recipes on this CPU, one line that trains and one that cannot."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cctrain.emulation.blocks import ALL, OFF, schedule
from cctrain.emulation.profile import load_profile
from cctrain.emulation.switch import TollSwitch
from cctrain.timing.timer import StepTimer

ROOT = Path(__file__).parents[2]


def peers(folder, environment, *more, code=0):
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "benchmarks" / "peers.py", folder, "--tasks", "lora=tiny_llama_peft"),
            *(
                "--shapes",
                "2x32",
                "--lines",
                "Trainer + PEFT",
                "--line",
                "broken: engine=hf train.distributed.tp_size=2",
            ),
            *("--ours", "Trainer + PEFT", "--repeats", "1", "--warmup", "60", "--steps", "16", "--blocks", "2"),
            *("--together", "2", "--matmul-tflops", "0.1", *more),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def first(tmp_path_factory, clean_environment):
    folder = tmp_path_factory.mktemp("peers")
    return folder, *peers(folder, clean_environment)


def test_a_line_that_trains_has_its_figures_off_and_tolled_against_the_floor(first):
    _, _, found = first
    (row,) = found["rows"]
    assert (row["line"], row["task"], row["shape"]) == ("Trainer + PEFT", "lora", "2x32")
    for mode in ("off", "tolled"):
        rate = row[mode]["tokens_per_s_per_gpu"]
        assert rate > 0
        assert row[mode]["share_of_floor"] == pytest.approx(rate / row["floor_tokens_per_s_per_gpu"])
        assert (row[mode]["num_runs"], row[mode]["ci95"], row[mode]["ours_over"]) == (1, None, 1)
    assert row["keep_ratio"] == pytest.approx(
        row["tolled"]["tokens_per_s_per_gpu"] / row["off"]["tokens_per_s_per_gpu"]
    )
    assert found["emulated"].endswith(
        "No GPU: each operator of this CPU paid the launch toll, which says nothing about any machine"
    )


def test_a_line_that_cannot_run_says_why_and_stops_no_other(first):
    _, done, found = first
    (failed,) = found["failed"]
    assert failed["line"] == "broken"
    assert "train.distributed.tp_size=2" in failed["error"]
    assert "failed: broken" in done.stdout


def test_what_is_done_is_not_done_again_and_what_is_missing_may_wait(first, clean_environment):
    folder, _, before = first
    results = (folder / "results.json").read_bytes()
    done, found = peers(folder, clean_environment, "--repeats", "2", "--budget-s", "0")
    assert (folder / "results.json").read_bytes() == results
    assert done.stderr == ""
    assert found["num_left"] == 2  # the second repeat of both
    assert found["rows"] == before["rows"]
    assert len(list((folder / "runs").iterdir())) == 1


def test_the_rows_for_other_libraries_are_those_that_automodels_own_loader_gives(tmp_path, monkeypatch):
    import torch
    from nemo_automodel import NeMoAutoTokenizer
    from nemo_automodel.components.config.loader import ConfigNode
    from nemo_automodel.recipes._typed_config import RecipeConfig

    from cctrain.request.compose import compose_config
    from cctrain.request.data_files import prepare_data
    from cctrain.request.recipe import located

    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import peers_rows

    overrides = ["recipe=tiny_llama_peft", "weights=random", "data=synthetic", "data.seq_len=512"]
    found = peers_rows.rows(overrides, 4)
    config = compose_config(overrides)
    prepare_data(config.data, tmp_path, is_vlm=False)
    train = located(config.train, tmp_path)
    tokenizer = NeMoAutoTokenizer.from_pretrained(train["dataset"]["tokenizer"]["pretrained_model_name_or_path"])
    loader = RecipeConfig(ConfigNode(train)).dataloader.build(tokenizer=tokenizer, dp_rank=0, dp_world_size=1)
    for key in ("input_ids", "labels"):
        expected = torch.stack([batch[key] for _, batch in zip(range(4), loader, strict=False)])
        assert torch.equal(found[key], expected.to(torch.int32))
        assert found[key].shape[-1] == 512
    assert -100 in found["labels"]
    assert torch.equal(found["seq_lens"], torch.full((4, 2, 1), 512, dtype=torch.int32))


def test_packed_rows_for_other_libraries_say_how_long_their_documents_are(monkeypatch):
    import torch

    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import peers_lines
    import peers_rows

    overrides = ["recipe=tiny_llama_peft", "weights=random", *peers_lines.shape_overrides("packed512")]
    found = peers_rows.rows(overrides, 4)
    assert found["input_ids"].shape == found["labels"].shape == (4, 1, 512)
    for ids, labels, seq_lens in zip(*(found[key][:, 0] for key in ("input_ids", "labels", "seq_lens")), strict=True):
        lengths = seq_lens[seq_lens > 0].tolist()
        ends = torch.tensor(lengths).cumsum(0)
        assert len(lengths) > 1
        assert ends[-1] <= 512
        begin = 0
        for end in ends.tolist():
            followed = labels[begin : end - 1] != -100
            assert torch.equal(labels[begin : end - 1][followed], ids[begin + 1 : end][followed])
            begin = end


class Machine:
    """Both a clock and tolls: a step takes a second, or three under a profile."""

    name, unix_offset_s, counted_by = "fake", 0.0, "nobody"

    def __init__(self):
        self.now, self.profile, self.marks = 0.0, None, []

    def mark(self):
        self.marks.append(self.now)
        return len(self.marks) - 1

    def read(self, handles=None):
        return () if handles is None else [self.marks[handle] for handle in handles]

    def set_tolls(self, profile):
        self.profile = profile
        self.now += 100  # of no step

    def counted(self, words):
        return {}

    def step(self):
        self.now += 1 if self.profile is None else 3


@pytest.fixture
def others(monkeypatch):
    """What benchmarks/others/run.py is made of."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "others")
    import of_transformers
    import rows
    import run
    import steps

    return SimpleNamespace(of_transformers=of_transformers, rows=rows, run=run, steps=steps)


def test_steps_of_another_library_are_plain_and_tolled_in_turns(others):
    machine, seen = Machine(), ""
    slots = [replace(slot, is_settling=False) for slot in schedule(16, (OFF, ALL), 2)]
    steps = others.steps.Steps(StepTimer(machine), 16, 2, TollSwitch(machine, load_profile("b300"), slots, 2))
    steps.begin()
    for _ in range(19):  # one more than asked for: an epoch may end with a call of its own
        seen += "." if machine.profile is None else "T"
        machine.step()
        steps.end()
    assert seen[:18] == ".." + "....TTTT" + "TTTT...."
    assert steps.times_s() == {"off": [1.0] * 8, "tolled": [3.0] * 8}


def test_steps_that_settle_are_not_among_the_measured(others):
    machine = Machine()
    slots = schedule(16, (OFF, ALL), 2)
    steps = others.steps.Steps(StepTimer(machine), 16, 0, TollSwitch(machine, load_profile("b300"), slots, 0))
    steps.begin()
    for _ in range(16):
        machine.step()
        steps.end()
    assert {mode: len(times) for mode, times in steps.times_s().items()} == {"off": 4, "tolled": 4}


def test_one_that_is_to_be_held_stops_itself_once_after_that_step(others, monkeypatch):
    stopped, machine = [], Machine()
    monkeypatch.setattr(others.steps.os, "kill", lambda *what: stopped.append((len(machine.marks), what)))
    steps = others.steps.Steps(StepTimer(machine), 5, 4, hold=3)
    steps.begin()
    for _ in range(9):
        machine.step()
        steps.end()
    assert stopped == [(4, (os.getpid(), signal.SIGSTOP))]  # the begin, and three steps


def test_without_tolls_all_its_steps_after_the_warm_up_are_measured(others):
    machine = Machine()
    steps = others.steps.Steps(StepTimer(machine), 5, 2)
    steps.begin()
    for _ in range(7):
        machine.step()
        steps.end()
    assert steps.times_s() == {"off": [1.0] * 5}


def test_packed_rows_go_to_torchtune_with_padding_as_a_document(others):
    import torch

    rows = others.rows.Rows(
        ids=torch.tensor([[5, 6, 7, 8, 9, 0, 0], [5, 6, 7, 8, 9, 10, 11]]),
        labels=torch.tensor([[6, 7, -100, 9, -100, -100, -100], [-100, 7, 8, 9, 10, 11, -100]]),
        seq_lens=torch.tensor([[3, 2], [7, 0]]),
    )
    padded, whole = others.rows.packs(rows)
    assert padded["tokens"].tolist() == [5, 6, 7, 8, 9, 0, 0]
    assert padded["labels"].tolist() == [-100, 6, 7, -100, 9, -100, -100]  # torchtune shifts them itself
    assert padded["input_pos"].tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert padded["seq_lens"].tolist() == [3, 2, 2]
    assert whole["input_pos"].tolist() == list(range(7))
    assert whole["seq_lens"].tolist() == [7]


def test_libraries_on_transformers_get_each_row_in_order_with_labels_that_they_shift_themselves(others):
    import torch

    rows = others.rows.Rows(
        ids=torch.tensor([[5, 6, 7], [8, 9, 10]]),
        labels=torch.tensor([[6, 7, -100], [-100, 10, 11]]),
        seq_lens=torch.tensor([[3], [3]]),
    )
    steps, columns = [rows, rows._replace(ids=rows.ids + 10)], ("input_ids", "labels", "attention_mask")
    first, second, third = others.of_transformers.samples(steps, *columns)[:3]
    assert first == {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "attention_mask": [1, 1, 1]}
    assert (second["input_ids"], second["labels"]) == ([8, 9, 10], [-100, -100, 10])
    assert third["input_ids"] == [15, 16, 17]


def test_libraries_on_transformers_are_told_of_a_packed_rows_documents_of_which_padding_is_one(others):
    import torch

    rows = others.rows.Rows(
        ids=torch.tensor([[5, 6, 7, 8, 9, 0, 0]]),
        labels=torch.tensor([[6, 7, -100, 9, 4, -100, -100]]),
        seq_lens=torch.tensor([[3, 2, 0]]),
    )
    (sample,) = others.of_transformers.samples([rows], "labels", "position_ids", "seq_lengths", "length")
    assert sample == {
        "labels": [-100, 6, 7, -100, 9, 4, -100],
        "position_ids": [0, 1, 2, 0, 1, 0, 1],
        "seq_lengths": [3, 2, 2],
        "length": 7,
    }


def test_both_scripts_give_the_same_libraries_packed_rows(others, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import peers_lines

    assert others.run.PACKED == peers_lines.PACKED


def test_packed_rows_are_refused_for_libraries_that_would_let_their_documents_see_each_other(tmp_path):
    import torch

    ids = torch.zeros(2, 1, 4, dtype=torch.int32)
    torch.save({"input_ids": ids, "labels": ids, "seq_lens": torch.tensor([[[2, 2]]] * 2)}, tmp_path / "rows.pt")
    script = ROOT / "benchmarks" / "others" / "run.py"
    flags = ["--rows", tmp_path / "rows.pt", "--steps", "1", "--warmup", "1"]
    done = subprocess.run([sys.executable, script, "torchtitan", *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "its rows are packed; allowed with torchtune, axolotl, unsloth" in done.stderr


def test_a_cell_past_its_deadline_is_ended_and_named(tmp_path, clean_environment):
    done, found = peers(tmp_path, clean_environment, "--cell-s", "1", code=1)
    assert done.stderr.endswith("no run of this call came to its end\n")
    assert {one["line"]: one["error"] for one in found["failed"]}["Trainer + PEFT"] == "not done by its deadline"
