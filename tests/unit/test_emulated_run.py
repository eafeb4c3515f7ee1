"""What an emulated run comes to, from its steps: arms, rounds, the keep ratio, where the loss comes from, crossings."""

import math

import pytest

from cctrain.commands.explain import settings
from cctrain.emulation.arms import CUPTI, OPERATORS, arms, explained_classes, only, tolls_of, unpaid_note, without
from cctrain.emulation.blocks import ALL, OFF, schedule
from cctrain.emulation.crossings import mean_crossings
from cctrain.emulation.explain import explain
from cctrain.emulation.injector import _WORDS, counted
from cctrain.emulation.keep import keep_ratio
from cctrain.emulation.outcome import of_arm, outcome
from cctrain.emulation.profile import TOLLS, Profile, Toll, load_profile
from cctrain.emulation.rounds import seconds, whole_rounds
from cctrain.records import StepRecord
from cctrain.reduce import summarize

SOME = {"launch_us": 20.0, "wait_us": 30.0, "copy_h2d_pinned_us": ((0, 9.0),), "collective_us": 5.0}


def profile(**values):
    return Profile("test", {name: Toll(values.get(name), None, "test") for name in TOLLS})


def record(number, arm, block, times, *, tokens=100, is_warmup=False):
    times = times if isinstance(times, tuple) else (times,)
    counts = {"padded_tokens": tokens, "real_tokens": tokens, "label_tokens": tokens, "num_images": 0}
    place = {"arm": arm, "block": block, "is_tolled": {OFF: False, ALL: True}.get(arm), "is_warmup": is_warmup}
    facts = {"step": number, "step_time_s": max(times), "rank_step_time_s": times, "data_wait_s": 0.0}
    return StepRecord(**facts, phases_s=None, loss=1.0, **counts, **place)


def run_of(every_arm, rounds, step_time_s, *, warmup=3, steps_of_a_block=6):
    """The steps of a run whose steps take `step_time_s(arm, number)`."""
    slots = schedule(len(every_arm) * rounds * steps_of_a_block, every_arm, rounds)
    steps = [record(number + 1, None, None, 9.0, is_warmup=True) for number in range(warmup)]
    for slot in slots:
        number = len(steps) + 1
        steps.append(record(number, slot.arm, slot.block, step_time_s(slot.arm, number), is_warmup=slot.is_settling))
    return steps


# Arms


def test_an_emulated_run_has_a_plain_arm_and_a_tolled_one():
    assert arms(load_profile("b300"), is_explained=False, num_ranks=2) == (OFF, ALL)


def test_to_explain_each_class_with_something_to_pay_is_alone_and_left_out():
    classes = ("launch", "wait", "copy", "collective")
    assert explained_classes(profile(**SOME), 2) == classes
    found = arms(profile(**SOME), is_explained=True, num_ranks=2)
    assert found == (OFF, ALL, *(f"only {name}" for name in classes), *(f"without {name}" for name in classes))
    assert [only("wait"), without("wait")] == [found[3], found[7]]


@pytest.mark.parametrize("step", ["step=stock", "step=graphed", "step.kind=auto"])
def test_explain_takes_five_steps_for_each_block_of_every_arm(step):
    *_, num_steps = (
        int(one.partition("=")[2]) for one in settings(["tolls=b300", step]) if one.startswith("measure.steps=")
    )
    every_arm = arms(load_profile("b300"), is_explained=True, num_ranks=2, has_graphs=step != "step=stock")
    assert num_steps == 5 * 8 * len(every_arm)


def test_one_rank_has_no_collectives_to_explain():
    assert "collective" not in explained_classes(profile(**SOME), 1)


def test_where_operators_stand_in_for_a_gpu_only_launches_are_paid():
    assert explained_classes(load_profile("b300"), 2, OPERATORS) == ("launch",)
    assert explained_classes(profile(wait_us=3.0), 2, OPERATORS) == ()
    every_arm = arms(load_profile("b300"), is_explained=True, num_ranks=2, counted_by=OPERATORS)
    assert every_arm == (OFF, ALL, "only launch", "without launch")


def test_an_arm_pays_all_one_all_but_one_or_nothing():
    whole = profile(**SOME)
    assert tolls_of(whole, OFF) is None
    assert tolls_of(whole, ALL).classes() == whole.classes()
    assert tolls_of(whole, only("copy")).classes() == ("copy",)
    assert tolls_of(whole, without("copy")).classes() == ("launch", "wait", "collective")
    assert tolls_of(whole, ALL).sha256 == whole.sha256


def test_a_profile_that_charges_nothing_where_it_is_paid_is_said_to():
    assert "the profile test charges nothing" in unpaid_note(profile(launch_us=0.0, host_ratio=1.0), CUPTI)
    assert unpaid_note(profile(wait_us=3.0), CUPTI) is None
    assert "charges nothing" in unpaid_note(profile(wait_us=3.0), OPERATORS)


# Rounds


def test_a_round_holds_the_measured_steps_of_each_arms_block():
    steps = run_of((OFF, ALL), 4, lambda *_: 1.0)
    rounds = whole_rounds(steps, (OFF, ALL), {})
    assert len(rounds) == 4
    for index, blocks in enumerate(rounds):
        assert set(blocks) == {OFF, ALL}
        for block in blocks.values():
            assert len(block) == 4
            assert {step.block // 2 for step in block} == {index}
            assert not any(step.is_warmup for step in block)


def test_steps_that_settle_are_no_steady_ones():
    steps = of_arm(run_of((OFF, ALL), 4, lambda *_: 1.0), ALL)
    state = summarize(steps, 1, None).steady_state
    found = state.of(steps)
    assert len(found) == state.num_steps < len([step for step in steps if step.step >= state.first_step])
    assert not any(step.is_warmup for step in found)


def test_a_round_that_the_run_did_not_finish_is_left_out():
    steps = run_of((OFF, ALL), 4, lambda *_: 1.0)
    end = next(step.step for step in steps if step.block == 5)
    assert len(whole_rounds(steps[: end - 1], (OFF, ALL), {})) == 2


def test_a_run_that_ended_before_each_arm_had_its_block_has_no_round():
    every_arm = arms(profile(**SOME), is_explained=True, num_ranks=2)
    steps = run_of(every_arm, 2, lambda *_: 1.0)
    for num_blocks in (1, 2, 5, 9):
        begun = [step for step in steps if step.block is None or step.block < num_blocks]
        assert whole_rounds(begun, every_arm, {}) == []


def test_rounds_before_an_arm_is_steady_are_left_out():
    steps = run_of((OFF, ALL), 4, lambda *_: 1.0)
    firsts = {arm: [step.step for step in steps if step.arm == arm and not step.is_warmup] for arm in (OFF, ALL)}
    assert len(whole_rounds(steps, (OFF, ALL), {OFF: firsts[OFF][0], ALL: firsts[ALL][0]})) == 4
    # One step into the first block of one arm: that round is not whole.
    assert len(whole_rounds(steps, (OFF, ALL), {OFF: firsts[OFF][0], ALL: firsts[ALL][1]})) == 3
    assert len(whole_rounds(steps, (OFF, ALL), {OFF: firsts[OFF][4], ALL: firsts[ALL][8]})) == 2
    assert whole_rounds(steps, (OFF, ALL), {OFF: 10**6, ALL: 1}) == []


def test_a_block_takes_as_long_as_the_rank_that_took_longest_for_all_of_it():
    block = [record(1, OFF, 0, (0.7, 0.4)), record(2, OFF, 0, (0.4, 0.6))]
    assert seconds(block) == pytest.approx(1.1)  # not 0.7 + 0.6


# The keep ratio


def rounds_of(*pairs, num=2, tokens=100):
    """Rounds whose blocks have `num` steps of these times, plain and tolled."""
    return [
        {arm: [record(1, arm, 0, time, tokens=tokens)] * num for arm, time in zip((OFF, ALL), pair, strict=True)}
        for pair in pairs
    ]


def test_the_keep_ratio_is_the_geometric_mean_of_the_pairs():
    kept = keep_ratio(rounds_of((1.0, 1.25), (1.0, 2.0)))
    assert kept.value == pytest.approx(math.sqrt(0.8 * 0.5))
    assert kept.num_pairs == 2


def test_its_interval_is_students_of_the_pairs_logarithms():
    kept = keep_ratio(rounds_of((1.0, 1.25), (1.0, 2.0)))
    half = 12.7062 * abs(math.log(0.8) - math.log(0.5)) / 2  # t of one degree of freedom; the error of two values
    middle = (math.log(0.8) + math.log(0.5)) / 2
    assert kept.ci95 == pytest.approx((math.exp(middle - half), math.exp(middle + half)), rel=1e-4)
    three = keep_ratio(rounds_of((1.0, 1.25), (1.0, 1.25), (1.0, 2.0)))
    logs = [math.log(0.8), math.log(0.8), math.log(0.5)]
    mean = sum(logs) / 3
    error = math.sqrt(sum((log - mean) ** 2 for log in logs) / 2 / 3)
    assert three.ci95[1] == pytest.approx(math.exp(mean + 4.30265 * error), rel=1e-4)


def test_what_the_tolls_add_is_a_steps_own_time_with_its_interval_over_the_pairs():
    kept = keep_ratio(rounds_of((1.0, 1.25), (3.0, 3.35), num=4))  # the plain step drifts, what is added does not
    assert kept.added_s == pytest.approx(0.3)
    assert kept.added_ci95 == pytest.approx((0.3 - 12.7062 * 0.05, 0.3 + 12.7062 * 0.05), rel=1e-4)


def test_what_the_tolls_add_is_nothing_that_longer_samples_take():
    blocks = {OFF: [record(1, OFF, 0, 1.0, tokens=100)], ALL: [record(2, ALL, 1, 3.0, tokens=200)]}
    assert keep_ratio([blocks]).added_s == pytest.approx(0.5)  # a step of 100 tokens would take 1.5 s


def test_one_pair_has_no_interval_and_none_has_no_ratio():
    kept = keep_ratio(rounds_of((1.0, 1.25)))
    assert (kept.value, kept.ci95, kept.num_pairs) == (pytest.approx(0.8), None, 1)
    assert (kept.added_s, kept.added_ci95) == (pytest.approx(0.25), None)
    assert keep_ratio([]) is None


def test_it_is_one_of_throughput_not_of_step_times():
    blocks = {OFF: [record(1, OFF, 0, 1.0, tokens=100)], ALL: [record(2, ALL, 1, 1.0, tokens=50)]}
    assert keep_ratio([blocks]).value == pytest.approx(0.5)


def test_what_drifts_through_the_run_cancels_over_mirrored_pairs():
    times = {OFF: 1.0, ALL: 1.25}
    steps = run_of((OFF, ALL), 8, lambda arm, number: times[arm] * math.exp(0.002 * number))
    assert keep_ratio(whole_rounds(steps, (OFF, ALL), {})).value == pytest.approx(0.8, rel=1e-9)


# Where the loss comes from


def test_longer_samples_of_an_arm_are_no_toll_and_what_all_cost_is_what_the_tolls_add():
    took = {OFF: (1.0, 100), ALL: (3.0, 200), only("launch"): (1.5, 100), without("launch"): (0.5, 50)}
    blocks = [{arm: [record(1, arm, 0, time, tokens=tokens)] for arm, (time, tokens) in took.items()}] * 2
    found = explain(blocks, ("launch",), {"launch": 0.5})
    assert found["total_s"] == pytest.approx(keep_ratio(blocks).added_s) == pytest.approx(0.5)
    assert found["classes"][0]["cost_s"] == pytest.approx(0.5)


CLASSES = ("launch", "wait", "copy")
COSTS = {"launch": 0.030, "wait": 0.010, "copy": 0.002}


def paid_by(arm):
    if arm in (OFF, ALL):
        return CLASSES if arm == ALL else ()
    kind, _, name = arm.partition(" ")
    return (name,) if kind == "only" else tuple(each for each in CLASSES if each != name)


def explained(step_time_s, rounds=4, injected_s=None):
    every_arm = (OFF, ALL, *map(only, CLASSES), *map(without, CLASSES))
    steps = run_of(every_arm, rounds, step_time_s)
    return explain(whole_rounds(steps, every_arm, {}), CLASSES, injected_s or COSTS)


def test_costs_that_add_up_are_recovered_exactly():
    found = explained(lambda arm, _: 0.1 + sum(COSTS[name] for name in paid_by(arm)))
    assert found["num_rounds"] == 4
    for row in found["classes"]:
        cost = pytest.approx(COSTS[row["name"]])
        assert [row["cost_s"], row["alone_s"], row["left_out_s"], *row["ci95"]] == [cost] * 5
        assert row["injected_s"] == COSTS[row["name"]]
    assert found["total_s"] == pytest.approx(0.042)
    assert found["unexplained_s"] == pytest.approx(0, abs=1e-12)
    assert found["host_bound_share"] == pytest.approx(1)


def test_costs_are_recovered_through_a_drift():
    found = explained(lambda arm, number: 0.1 + 1e-4 * number + sum(COSTS[name] for name in paid_by(arm)))
    assert {row["name"]: pytest.approx(row["cost_s"]) for row in found["classes"]} == COSTS


def test_tolls_that_hide_behind_the_gpu_cost_less_alone_than_together():
    """A step takes as long as the GPU's work, 0.12 s, or the host's, 0.1 s and the tolls."""
    found = explained(lambda arm, _: max(0.12, 0.1 + sum(COSTS[name] for name in paid_by(arm))))
    rows = {row["name"]: row for row in found["classes"]}
    assert rows["launch"]["alone_s"] == pytest.approx(0.010)
    assert rows["launch"]["left_out_s"] == pytest.approx(0.022)
    assert rows["launch"]["cost_s"] == pytest.approx(0.016)
    assert rows["wait"]["alone_s"] == pytest.approx(0.0)
    assert rows["wait"]["left_out_s"] == pytest.approx(0.010)
    total = sum(row["cost_s"] for row in found["classes"]) + found["unexplained_s"]
    assert found["total_s"] == pytest.approx(total) == pytest.approx(0.022)
    assert found["unexplained_s"] == pytest.approx(0.0)
    assert found["host_bound_share"] == pytest.approx(22 / 42)


def test_what_only_two_classes_together_cost_is_shared_between_them():
    found = explained(lambda arm, _: 0.1 + (0.008 if {"launch", "wait"} <= set(paid_by(arm)) else 0.0))
    assert {row["name"]: pytest.approx(row["cost_s"], abs=1e-12) for row in found["classes"]} == {
        "launch": 0.004,
        "wait": 0.004,
        "copy": 0.0,
    }


def test_what_only_three_together_cost_is_more_than_the_costs_account_for_or_less():
    found = explained(lambda arm, _: 0.1 + (0.009 if len(paid_by(arm)) == 3 else 0.0))
    costs = [row["cost_s"] for row in found["classes"]]
    assert costs == pytest.approx([0.00225] * 3)  # in the half of the steps that pay it, 0.009 in one of four arms
    assert found["unexplained_s"] == pytest.approx(0.009 - sum(costs))
    assert found["unexplained_ci95"] == pytest.approx([found["unexplained_s"]] * 2)


@pytest.mark.parametrize("num", [1, 2])
def test_the_costs_of_fewer_than_three_classes_leave_no_rest_that_could_be_told_from_noise(num):
    classes = CLASSES[:num]
    every_arm = (OFF, ALL, *map(only, classes), *map(without, classes))
    took_s = dict(zip(every_arm, (0.100, 0.150, 0.120, 0.111, 0.123, 0.137), strict=False))
    found = explain(whole_rounds(run_of(every_arm, 4, lambda arm, _: took_s[arm]), every_arm, {}), classes, COSTS)
    assert found["total_s"] == pytest.approx(0.050)
    assert (found["unexplained_s"], found["unexplained_ci95"]) == (None, None)


def test_one_round_gives_costs_without_intervals_and_none_gives_nothing():
    found = explained(lambda arm, _: 0.1 + sum(COSTS[name] for name in paid_by(arm)), rounds=1)
    assert {row["ci95"] for row in found["classes"]} == {None}
    assert (found["total_ci95"], found["unexplained_ci95"]) == (None, None)
    assert explain([], CLASSES, COSTS) is None


def test_nothing_injected_has_no_share_that_shows():
    assert explained(lambda *_: 0.1, injected_s={"launch": 0.0})["host_bound_share"] is None


# Crossings


def crossings(**values):
    return counted(tuple(values.get(name, 0) for name in _WORDS))


def test_crossings_are_means_of_the_asked_steps_on_the_rank_that_launched_most():
    ranks = [
        {1: crossings(launches=900), 2: crossings(launches=10, waits=1), 3: crossings(launches=20, waits=2)},
        {1: crossings(), 2: crossings(launches=30, waits=7), 3: crossings(launches=40, waits=8, bytes_h2d_pinned=10)},
    ]
    found = mean_crossings(ranks, [2, 3])
    assert (found["counted_by"], found["launches"], found["waits"]) == ("cupti", 35, 7.5)
    assert found["copies"]["h2d_pinned"] == {"count": 0, "bytes": 5}
    assert set(found["injected_s"]) >= {"launch", "host"}


def test_operators_are_counted_in_place_of_launches():
    ranks = [{1: {"operators": number, "injected_s": {"launch": 0.5}}} for number in (10, 30)]
    assert mean_crossings(ranks, [1]) == {"counted_by": "operators", "operators": 30, "injected_s": {"launch": 0.5}}


def test_what_was_not_counted_in_every_step_of_every_rank_is_unknown():
    whole, lacking = {1: crossings(launches=1), 2: crossings(launches=1)}, {1: crossings(launches=1)}
    assert mean_crossings([whole, lacking], [1, 2]) is None
    assert mean_crossings([whole, lacking], [1]) is not None
    assert mean_crossings([whole], []) is None


# All of it


def rows_of(steps, injected_ns=0, operators=None):
    return {
        step.step: {"operators": operators, "injected_s": {"launch": injected_ns / 1e9}}
        if operators
        else crossings(launches=step.step, injected_launch_ns=injected_ns)
        for step in steps
    }


def come_to(steps, toll_profile, rows, *, is_explained):
    tolled, plain = (summarize([step for step in steps if step.arm == arm], len(rows), None) for arm in (ALL, OFF))
    return outcome(toll_profile, steps, tolled, plain, rows, is_explained=is_explained)


def test_an_outcome_has_both_summaries_the_ratio_and_a_plain_steps_crossings():
    steps = run_of((OFF, ALL), 4, lambda arm, _: 0.1 if arm == OFF else 0.125)
    found = come_to(steps, profile(**SOME), [rows_of(steps)], is_explained=False)
    assert found["summary_off"]["step_time_s"]["median"] == 0.1
    assert found["keep_ratio"]["value"] == pytest.approx(0.8)
    assert found["keep_ratio"]["num_pairs"] == 4
    assert found["explain"] is None
    plain = [step.step for step in steps if step.arm == OFF and not step.is_warmup]
    assert found["crossings"]["launches"] == pytest.approx(sum(plain) / len(plain))


def test_an_explained_outcome_has_a_row_for_every_class_that_could_be_paid():
    toll_profile = profile(launch_us=20.0, wait_us=30.0, copy_h2d_pinned_us=((0, 9.0),))
    every_arm = arms(toll_profile, is_explained=True, num_ranks=1)
    steps = run_of(every_arm, 3, lambda arm, _: 0.1 + sum(COSTS[name] for name in paid_by(arm)))
    found = come_to(steps, toll_profile, [rows_of(steps, 21_000_000)], is_explained=True)["explain"]
    assert [row["name"] for row in found["classes"]] == list(CLASSES)
    assert found["classes"][0]["injected_s"] == pytest.approx(0.021)
    assert found["host_bound_share"] == pytest.approx(2)


def test_on_the_stand_in_an_explained_outcome_has_launches_alone():
    every_arm = arms(load_profile("b300"), is_explained=True, num_ranks=2, counted_by=OPERATORS)
    steps = run_of(every_arm, 2, lambda arm, _: 0.1 + 0.02 * (arm in (ALL, only("launch"))))
    found = come_to(steps, load_profile("b300"), [rows_of(steps, 1, operators=5)] * 2, is_explained=True)
    assert [row["name"] for row in found["explain"]["classes"]] == ["launch"]
    assert found["explain"]["classes"][0]["cost_s"] == pytest.approx(0.02)
    assert found["keep_ratio"]["num_pairs"] == 2


@pytest.mark.parametrize("num_blocks", [2, 3, 8, 11])
def test_an_explained_run_that_ended_early_explains_what_rounds_it_has(num_blocks):
    toll_profile = profile(launch_us=20.0, wait_us=30.0, copy_h2d_pinned_us=((0, 9.0),))
    every_arm = arms(toll_profile, is_explained=True, num_ranks=1)
    steps = run_of(every_arm, 2, lambda arm, _: 0.1 + sum(COSTS[name] for name in paid_by(arm)))
    begun = [step for step in steps if step.block is None or step.block < num_blocks]
    found = come_to(begun, toll_profile, [rows_of(begun, 1)], is_explained=True)
    assert found["summary_off"]["step_time_s"]["median"] == 0.1
    if num_blocks < len(every_arm):
        assert (found["explain"], found["keep_ratio"]) == (None, None)
    else:
        assert found["explain"]["num_rounds"] == found["keep_ratio"]["num_pairs"] == 1
