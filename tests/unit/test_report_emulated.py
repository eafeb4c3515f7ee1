"""The tables of emulated runs and of injected processes, at 80 columns: nothing is cut."""

import io
import re

import pytest
from rich.console import Console

from cctrain.commands.train import _last_line
from cctrain.emulation.injector import _WORDS, counted
from cctrain.emulation.profile import ASSUMED, CLASSES, NOT_EMULATED, load_profile
from cctrain.report.crossings import print_crossings
from cctrain.report.emulated import crossings_rows, emulated_rows, print_emulated, print_explanation

LARGE = counted(tuple(987_654_321_098 for _ in _WORDS))


def printed(show):
    """What `show` prints on a console as the verbs make it, 80 columns wide."""
    console = Console(file=io.StringIO(), width=80, soft_wrap=True, markup=False)
    show(console)
    text = console.file.getvalue()
    assert "…" not in text
    return text


@pytest.mark.parametrize("num", [1, 2, 3, 8, 17])
def test_every_process_is_shown_whole_however_many_there_are(num):
    processes = {4_000_000 + index: LARGE for index in range(num)}
    text = printed(lambda console: print_crossings(processes, load_profile("b300"), console))
    for pid in processes:
        assert text.count(str(pid)) == 1
    assert text.count("987,654,321,098 of 987,654.3 MB") == 5 * num
    assert max(len(line) for line in text.splitlines() if line[:1] in "┃│") <= 80


def test_crossings_of_a_program_that_pays_nothing_have_no_assumptions():
    unpaid = LARGE | {"injected_s": dict.fromkeys(LARGE["injected_s"], 0.0)}
    text = printed(lambda console: print_crossings({12: unpaid}, None, console))
    assert "emulated" not in text
    assert "injected" not in text
    assert "assumed" not in text


def test_crossings_of_a_program_that_set_tolls_itself_are_called_emulated_too():
    paid = dict.fromkeys(LARGE["injected_s"], 0.0) | {"launch": 0.5}
    text = printed(lambda console: print_crossings({12: LARGE | {"injected_s": paid}}, None, console))
    assert "tolls that the program set, emulated" in text
    assert "injected: launch" in text
    assert "injected: wait" not in text
    assert "assumed: " in text


def test_crossings_under_tolls_are_called_emulated_and_say_what_they_rest_on():
    text = printed(lambda console: print_crossings({12: LARGE}, load_profile("h100"), console))
    assert "crossings under the tolls of h100, emulated" in text
    for line in (*ASSUMED, *NOT_EMULATED):
        assert line in text
    for name in load_profile("h100").classes():
        assert f"injected: {name.replace('_', ' ')}" in text


def test_a_program_that_never_came_to_cuda_is_said_to_have_crossed_nothing():
    text = printed(lambda console: print_crossings({}, load_profile("b300"), console))
    assert text.startswith("no CUDA call was seen: none was made, or lines of")


def rows(num_digits):
    large = 10.0**num_digits
    facts = {"alone_s": large, "left_out_s": large, "cost_s": large, "ci95": [0.0, 2 * large], "injected_s": large}
    return [{"name": name, **facts} for name in CLASSES]


def explanation(num_digits=1, **changed):
    total = 10.0**num_digits
    facts = {"num_rounds": 8, "total_s": total, "total_ci95": [0.0, 2 * total], "unexplained_s": -total}
    rest = {"unexplained_ci95": [-2 * total, 0.0], "injected_s": total, "host_bound_share": 0.33}
    return {"classes": rows(num_digits), **facts, **rest, **changed}


def test_an_explanation_has_a_row_for_each_class_the_rest_and_the_whole():
    text = printed(lambda console: print_explanation(explanation(), 0.2, 8, console))
    for name in (*CLASSES, "unexplained", "all together"):
        assert name.replace("_", " ") in text
    assert text.count("10000.0 ± 10000.0 ms") == len(CLASSES) + 2
    assert "-10000.0 ± 10000.0 ms" in text
    assert "of 8 rounds; a plain step takes 200.0 ms" in text
    assert "33% of what was injected shows in the step; the rest ran while the GPU was busy" in text


@pytest.mark.parametrize(
    ("half_width_s", "num_wanted"),
    [(0.02, 32), (0.0101, 9), (0.01, None), (0.08, None)],  # of 8 rounds and 100 ms, a tenth of which is 10 ms
)
def test_it_says_how_many_rounds_would_leave_a_tenth_of_the_loss_unexplained(half_width_s, num_wanted):
    found = explanation(total_s=0.1, unexplained_s=0.0, unexplained_ci95=[-half_width_s, half_width_s])
    text = printed(lambda console: print_explanation(found, 0.2, 8, console))
    assert re.findall(r"cc\.blocks=(\d+)", text) == ([str(num_wanted)] if num_wanted else [])


def test_an_explanation_of_too_few_classes_for_a_rest_has_no_row_of_it():
    few = explanation(classes=rows(1)[:1], unexplained_s=None, unexplained_ci95=None)
    text = printed(lambda console: print_explanation(few, 0.2, 8, console))
    assert "unexplained" not in text
    assert "all together" in text


def test_a_cpu_is_not_said_to_have_hidden_tolls_behind_a_gpu():
    on_cpu = record(explain=explanation(), identity={"gpu": ["cpu"]})
    text = printed(lambda console: print_emulated(on_cpu, console))
    assert "33% of what was injected shows in the step\n" in text
    assert "the GPU was busy" not in text


@pytest.mark.parametrize(
    ("share", "said"),
    [(1.63, "the step grew by 163% of what was injected"), (1.004, "100% of what was injected shows in the step\n")],
)
def test_a_step_that_grew_by_what_was_injected_or_more_is_not_said_to_hide_any_of_it(share, said):
    text = printed(lambda console: print_explanation(explanation(host_bound_share=share), 0.2, 8, console))
    assert said in text
    assert "the rest" not in text


def test_an_explanation_of_one_round_shows_no_interval():
    alone = [{**row, "ci95": None} for row in rows(0)]
    one = explanation(0, classes=alone, num_rounds=1, total_ci95=None, unexplained_ci95=None, host_bound_share=None)
    text = printed(lambda console: print_explanation(one, 0.2, 1, console))
    assert "of 1 round, so without intervals; a plain" in text
    assert "±" not in text
    assert "shows in the step" not in text


# The rows of the summary


def estimate(value):
    return {"median": value, "mean": value, "ci95": [value, value]}


def summary(value, *, is_steady=True):
    steady = {"is_steady": is_steady, "why": "steady from step 4" if is_steady else "not steady, because"}
    return {
        "step_time_s": estimate(value),
        "tokens_per_s_per_gpu": estimate(1 / value),
        "steady_state": steady,
        "real_tokens_per_s_per_gpu": 1 / value,
    }


def steps(num_rounds, arms=("off", "all")):
    return [{"block": None, "arm": "off"}] + [
        {"block": block, "arm": arms[block % len(arms)]} for block in range(num_rounds * len(arms))
    ]


def record(**changed):
    kept = {"value": 0.8, "ci95": [0.79, 0.81], "num_pairs": 8, "added_s": 0.025, "added_ci95": [0.0238, 0.0262]}
    facts = {"keep_ratio": kept, "summary_off": summary(0.1), "summary": summary(0.125), "tolls": {"name": "b300"}}
    return {**facts, "identity": {"gpu": ["NVIDIA H200"]}, "explain": None, "steps": steps(8), **changed}


def test_a_steady_run_shows_its_keep_ratio_with_the_interval_and_the_loss():
    assert emulated_rows(record()) == [
        ("step time, no tolls", "100.0 ms median"),
        ("keep ratio", "0.800 (95 % interval 0.790 to 0.810), 8 pairs of blocks"),
        ("the tolls add", "25.0 ± 1.2 ms to a step"),
        ("lost", "20.0% of throughput to the tolls of b300"),
    ]


def test_a_run_says_how_many_of_its_rounds_do_not_count():
    few = record(steps=steps(18))
    assert dict(emulated_rows(few))["keep ratio"].endswith(", 8 pairs of blocks (of 18 begun: those whole and steady)")
    arms = ("off", "all", "only_launch", "without_launch")
    explained = record(steps=steps(11, arms)[:-1], explain=explanation())
    text = printed(lambda console: print_emulated(explained, console))
    assert "of 8 rounds (of 11 begun: those whole and steady); a plain step takes" in " ".join(text.split())


def test_a_ratio_above_1_is_called_noise_or_something_else_than_tolls():
    kept = record()["keep_ratio"] | {"value": 1.082, "ci95": [0.95, 1.2], "added_s": -0.0076}
    shown = dict(emulated_rows(record(keep_ratio=kept)))
    assert shown["gained"] == "8.2% of throughput, noise: the tolls of b300 make nothing faster"
    assert not {"lost", "the tolls add"} & shown.keys()
    surely = dict(emulated_rows(record(keep_ratio=kept | {"ci95": [1.03, 1.1]})))
    assert "8.2% of throughput, another difference of the arms: the tolls" in surely["gained"]


@pytest.mark.parametrize("arm", ["summary", "summary_off", None])
def test_the_last_line_of_a_run_is_steady_where_both_arms_are(arm, tmp_path):
    changed = {arm: summary(0.1, is_steady=False)} if arm else {}
    facts = {"mode": "emulated", "status": "complete", "failure": None}
    line = _last_line(tmp_path, record(**changed) | facts)
    assert line["steady"] is (arm is None)
    plain = _last_line(tmp_path, record(tolls=None, summary_off=None) | facts)
    assert plain["steady"] is True


def test_one_pair_shows_that_it_has_no_interval():
    one = {"value": 0.8, "ci95": None, "num_pairs": 1, "added_s": 0.025, "added_ci95": None}
    shown = dict(emulated_rows(record(keep_ratio=one)))
    assert shown["keep ratio"] == "0.800, of one steady pair of blocks, which gives no interval"
    assert shown["the tolls add"] == "25.0 ms to a step"


@pytest.mark.parametrize("arm", ["summary", "summary_off"])
def test_a_run_that_is_not_steady_in_either_arm_shows_no_ratio(arm):
    found = emulated_rows(record(**{arm: summary(0.1, is_steady=False)}))
    assert "keep ratio" not in dict(found)
    assert ("plain steps" in dict(found)) == (arm == "summary_off")


def test_a_run_without_a_plain_step_shows_nothing_of_the_kind():
    assert emulated_rows(record(keep_ratio=None, summary_off=None)) == []


def test_a_plain_steps_crossings_are_listed_without_those_that_are_none():
    words = {"launches": 5369, "waits": 7, "copies_h2d_pinned": 3, "bytes_h2d_pinned": 12345}
    counts = counted(tuple(words.get(name, 0) for name in _WORDS))
    ((name, shown),) = crossings_rows({"counted_by": "cupti", **counts})
    assert name == "a plain step crosses"
    assert shown == "5,369 launches, 7 waits, 3 copies h2d pinned (12.3 kB)"
    assert crossings_rows(None) == []


def test_copies_that_pay_no_toll_are_said_in_the_summary_and_of_each_process():
    counts = counted(tuple(31 * (name == "other_copies") for name in _WORDS))
    assert crossings_rows({"counted_by": "cupti", **counts})[0][1] == "31 other copies, which pay no toll"
    text = printed(lambda console: print_crossings({12: counts}, load_profile("b300"), console))
    (line,) = (line for line in text.splitlines() if "other copies, unpaid" in line)
    assert "31" in line


def test_operators_of_the_stand_in_are_not_called_launches():
    ((_, shown),) = crossings_rows({"counted_by": "operators", "operators": 1234.5, "injected_s": {"launch": 0.0}})
    assert shown == "1,234 operators, each in place of a launch"


def test_below_the_summary_stand_the_explanation_and_the_assumptions():
    text = printed(lambda console: print_emulated(record(explain=explanation()), console))
    assert "where the loss comes from" in text
    assert f"assumed: {'; '.join(ASSUMED)}" in text
    text = printed(lambda console: print_emulated(record(), console))
    assert "where the loss comes from" not in text
    assert f"not emulated: {'; '.join(NOT_EMULATED)}" in text
