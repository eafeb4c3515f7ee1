"""What is said of emulated runs: against their own plain steps, over repeats, and beside the seed post."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from make_records import emulated_record, identity, run_record
from test_compare import answered, pairs, refused

from cctrain.comparison.compare import compare
from cctrain.comparison.groups import Options
from cctrain.emulation.blocks import ALL, OFF
from cctrain.emulation.keep import keep_ratio
from cctrain.emulation.rounds import whole_rounds
from cctrain.load import read_runs
from cctrain.report import ratios_table, tolls_beside, words

DATA = Path(__file__).parents[1] / "data" / "runs"


def test_an_emulated_run_is_held_against_its_own_plain_steps(tmp_path):
    (one,) = answered(tmp_path, *(emulated_record(number, keep=0.8) for number in range(3))).comparisons
    assert (one.pairing, one.is_emulated, one.other, one.num_runs) == ("same run", True, "emulated b300", 3)
    assert one.keep_ratio == pytest.approx(0.8, abs=0.01)
    assert words.headline(one).startswith("Emulated CC (b300) costs")


def test_one_emulated_run_has_an_interval_from_its_blocks_only(tmp_path):
    (one,) = answered(tmp_path, emulated_record(1, keep=0.8)).comparisons
    assert (one.ci95, one.verdict) == (None, "unclear")
    assert one.within_run_ci95[0] < 0.8 < one.within_run_ci95[1]
    assert words.headline(one).startswith("Emulated CC (b300): unclear, ")


def test_one_emulated_run_keeps_in_a_comparison_what_its_record_says_it_keeps():
    """On a host as noisy as that of this run, medians of the arms say 2.4 points more."""
    path = DATA / "schema3_llama8b_peft_emulated.json"
    recorded = json.loads(path.read_text())["keep_ratio"]
    (one,) = compare(read_runs([path]), Options()).comparisons
    assert one.keep_ratio == pytest.approx(recorded["value"], rel=1e-9)
    assert one.within_run_ci95 == pytest.approx(recorded["ci95"], rel=1e-9)
    assert one.other_rates[0] / one.base_rates[0] == pytest.approx(one.keep_ratio, rel=1e-9)


def test_what_the_tolls_add_to_a_step_is_said_beside_the_ratio_which_moves_with_the_plain_step(tmp_path):
    slow = emulated_record(2, keep=0.8, step_time_s=0.4)
    quick = emulated_record(1, keep=2 / 3, step_time_s=0.2)  # 100 ms more in both
    (one,) = answered(tmp_path, slow, quick).comparisons
    (text,) = [text for text in words.remarks(one, 0.01) if "add" in text]
    assert sorted(one.added_s) == pytest.approx(sorted(own(run).added_s for run in (quick, slow)), rel=1e-9)
    assert re.fullmatch(r"The tolls add (99|100)\.\d ms to a step \((99|100)\.\d to (99|100)\.\d by run\)\.", text)
    (same,) = answered(tmp_path / "same", emulated_record(1, keep=1.0001)).comparisons
    assert words.added(same) is None
    assert ratios_table.facts(answered(tmp_path / "one", slow))["comparisons"][0]["added_s"] == one.added_s[1:]
    assert [words.added(one) for one in answered(tmp_path / "on", *pairs(2, keep=0.9)).comparisons] == [None]


def test_a_pair_of_which_one_block_is_not_steady_throughout_is_left_out_of_the_ratio(tmp_path):
    (one,) = answered(tmp_path, slow_at_first(emulated_record(1, keep=0.8)), allow=("steady",)).comparisons
    assert one.keep_ratio == pytest.approx(0.8, abs=0.01)


def test_without_a_pair_that_is_steady_throughout_medians_stand_in_once_that_is_allowed(tmp_path):
    short = slow_at_first(emulated_record(1, keep=0.8, num_steps=80, block=40))
    (why,) = refused(tmp_path, short)
    assert "no pair of blocks that are steady throughout: medians of both arms stand in" in why
    (one,) = answered(tmp_path, short, allow=("steady",)).comparisons
    assert one.keep_ratio == pytest.approx(0.8, abs=0.01)
    assert one.added_s == pytest.approx([0.05], abs=0.002)


def own(record, arms=(OFF, ALL)):
    """The record's keep ratio, of which `finish` makes run.json's."""
    return keep_ratio(whole_rounds(record.steps, arms, {}))


def test_two_ranks_are_as_slow_as_the_one_that_took_longest_for_the_block(tmp_path):
    record = emulated_record(1, keep=0.8, num_gpus=2)
    steps = []
    for step in record.steps:
        times = (step.step_time_s, 0.8 * step.step_time_s)
        steps.append(dataclasses.replace(step, rank_step_time_s=times if step.step % 3 else times[::-1]))
    skewed = dataclasses.replace(record, steps=tuple(steps))
    (one,) = answered(tmp_path, skewed).comparisons
    assert (one.keep_ratio, *one.added_s) == pytest.approx((own(skewed).value, own(skewed).added_s), rel=1e-9)
    first = [step for step in skewed.steps if step.block == 0 and not step.is_warmup]
    seconds = max(sum(step.rank_step_time_s[rank] for step in first) for rank in (0, 1))
    assert one.base_rates[0] == pytest.approx(sum(step.padded_tokens for step in first) / 2 / seconds, rel=0.02)


def test_a_round_within_which_an_explained_run_ended_is_in_neither_ratio(tmp_path):
    """Also where both blocks that are compared were over."""
    arms = (OFF, ALL, "only launch", "without launch")
    record = emulated_record(1, keep=0.8, num_steps=14 * 12, block=12)
    steps = []
    for step in record.steps:
        arm = None if step.block is None else arms[step.block % 4]
        time = 0.2 * (1 + 0.01 * ((step.block or 0) * 7 % 5)) * (1.25 + 0.1 * (step.block == 13) if arm == ALL else 1)
        tolled = {None: None, OFF: False, ALL: True}.get(arm)
        steps.append(dataclasses.replace(step, arm=arm, is_tolled=tolled, step_time_s=time, rank_step_time_s=(time,)))
    ended = dataclasses.replace(record, steps=tuple(steps), status="partial", failure="killed")
    (one,) = answered(tmp_path, ended, allow=("status", "steady")).comparisons
    found = own(ended, arms)
    assert found.num_pairs == 3
    assert (one.keep_ratio, *one.added_s) == pytest.approx((found.value, found.added_s), rel=1e-9)


def slow_at_first(record):
    """The same run, whose first plain block settles within itself."""
    steps = [
        dataclasses.replace(step, step_time_s=time, rank_step_time_s=(time,))
        for step in record.steps
        for time in [step.step_time_s * (3 if step.block == 0 and step.step < 13 else 1)]
    ]
    return dataclasses.replace(record, steps=tuple(steps))


def test_an_emulated_gain_is_not_said_to_be_the_tolls(tmp_path):
    (surely,) = answered(tmp_path / "a", *(emulated_record(number, keep=1.2) for number in range(3))).comparisons
    assert words.headline(surely) == "Emulated CC (b300) gains 20.1 % of throughput, not by its tolls"
    assert "Tolls make nothing faster: what is above 1 is another difference of the arms." in words.remarks(surely, 0.1)
    (perhaps,) = answered(tmp_path / "b", emulated_record(1, keep=1.0001)).comparisons
    assert perhaps.within_run_ci95[0] < 1 < perhaps.keep_ratio
    assert "Tolls make nothing faster: what is above 1 is noise." in words.remarks(perhaps, 0.1)
    (dearer,) = answered(tmp_path / "c", emulated_record(1, keep=0.8)).comparisons
    assert "Tolls make" not in " ".join(words.remarks(dearer, 0.01))


def test_two_profiles_of_one_name_are_both_listed_with_what_each_took(tmp_path):
    one, other = emulated_record(1), emulated_record(2)
    dearer = {**other.tolls["content"], "tolls": {"launch_us": {"value": 99.0, "interval": None, "source": "mine"}}}
    other = dataclasses.replace(other, tolls={**other.tolls, "sha256": "feedfacecafe", "content": dearer})
    found = tolls_beside.profiles(answered(tmp_path, one, other).runs)
    assert len(found) == 2
    assert [content["tolls"]["launch_us"]["value"] for name, content in found.items() if "(feedface)" in name] == [99.0]


def test_a_point_of_a_profile_that_is_no_number_is_left_out():
    points = {"copy_h2d_pinned_us": {"value": [[float("inf"), 1.0], [4096, 2.0]], "source": "mine"}}
    assert [row[:2] for row in tolls_beside.rows({"tolls": points})] == [("copy_h2d_pinned_us", "2.00 at 4 KiB")]


def with_tokens(record, tokens):
    """The same run, with these tokens in its steps, which took no longer for it."""
    steps = [
        dataclasses.replace(step, padded_tokens=count, real_tokens=count)
        for step, count in zip(record.steps, tokens, strict=True)
    ]
    return dataclasses.replace(record, steps=tuple(steps))


def test_repeats_that_see_the_same_samples_do_not_narrow_what_the_samples_leave_open(tmp_path):
    """All runs of one seed have the same long steps in the same arm: taken for independent, two of three intervals do
    not hold the truth."""
    held = []
    for world in range(20):
        draw = np.random.default_rng(world)
        tokens = (1024 * draw.lognormal(sigma=0.4, size=125)).astype(int).tolist()
        runs = [with_tokens(emulated_record(3 * world + number, keep=0.8), tokens) for number in range(3)]
        (one,) = answered(tmp_path / str(world), *runs, allow=("steady",)).comparisons
        held.append(one.ci95[0] < 0.8 < one.ci95[1])
        assert "from the scatter of their blocks" in words.sentence(one, 0.01)
    assert sum(held) >= 17


def test_what_more_runs_cannot_settle_takes_more_than_a_hundred(tmp_path):
    draw = np.random.default_rng(1)
    tokens = (1024 * draw.lognormal(sigma=0.8, size=125)).astype(int).tolist()
    runs = [with_tokens(emulated_record(number, keep=0.95), tokens) for number in range(3)]
    (one,) = answered(tmp_path, *runs, allow=("steady",)).comparisons
    assert one.verdict == "unclear"
    assert one.more.num is None


def test_steps_that_take_as_long_as_they_have_tokens_leave_a_rate_well_known(tmp_path):
    draw = np.random.default_rng(3)
    records = []
    for record in pairs(1, keep=0.9):
        lengths = draw.lognormal(sigma=0.4, size=len(record.steps))
        steps = []
        for step, length in zip(record.steps, lengths, strict=True):
            time = step.step_time_s * length
            steps.append(dataclasses.replace(step, step_time_s=time, rank_step_time_s=(time,)))
        as_long = dataclasses.replace(record, steps=tuple(steps))
        records.append(with_tokens(as_long, (1024 * lengths).astype(int).tolist()))
    (one,) = answered(tmp_path, *records, allow=("steady",)).comparisons
    low, high = one.within_run_ci95
    assert 0.89 < low < one.keep_ratio < high < 0.91


def test_blocks_of_one_round_are_a_pair_also_where_the_run_ended_within_one(tmp_path):
    record = emulated_record(1, keep=0.8)
    last = max(step.block for step in record.steps if step.block is not None)
    steps = []
    for step in record.steps[:5] + tuple(step for step in record.steps[5:] if step.block < last):
        time = 0.2 if step.block is None else 0.2 * 1.1 ** (step.block // 2) / (0.8 if step.is_tolled else 1.0)
        steps.append(dataclasses.replace(step, step_time_s=time, rank_step_time_s=(time,)))
    record = dataclasses.replace(record, steps=tuple(steps), status="partial", failure="killed")
    (one,) = answered(tmp_path, record, allow=("status", "steady")).comparisons
    low, high = one.within_run_ci95
    assert high / low == pytest.approx(1)


def test_an_emulated_loss_says_whether_it_misses_the_seed_posts(tmp_path):
    near, far = (
        answered(tmp_path / str(keep), *(emulated_record(n, keep=keep, recipe="llama70b_peft") for n in range(4)))
        for keep in (0.703, 0.9)
    )
    assert "within its interval" in words.beside_seed(near.comparisons[0])
    missed = words.beside_seed(far.comparisons[0])
    assert missed.startswith("misses the seed post's 29.7 % by -19.")
    assert "that is of 8 x B300 with AutoModel's own settings, this of 1 x" in missed
    assert "under b300" in missed
    assert "seq_len" in missed
    one = answered(tmp_path / "one", emulated_record(1, keep=0.9, recipe="llama70b_peft"))
    assert words.beside_seed(one.comparisons[0]).startswith("is -19.8 points from the seed post's 29.7 %, which takes")
    assert words.beside_seed(answered(tmp_path / "other", emulated_record(1)).comparisons[0]) == ""


def test_beside_the_seed_posts_loss_stands_what_else_of_the_recipe_was_changed(tmp_path):
    changes = ("train.distributed.tp_size=1", "+train.distributed.activation_checkpointing=true", "track=none")
    record = emulated_record(1, recipe="llama70b_peft")
    record = dataclasses.replace(record, command=("python", "-m", "cctrain", "recipe=llama70b_peft", *changes))
    said = words.beside_seed(answered(tmp_path, record).comparisons[0])
    assert said.endswith(", train.distributed.activation_checkpointing=true")
    assert "tp_size" not in said


def test_a_model_with_fewer_layers_is_called_so_and_is_not_the_seed_posts(tmp_path):
    """Also in the first records, which say so in their command only."""
    command = ("python", "-m", "cctrain", "recipe=llama70b_peft", "+train.model.config.num_hidden_layers=16")
    records = [dataclasses.replace(emulated_record(n, recipe="llama70b_peft"), command=command) for n in range(2)]
    answer = answered(tmp_path, *records, by=("model",))
    (one,) = answer.comparisons
    assert one.setting == "llama-3.1-8b, num_hidden_layers 16"
    assert words.beside_seed(one) == ""
    assert [row[0] for row in dict(ratios_table.rows_by_title(answer))[words.title(one)]] == [words.what(one)]


def test_what_a_graphed_step_gains_is_not_held_against_the_seed_posts_loss(tmp_path):
    records = [
        dataclasses.replace(emulated_record(number, recipe="llama70b_peft"), step_kind=kind)
        for number, kind in enumerate(("stock", "graphed"))
    ]
    answer = answered(tmp_path, *records, by=("step",))
    said = {one.setting: words.beside_seed(one) for one in answer.comparisons}
    assert len(said) == 3
    assert [setting for setting, text in said.items() if text] == ["stock"]
    rows = {title: [row[0] for row in rows] for title, rows in ratios_table.rows_by_title(answer)}
    assert [title for title, names in rows.items() if "seed post, 8 x B300" in names] == ["llama70b_peft, stock"]


def test_how_much_faster_a_step_is_is_no_loss(tmp_path):
    records = [dataclasses.replace(emulated_record(n), step_kind=kind) for n, kind in enumerate(("stock", "graphed"))]
    answer = answered(tmp_path, *records, by=("step",))
    losses = {one["setting"]: one["loss"] for one in ratios_table.facts(answer)["comparisons"]}
    assert [setting for setting, loss in losses.items() if loss is None] == ["emulated b300"]
    column = ratios_table.COLUMNS.index("loss")
    rows = dict(ratios_table.rows_by_title(answer))
    assert [title for title, (row, *_) in rows.items() if not row[column]] == ["llama8b_peft, emulated b300"]


def test_figures_of_a_cpu_say_that_there_was_no_gpu(tmp_path):
    on_cpu = {"identity": identity(gpu=["cpu"])}
    kinds = [run_record("off", n, step_kind=kind, **on_cpu) for n, kind in enumerate(("stock", "graphed"))]
    said = "no GPU: these are figures of a CPU, which say nothing about CC or any GPU"
    assert said in answered(tmp_path / "cpu", *kinds, by=("step",)).notes
    assert said not in answered(tmp_path / "gpu", *pairs(2)).notes
    assert said not in answered(tmp_path / "emulated", emulated_record(1, keep=0.8, **on_cpu)).notes


@pytest.mark.parametrize(
    ("mode", "boots", "is_said"),
    [
        ("emulated", ("a", "b"), True),
        ("emulated", ("a", "a"), False),
        ("emulated", ("a", None), False),
        ("on", ("a", "b"), False),
    ],
)
def test_runs_of_several_machines_are_said_to_be_unless_cc_was_switched_between_them(tmp_path, mode, boots, is_said):
    records = [emulated_record(number, keep=0.8) for number in range(2)] if mode == "emulated" else pairs(1)
    of_boots = [
        dataclasses.replace(record, platform={**record.platform, "host": {"boot": boot}})
        for record, boot in zip(records, boots, strict=True)
    ]
    notes = answered(tmp_path, *of_boots).notes
    assert any("the runs are of 2 machines, or boots of them" in note for note in notes) == is_said
