"""The verb tune from the command line, every trial being in the ledger: what it finds, says, writes and refuses."""

import contextlib
import io
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from make_records import emulated_record, run_record, write

from cctrain.__main__ import main
from cctrain.campaign.ledger import Ledger
from cctrain.campaign.run import Ending
from cctrain.emulation.profile import NO_GPU
from cctrain.records import KeepRatio
from cctrain.reduce import summarize
from cctrain.report.tuned import Progress
from cctrain.tune.request import checked
from cctrain.tune.trials import Trials

TINY = (
    *("recipe=tiny_llama_peft", "data=synthetic", "data.seq_len=256", "launch.nproc_per_node=1", "track=none"),
    *("train.step_scheduler.global_batch_size=4", "train.step_scheduler.local_batch_size=2"),
    "tune.over=[micro_batch]",
)
EMULATED = (*TINY, "cc=emulated", "tolls=b300")
SECONDS = {1: 0.4, 2: 0.3, 4: 0.2}
"""Of a step, by micro-batch."""


@pytest.fixture(scope="module", autouse=True)
def own_signals():
    """The verb takes SIGTERM and SIGHUP for a Ctrl-C; this process goes on after it."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def complete(number, point, seconds=SECONDS, keep=None):
    """A record of the run of a point."""
    if keep is None:
        record = run_record("off", number, recipe="tiny_llama_peft", step_time_s=seconds[point.micro_batch])
        return replace(record, summary=summarize(record.steps, 1, None))
    record = emulated_record(number, keep=keep[point.micro_batch], step_time_s=seconds[point.micro_batch])
    tolled, plain = ([step for step in record.steps if step.arm == arm] for arm in ("all", "off"))
    return replace(
        record,
        summary=summarize(tolled, 1, None),
        summary_off=summarize(plain, 1, None),
        keep_ratio=KeepRatio(value=keep[point.micro_batch], ci95=None, num_pairs=5, added_s=0.1, added_ci95=None),
    )


def done(root, arguments, record_of=complete, repeats=1):
    """A ledger in which every point has been tried; `record_of` gives its record, or why it failed."""
    request = checked([*arguments, f"run_root={root}"])
    with Ledger(request.ledger, verb="tune") as ledger:
        trials = Trials(request, ledger, Progress(8, 0))
        for number, point in enumerate(point for point in request.problem.points for _ in range(repeats)):
            key, _ = trials.named(point, number % repeats + 1)
            record, token = record_of(number, point), f"{number:08d}"
            ledger.append("begin", key=key, token=token)
            is_why = isinstance(record, str)
            outcome = {"outcome": "failed", "run": None, "why": record} if is_why else {"outcome": "complete"}
            run = {} if is_why else {"run": write(root, record).name, "why": None}
            ledger.append("end", key=key, token=token, seconds=20.0, **{**outcome, **run})


def said(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(["tune", *map(str, arguments)])
    return code, out.getvalue(), err.getvalue(), json.loads(out.getvalue().splitlines()[-1])


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A run root with every point tried, and what the search of it said."""
    root = tmp_path_factory.mktemp("searched")
    done(root, TINY)
    return root, said(*TINY, f"run_root={root}")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The same of emulated trials, of which the largest micro-batch keeps the most and enough."""
    root, keep = tmp_path_factory.mktemp("emulated"), {1: 0.5, 2: 0.7, 4: 0.9}
    done(root, EMULATED, lambda number, point: complete(number, point, keep=keep))
    return root, said(*EMULATED, "tune.min_keep=0.8", f"run_root={root}")


def test_the_fastest_is_found_with_the_settings_to_copy_and_its_gain(searched):
    _, (code, out, err, facts) = searched
    assert (code, facts["exit_code"]) == (0, 0), err
    assert facts["chosen"] == ["train.step_scheduler.local_batch_size=4"]
    assert "add: train.step_scheduler.local_batch_size=4" in out
    assert facts["command"].endswith("train.step_scheduler.local_batch_size=4")
    assert "local_batch_size=2" not in facts["command"]
    assert facts["gain"] == pytest.approx(1.5, rel=0.02)
    assert facts["gain_ci95"] is None
    assert "without an interval" in out
    assert facts["real_tokens_per_s_per_gpu"] == pytest.approx(4 * 256 / 0.2, rel=0.05)
    assert (facts["num_settings"], facts["why"]) == (3, facts["why"])
    assert 2 <= facts["num_trials"] <= 3
    assert "real tokens/s/GPU, from the ledger\n" in err
    assert "left" not in err


def test_a_resumed_search_tells_what_it_knew_from_what_it_runs_and_what_is_left(searched, capsys):
    root, _ = searched
    request = checked([*TINY, f"run_root={root}"])
    progress, points = Progress(3, 2), request.problem.points
    with Ledger(request.ledger, verb="tune") as ledger:
        trials = Trials(request, ledger, progress)
        progress.saw(trials.run(points[0]))
        _, trial = trials.named(points[1])
        progress.begins(trial, 1)
        progress.ended(Ending(outcome="complete", run=None, why=None, seconds=20.0), 0, None)
        progress.saw(trials.run(points[1]))
    known, begins, ended, new = capsys.readouterr().err.splitlines()
    assert known.endswith("real tokens/s/GPU, from the ledger")
    assert begins == f"trial 2 of at most 3: {points[1].label}"
    assert ended == "    complete after 20 s"
    assert new.endswith("real tokens/s/GPU; at most 3 left, about 60 s")


def test_repeats_give_the_gain_an_interval(tmp_path):
    arguments = (*TINY, "tune.repeats=4")
    done(tmp_path, arguments, repeats=5)
    code, out, _, facts = said(*arguments, f"run_root={tmp_path}")
    assert (code, facts["num_pairs"]) == (0, 4)
    low, high = facts["gain_ci95"]
    assert 1.4 < low < facts["gain"] < high < 1.6
    assert "over 4 further pairs of runs" in out


def test_a_gain_is_not_taken_from_the_search_where_further_runs_were_wanted_and_failed(tmp_path):
    arguments = (*TINY, "tune.repeats=4")
    done(tmp_path, arguments, lambda number, point: "broken" if number % 5 else complete(number, point), repeats=5)
    code, out, _, facts = said(*arguments, f"run_root={tmp_path}")
    assert (code, facts["gain"], facts["num_pairs"]) == (0, None, 0)
    assert "gain: unknown, because none of the further pairs of runs completed" in out


def test_a_gain_whose_interval_holds_1_is_called_unclear(tmp_path):
    def as_fast_later(number, point):  # five runs a point; that of the search flatters the largest micro-batch
        is_of_search = number % 5 == 0
        uneven = 0.2 + 0.02 * (number % 3)
        return complete(number, point, SECONDS if is_of_search else dict.fromkeys(SECONDS, uneven))

    arguments = (*TINY, "tune.repeats=4")
    done(tmp_path, arguments, as_fast_later, repeats=5)
    code, out, _, facts = said(*arguments, f"run_root={tmp_path}")
    low, high = facts["gain_ci95"]
    assert (code, low < 1 < high) == (0, True)
    assert "unclear whether it is one, as that holds 1" in out
    page = Path(facts["html"]).read_text()
    assert "unclear whether more than as it stands" in page
    assert "times as many" not in page
    assert f"page: {facts['html']}" in out


def test_emulated_trials_on_a_cpu_are_said_to_say_nothing_of_a_machine(emulated, searched):
    _, (_, out, _, facts) = emulated
    assert NO_GPU in " ".join(out.split())
    assert NO_GPU in Path(facts["html"]).read_text()
    assert NO_GPU not in " ".join(searched[1][1].split())


def test_the_same_command_again_says_the_same(searched):
    root, first = searched
    again = said(*TINY, "tune.max_trials=5", f"run_root={root}")
    assert first[-1] == again[-1]


def test_a_recipe_that_is_best_as_it_stands_is_left_alone(tmp_path):
    done(tmp_path, TINY, lambda number, point: complete(number, point, {1: 0.4, 2: 0.2, 4: 0.3}))
    code, out, _, facts = said(*TINY, f"run_root={tmp_path}")
    assert (code, facts["chosen"], facts["gain"]) == (0, [], 1.0)
    assert "fastest as it stands" in out


def test_out_of_memory_and_failures_are_recorded_and_the_rest_goes_on(tmp_path):
    why = {4: "rank 1: out of GPU memory: lower ...", 1: "rank 0 was killed"}
    done(tmp_path, TINY, lambda number, point: why.get(point.micro_batch) or complete(number, point))
    code, out, _, facts = said(*TINY, f"run_root={tmp_path}")
    outcomes = {one["point"]["micro_batch"]: one["outcome"] for one in facts["trials"]}
    assert code == 0
    assert outcomes[2] == "complete"
    assert outcomes[4] == "out of memory"
    assert outcomes.get(1, "failed") == "failed"
    assert facts["chosen"] == []
    assert "out of memory" in out


def test_when_every_trial_fails_that_is_the_answer(tmp_path):
    done(tmp_path, TINY, lambda number, point: "ended after its deadline of 60 s (hangs)")
    code, out, _, facts = said(*TINY, f"run_root={tmp_path}")
    assert (code, facts["chosen"], facts["gain"]) == (4, None, None)
    assert facts["num_trials"] == 3
    assert "the last one: ended after its deadline" in out
    assert "tune.retry_failed=true" in out


@pytest.mark.parametrize(
    ("num_kills", "retries", "is_tried"), [(1, False, True), (4, True, True), (5, False, False), (5, True, True)]
)
def test_a_trial_that_was_killed_is_tried_again(tmp_path, monkeypatch, num_kills, retries, is_tried):
    request = checked([*TINY, f"tune.retry_failed={retries}", f"run_root={tmp_path}"])
    monkeypatch.setattr(sys, "executable", "false")  # a trial that fails at once
    with Ledger(request.ledger, verb="tune") as ledger:
        trials, base = Trials(request, ledger, Progress(8, 0)), request.problem.base
        for kill in range(num_kills):
            end = {"outcome": "killed", "run": None, "why": "the tune was killed while it ran", "seconds": None}
            ledger.append("end", key=trials.named(base)[0], token=f"{kill:08d}", **end)
        one = trials.run(base)
    why = "it ended with exit code 1 and said nothing" if is_tried else "the tune was killed while it ran"
    assert (one.outcome, one.why) == ("failed", why)


def test_emulated_trials_are_judged_by_their_tolled_steps_and_marked(emulated):
    root, (code, out, _, facts) = emulated
    assert (code, facts["mode"], facts["keep_ratio"]) == (0, "emulated", 0.9)
    assert facts["real_tokens_per_s_per_gpu"] == pytest.approx(0.9 * 4 * 256 / 0.2, rel=0.05)
    assert "never a measurement of CC" in out.replace("\n", " ")
    assert "never a measurement of CC" in (root / "tune-tiny_llama_peft.html").read_text()


def test_where_nothing_keeps_enough_nothing_is_recommended(emulated):
    code, out, _, facts = said(*EMULATED, "tune.min_keep=0.95", f"run_root={emulated[0]}")
    assert (code, facts["chosen"], facts["command"]) == (1, None, None)
    assert "tune.min_keep=0.95 (the most that was kept is 90.0 %)" in out


def test_the_report_needs_nothing_else_and_the_curve_is_there(emulated):
    root, (_, _, _, facts) = emulated
    page = (root / "tune-tiny_llama_peft.html").read_text()
    assert facts["html"] == str(root / "tune-tiny_llama_peft.html")
    assert "<script" not in page
    assert "https://" not in page.replace("http://www.w3.org", "")
    assert "loss of throughput, %" in page
    assert "real tokens/s/GPU" in page
    (png,) = facts["png"]
    assert Path(png).read_bytes().startswith(b"\x89PNG")


def test_a_dry_run_names_the_settings_and_makes_nothing(tmp_path):
    code, _, _, plan = said(*TINY, "dry_run=true", f"run_root={tmp_path / 'new'}")
    sizes = ([f"train.step_scheduler.local_batch_size={size}"] for size in (1, 4))
    assert (code, plan["settings"]) == (0, [next(sizes), [], next(sizes)])
    assert plan["first"][:2] == ["recipe=tiny_llama_peft", "data=synthetic"]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("set_too", [(), ("+train.distributed.activation_checkpointing=true",), ("step=graphed",)])
def test_of_two_settings_that_go_one_at_a_time_both_together_are_left_out_and_no_more(set_too):
    arguments = ["recipe=tiny_llama_peft", "+train.peft.dropout=0.1", "launch.nproc_per_node=1", *set_too]
    points = checked(arguments).problem.points
    found = {(point.step, point.is_checkpointing) for point in points}
    assert found == {("stock", False), ("stock", True), ("graphed", False)}


@pytest.mark.parametrize(
    ("setting", "steps"),
    [("engine=automodel", {"stock", "graphed"}), ("engine=hf", {"stock"}), ("measure=seed", {"stock"})],
)
def test_a_step_that_a_run_would_be_refused_with_costs_no_trial(tmp_path, setting, steps):
    arguments = [*TINY[:-1], "tune.over=[micro_batch,step]", setting, f"run_root={tmp_path}"]
    assert {point.step for point in checked(arguments).problem.points} == steps


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("tune.max_trails=3", "Did you mean tune.max_trials?"),
        ("tune.max_trials=many", "tune.max_trials=many: allowed is a whole number"),
        ("tune.over=[micro_bach]", "Did you mean micro_batch?"),
        ("tune.global_batch=8", "allowed is a list in brackets, [a,b]"),
        ("tune.global_batch=[8]", "tune.global_batch=[8]: allowed is [LOW,HIGH]"),
        ("step=[stock,graphed]", "one of auto, graphed, stock"),
        ("step=auto", "step=auto: tune tries stock and graphed itself"),
        ("++measure.steps=9", "++measure.steps=9: allowed is measure.steps=VALUE"),
        ("tune.min_keep=0.9", "tune.min_keep=0.9 is read with cc=emulated only"),
        ("launch.num_nodes=2", "launch.rdzv_endpoint"),
        ("launch=slurm", "launch=slurm launch.num_nodes=1: tune runs its trials on this machine"),
        ("recipe=tiny_lama", "allowed is"),
        ("train.step_scheduler.local_batch_size=3", "train.step_scheduler.global_batch_size=4 does not divide"),
    ],
)
def test_a_wrong_request_is_refused_by_its_key_before_anything_is_made(tmp_path, wrong, says):
    kept = [one for one in TINY if one.partition("=")[0] != wrong.partition("=")[0]]
    code, _, err, _ = said(*kept, wrong, f"run_root={tmp_path / 'new'}")
    assert code == 2
    assert says in err
    assert not (tmp_path / "new").exists()


def test_a_length_that_the_data_do_not_read_is_refused(tmp_path):
    arguments = ("recipe=tiny_llama_peft", "data=recipe", "launch.nproc_per_node=1", "tune.seq_len=[64,128]")
    code, _, err, _ = said(*arguments, f"run_root={tmp_path}")
    assert code == 2
    assert "data.seq_len=64 is read with data=" in err


@pytest.mark.parametrize("verb", [[], ["train"], ["campaign"]])
def test_other_verbs_refuse_its_keys_and_name_it(capsys, verb):
    assert main([*verb, "recipe=tiny_llama_peft", "tune.max_trials=3"]) == 2
    assert "python -m cctrain tune" in capsys.readouterr().err


def test_help_is_the_verbs_own(capsys):
    assert main(["tune", "--help"]) == 0
    assert "tune.global_batch=" in capsys.readouterr().out
