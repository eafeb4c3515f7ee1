"""What is compared with what, what is refused, and what is said of it."""

import dataclasses

import make_records
import numpy as np
import pytest
from make_records import emulated_record, identity, one_pair, run_record, write

from cctrain.comparison.comparable import RefusedError
from cctrain.comparison.compare import compare
from cctrain.comparison.groups import Options
from cctrain.errors import RequestError
from cctrain.load import read_runs
from cctrain.report import ratios_table, words


def answered(tmp_path, *records, **options):
    for record in records:
        write(tmp_path, record)
    return compare(read_runs([tmp_path]), Options(**options))


def refused(tmp_path, *records, **options):
    with pytest.raises(RefusedError) as error:
        answered(tmp_path, *records, **options)
    return error.value.why


def pairs(num, keep=0.7, **facts):
    for number in range(num):
        yield run_record("off", 2 * number, **facts)
        yield run_record("on", 2 * number + 1, **{"step_time_s": 0.2 / keep, **facts})


def test_interleaved_runs_are_paired_and_the_loss_is_found(tmp_path):
    (one,) = answered(tmp_path, *pairs(5)).comparisons
    assert (one.pairing, one.verdict, one.num_runs, one.more) == ("interleaved", "costs", 10, None)
    assert one.keep_ratio == pytest.approx(0.7, abs=0.005)
    assert one.ci95[0] < 0.7 < one.ci95[1]
    assert "5 pairs of interleaved runs" in words.sentence(one, 0.01)


def test_the_figure_of_a_run_is_its_median_so_that_single_slow_steps_move_the_means_only(tmp_path):
    slow = []
    for record in pairs(3):
        steps = list(record.steps)
        if record.mode == "on":
            for index in range(15, len(steps), 10):
                times = {"step_time_s": 1.5, "rank_step_time_s": (1.5,)}
                steps[index] = dataclasses.replace(steps[index], **times)
        slow.append(dataclasses.replace(record, steps=tuple(steps)))
    (one,) = answered(tmp_path, *slow, allow=("steady",)).comparisons
    assert one.keep_ratio == pytest.approx(0.7, abs=0.01)
    assert one.keep_ratio_of_means < 0.6
    assert "counts slow steps" in " ".join(words.remarks(one, 0.01))


def test_runs_one_mode_after_the_other_are_not_paired(tmp_path):
    records = [run_record("off", number) for number in range(3)]
    records += [run_record("on", 10 + number, step_time_s=0.28) for number in range(3)]
    (one,) = answered(tmp_path, *records).comparisons
    assert one.pairing == "none"
    assert "not interleaved" in words.sentence(one, 0.01)


def test_off_on_off_is_compared_without_pairs(tmp_path):
    records = [
        run_record("off", 1),
        run_record("on", 2),
        run_record("off", 3),
        run_record("on", 4),
        run_record("off", 5),
    ]
    (one,) = answered(tmp_path, *records).comparisons
    assert (one.pairing, len(one.base_arms), len(one.other_arms)) == ("none", 3, 2)
    assert one.ci95


def test_on_before_off_is_interleaved_too(tmp_path):
    records = [run_record("off", 1), run_record("on", 2), run_record("on", 3), run_record("off", 4)]
    (one,) = answered(tmp_path, *records).comparisons
    assert one.pairing == "interleaved"
    assert [arm.run.run_id[9:15] for arm in one.base_arms] == ["000001", "000004"]


@pytest.mark.parametrize("started_at", ["", "yesterday", "2026-11-20T08:00:00+00:00"])
def test_runs_of_unknown_or_equal_time_are_not_paired(tmp_path, started_at):
    records = [dataclasses.replace(record, started_at=started_at) for record in pairs(2)]
    assert answered(tmp_path, *records).comparisons[0].pairing == "none"


def test_one_pair_has_no_interval_and_says_what_would_settle_it(tmp_path):
    (one,) = answered(tmp_path, *pairs(1)).comparisons
    assert (one.ci95, one.verdict, one.num_runs) == (None, "unclear", 2)
    assert one.within_run_ci95[0] < one.keep_ratio < one.within_run_ci95[1]
    remarks = " ".join(words.remarks(one, 0.01))
    assert "From the noise within the runs alone" in remarks
    assert "1 more run of each would settle it" in remarks
    assert "assumed" in remarks


def test_equal_runs_are_free(tmp_path):
    (one,) = answered(tmp_path, *pairs(5, keep=1.0, between=0.001)).comparisons
    assert one.verdict == "free"
    assert words.headline(one) == "CC is free"


def test_noisy_runs_are_unclear_and_their_own_spread_says_how_many_more(tmp_path):
    (one,) = answered(tmp_path, *pairs(3, keep=0.97, between=0.03)).comparisons
    assert one.verdict == "unclear"
    assert not one.more.is_assumed
    assert "as these runs vary" in words.more_runs(one)


def test_modes_stand_side_by_side_and_measured_ones_make_the_headline(tmp_path):
    emulated = [
        emulated_record(20 + number, profile=name, keep=0.5) for name in ("b300", "hopper") for number in (1, 2)
    ]
    for number, record in enumerate(emulated):
        emulated[number] = dataclasses.replace(record, run_id=f"emulated-{number}")
    answer = answered(tmp_path, *pairs(3), *emulated)
    assert [(one.base, one.other) for one in answer.comparisons] == [
        ("off", "on"),
        ("off", "emulated b300"),
        ("off", "emulated hopper"),
    ]
    assert answer.worst.other == "on"
    assert answer.comparisons[1].base_arms[0].run.mode == "emulated"


def test_profiles_of_one_name_and_other_content_are_told_apart(tmp_path):
    other = dataclasses.replace(emulated_record(2), tolls={"name": "b300", "sha256": "ffff0000"})
    answer = answered(tmp_path, emulated_record(1), other)
    assert len({one.other for one in answer.comparisons}) == 2
    assert any("ffff0000" in one.other for one in answer.comparisons)


def test_emulated_runs_can_be_held_against_runs_with_cc_off(tmp_path):
    records = [run_record("off", 1), run_record("off", 2), emulated_record(3, keep=0.8), emulated_record(4, keep=0.8)]
    (one,) = answered(tmp_path, *records, against_off_runs=True).comparisons
    assert {arm.run.mode for arm in one.base_arms} == {"off"}
    assert one.keep_ratio == pytest.approx(0.8, abs=0.01)


def test_runs_with_cc_off_beside_emulated_ones_are_named_as_left_out(tmp_path):
    answer = answered(tmp_path, run_record("off", 0), emulated_record(1))
    assert [one.pairing for one in answer.comparisons] == ["same run"]
    assert "in no comparison: 1 run with mode off, as emulated runs are held against their own plain" in answer.notes[0]
    assert "compare --against-off-runs holds" in answer.notes[0]


def test_emulated_against_on_is_refused_unless_allowed(tmp_path):
    records = [run_record("on", 1, step_time_s=0.25), emulated_record(2, keep=0.8)]
    assert "emulated runs stand against runs with CC on" in refused(tmp_path, *records)
    answer = answered(tmp_path, allow=("mode",))
    assert [(one.base, one.other) for one in answer.comparisons] == [("off", "emulated b300"), ("on", "emulated b300")]
    assert words.allowed(answer) == ["--allow mode: emulated runs stand against runs with CC on"]


def test_every_field_of_identity_that_differs_is_named(tmp_path):
    facts = identity(precision="fp8", versions={"torch": "2.14.0", "nemo-automodel": "0.7.0", "transformers": "5.18.0"})
    why = refused(tmp_path, run_record("off", 1), run_record("on", 2, identity=facts))
    off, on = "20261120-000001-llama8b_peft-off", "20261120-000002-llama8b_peft-on"
    assert why == (
        f"identity.precision differs: bf16 ({off}), fp8 ({on})",
        f"identity.versions.torch differs: 2.13.0 ({off}), 2.14.0 ({on})",
    )
    with pytest.raises(RefusedError, match=r"identity\.precision"):
        answered(tmp_path, allow=("identity.versions.torch",))
    answer = answered(tmp_path, allow=("identity.versions", "identity.precision"))
    assert words.allowed(answer) == [f"--allow {each.split()[0]}: {each}" for each in why]


def test_long_values_that_differ_at_their_end_are_told_apart(tmp_path):
    records = [
        run_record(mode, number, identity=identity(model="a" * 100 + mode)) for number, mode in enumerate(("off", "on"))
    ]
    assert any("identity.model" in each for each in refused(tmp_path, *records))


def test_partial_unsteady_and_unknown_runs_are_refused_by_name(tmp_path):
    off = run_record("off", 1, status="partial", failure="killed")
    steps = make_records.step_records([0.2] * 50 + [0.25] * 50)
    unknown = run_record("unknown", 2, steps=steps)
    why = " ".join(refused(tmp_path, off, unknown))
    assert "status of 20261120-000001-llama8b_peft-off is partial (killed)" in why
    assert "mode of 20261120-000002-llama8b_peft-unknown is unknown" in why
    assert "step times changed by +25.0% at step 51" in why
    answer = answered(tmp_path, allow=("status", "mode", "steady"))
    assert len(answer.objections) == 3
    assert words.headline(answer.worst) == "The unknown mode: unclear, 20.0 % lost"


@pytest.mark.parametrize(
    "facts", [{"step_time_s": 0.0, "rank_step_time_s": (0.0,)}, {"phases_s": {"forward": 0.3, "backward": -0.1}}]
)
def test_a_clock_that_did_not_go_forward_cannot_be_allowed(tmp_path, facts):
    steps = list(make_records.step_records([0.2] * 60))
    steps[30] = dataclasses.replace(steps[30], **facts)
    records = [run_record("off", 1, steps=steps), run_record("on", 2)]
    with pytest.raises(RequestError, match="a clock stood still or went backwards"):
        answered(tmp_path, *records, allow=("steady",))


def test_steps_without_tokens_cannot_be_allowed(tmp_path):
    empty = emulated_record(1)
    steps = tuple(dataclasses.replace(step, padded_tokens=0) if step.block == 2 else step for step in empty.steps)
    with pytest.raises(RequestError, match="or a step has no tokens"):
        answered(tmp_path, dataclasses.replace(empty, steps=steps), emulated_record(2), allow=("steady",))


def test_runs_are_left_out_for_what_speaks_against_them_alone_and_are_named(tmp_path):
    cut = dataclasses.replace(run_record("off", 8), status="partial", failure="killed")
    why = refused(tmp_path, *pairs(2), cut)
    assert why == ("status of 20261120-000008-llama8b_peft-off is partial (killed)",)
    answer = answered(tmp_path, leave_out=("status",))
    assert (answer.comparisons[0].num_runs, len(answer.runs)) == (4, 4)
    assert answer.notes == (f"left out: {why[0]}",)
    with pytest.raises(
        RefusedError, match=r"leave out such runs \(--leave-out status\), or take them with --allow status"
    ):
        answered(tmp_path, leave_out=("steady",))
    other = run_record("on", 9, status="partial", failure="killed")
    with pytest.raises(RequestError, match=r"--leave-out status leaves no run; left out: .*; left out: status of"):
        answered(tmp_path / "alone", cut, other, leave_out=("status",))


@pytest.mark.parametrize(
    ("name", "meant"),
    [("identity.version.torch", r"identity\.versions\.torch"), ("identity.engine", "engine")],
)
def test_an_allowed_name_that_no_run_has_is_corrected(tmp_path, name, meant):
    with pytest.raises(RequestError, match=rf"Did you mean {meant}\?"):
        answered(tmp_path, *pairs(1), allow=(name,))


def test_stock_and_graphed_steps_are_refused_together_and_compared_apart(tmp_path):
    graphed = [
        dataclasses.replace(record, run_id=f"{record.run_id}-graphed", step_kind="graphed")
        for record in pairs(3, keep=0.99, step_time_s=0.1)
    ]
    off = "20261120-000000-llama8b_peft-off"
    assert (
        f"step_kind differs: stock ({off} and 5 more), graphed ({off}-graphed and 5 more); --by step puts them side by "
        "side"
    ) in refused(tmp_path, *pairs(3), *graphed)
    answer = answered(tmp_path, by=("step",))
    found = {(one.setting, one.base, one.other): one for one in answer.comparisons}
    assert set(found) == {
        ("stock", "off", "on"),
        ("graphed", "off", "on"),
        ("CC off", "stock", "graphed"),
        ("CC on", "stock", "graphed"),
    }
    assert answer.worst is found["stock", "off", "on"]
    assert found["CC off", "stock", "graphed"].keep_ratio == pytest.approx(2, abs=0.05)
    assert found["CC off", "stock", "graphed"].verdict == "gains"


def test_counts_and_rates_stand_as_what_is_compared_does(tmp_path):
    steps = [run_record("off", n, step_time_s=0.2 + 0.01 * n) for n in range(2)]
    graphed = [dataclasses.replace(run_record("off", 2 + n, step_time_s=0.1), step_kind="graphed") for n in range(3)]
    answer = answered(tmp_path, *steps, *graphed, by=("step",))
    (one,) = answer.comparisons
    assert "from 3 runs against 2" in words.sentence(one, 0.01)
    (((*_, rates, runs, _),),) = [rows for _, rows in ratios_table.rows_by_title(answer)]
    assert (words.what(one), runs) == ("graphed / stock", "3 + 2")
    base, other = (float(rate.replace(",", "")) for rate in rates.split(" -> "))
    assert other / base == pytest.approx(one.keep_ratio, rel=1e-3)


def of_engine(engine, number, peft=None, **facts):
    versions = identity()["versions"] | ({"peft": peft} if peft else {})
    record = run_record("off", number, **facts)
    return dataclasses.replace(record, engine=engine, identity={**record.identity, "versions": versions})


def test_a_step_that_pads_more_gains_nothing_by_it(tmp_path):
    records = []
    for number in range(4):
        record = run_record("off", number)
        if number % 2:  # in the same time, a quarter more padding around the same tokens
            steps = [dataclasses.replace(step, padded_tokens=step.padded_tokens * 5 // 4) for step in record.steps]
            record = dataclasses.replace(record, step_kind="graphed", steps=tuple(steps))
        records.append(record)
    (one,) = answered(tmp_path, *records, by=("step",)).comparisons
    assert (one.base, one.other) == ("stock", "graphed")
    assert one.keep_ratio == pytest.approx(1.0, abs=0.01)
    assert np.median(one.other_rates) == pytest.approx(np.median(one.base_rates), rel=0.01)


def test_steps_without_a_real_token_have_no_rate_to_compare_between_steps(tmp_path):
    records = [dataclasses.replace(run_record("off", n), step_kind=kind) for n, kind in enumerate(("stock", "graphed"))]
    steps = [dataclasses.replace(step, real_tokens=0) for step in records[1].steps]
    with pytest.raises(RequestError, match="no token of its steps is real: it has no rate"):
        answered(tmp_path, records[0], dataclasses.replace(records[1], steps=tuple(steps)), by=("step",))


def test_engines_are_compared_whose_records_name_different_packages(tmp_path):
    records = [of_engine("automodel", 0), of_engine("hf", 1, "0.21", step_time_s=0.25), of_engine("automodel", 2)]
    records.append(of_engine("hf", 3, "0.21", step_time_s=0.25))
    (one,) = answered(tmp_path, *records, by=("engine",)).comparisons
    assert (one.base, one.other) == ("automodel", "hf")
    assert one.keep_ratio == pytest.approx(0.8, abs=0.01)


def test_where_cc_is_compared_too_a_slow_engine_is_not_what_cc_costs(tmp_path):
    slow = [
        dataclasses.replace(record, run_id=f"{record.run_id}-hf", engine="hf")
        for record in pairs(3, keep=0.97, step_time_s=0.4)
    ]
    slow = [
        dataclasses.replace(record, steps=make_records.step_records([0.4 / (0.97 if record.mode == "on" else 1)] * 105))
        for record in slow
    ]
    answer = answered(tmp_path, *pairs(3, keep=0.97), *slow, by=("engine",))
    assert answer.worst.keep_ratio == pytest.approx(0.97, abs=0.01)
    assert words.gate(answer, 0.9) == (True, [])
    assert min(one.keep_ratio for one in answer.comparisons) == pytest.approx(0.5, abs=0.01)


def test_runs_of_one_engine_with_different_packages_are_not_taken_for_one(tmp_path):
    records = [of_engine("automodel", 0), of_engine("hf", 1, "0.21"), of_engine("hf", 2, "0.20")]
    (why,) = refused(tmp_path, *records, by=("engine",))
    assert "identity.versions.peft differs: 0.21 (20261120-000001-llama8b_peft-off), 0.20 (" in why


def test_sequence_lengths_stand_side_by_side(tmp_path):
    records = [*pairs(2), *pairs(2, keep=0.95, seq_len=4096, step_time_s=0.5)]
    records = [dataclasses.replace(record, run_id=f"run-{number}") for number, record in enumerate(records)]
    assert any("--by sequence" in each for each in refused(tmp_path, *records))
    answer = answered(tmp_path, by=("sequence",))
    assert [one.setting for one in answer.comparisons] == ["seq_len 256", "seq_len 4096"]


@pytest.mark.parametrize(
    ("by", "part", "sizes", "settings"),
    [
        (
            *("batch", "batch"),
            ({"local_batch_size": 2, "global_batch_size": 4}, {"local_batch_size": 16, "global_batch_size": 16}),
            ["micro-batch 2, global 4", "micro-batch 16, global 16"],
        ),
        ("layout", "layout", ({"data": 1, "tensor": 1}, {"data": 2, "tensor": 2}), ["one rank", "data 2 x tensor 2"]),
        ("layout", "layout", ({"world": 4, "data": 4}, {"world": 8, "data": 8}), ["data 4", "data 8"]),
    ],
)
def test_batches_and_layouts_stand_side_by_side_from_small_to_large(tmp_path, by, part, sizes, settings):
    records = [
        dataclasses.replace(record, identity={**record.identity, part: size}, run_id=f"run-{index}{number}")
        for index, size in enumerate(reversed(sizes))
        for number, record in enumerate(pairs(2))
    ]
    assert any(f"--by {by}" in each for each in refused(tmp_path, *records))
    answer = answered(tmp_path, by=(by,))
    assert [one.setting for one in answer.comparisons] == settings


def test_recipes_are_compared_each_by_itself_and_what_is_left_over_is_noted(tmp_path):
    alone = run_record("off", 9, recipe="llama8b_sft")
    answer = answered(tmp_path, *pairs(1), alone)
    assert [one.recipe for one in answer.comparisons] == ["llama8b_peft"]
    assert answer.notes == ("nothing to hold llama8b_sft: 1 run off against",)


def test_runs_of_one_mode_are_nothing_to_compare(tmp_path):
    with pytest.raises(RequestError, match="nothing to compare"):
        answered(tmp_path, run_record("off", 1), run_record("off", 2))


def test_a_gate_fails_below_and_warns_where_the_interval_holds_it(tmp_path):
    answer = answered(tmp_path, *pairs(5))
    assert words.gate(answer, 0.5) == (True, [])
    is_passed, texts = words.gate(answer, 0.9)
    assert not is_passed
    assert "is below --min-keep 0.9" in texts[0]
    is_passed, texts = words.gate(answer, answer.worst.keep_ratio - 1e-6)
    assert is_passed
    assert "holds --min-keep" in texts[0]


def test_a_recipe_of_the_seed_post_stands_beside_it(tmp_path):
    from cctrain.report.ratios_table import rows_by_title

    one_pair(tmp_path)
    answer = answered(tmp_path, allow=("steady", "identity.versions.torch"))
    ((_, rows),) = rows_by_title(answer)
    assert rows[1] == ["seed post, 8 x B300", "0.703", "none", "29.7 %", "", "", "published"]


def test_runs_of_different_code_are_compared_with_a_note(tmp_path):
    records = []
    for record in pairs(2):
        commit = "0123456789" if record.mode == "on" else "9876543210"
        repository = {"cctrain": {"commit": commit, "is_dirty": False}}
        records.append(dataclasses.replace(record, platform={**record.platform, "repository": repository}))
    said = "the runs are of different commits of cctrain: 987654321, 012345678"
    assert answered(tmp_path / "unlike", *records).notes == (said,)
    assert answered(tmp_path / "unknown", *pairs(2)).notes == ()
