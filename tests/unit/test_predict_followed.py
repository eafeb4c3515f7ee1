"""`predict --followed-by`: how far off a prediction was, by runs that came after it."""

import dataclasses
import json

import pytest
from make_records import emulated_record, run_record
from test_compare import write
from test_predict import CROSSINGS

from cctrain.commands import predict as verb
from cctrain.emulation.profile import load_profile
from cctrain.errors import RequestError

SUMMARY = {"step_time_s": {"median": 0.2, "mean": 0.2, "ci95": None}, "steady_state": {"is_steady": True}}


def base(**facts):
    """A run with CC off that counted what it crosses."""
    return run_record("off", 0, crossings=CROSSINGS, summary=SUMMARY, **facts)


def emulated(number, keep):
    record = emulated_record(number, keep=keep)
    return dataclasses.replace(record, tolls=record.tolls | {"sha256": load_profile("b300").sha256})


@pytest.fixture
def predicted(tmp_path, capsys):
    """The verb's last line, and what it printed above it, of a run and those that followed."""

    def run(first, *followers, more=()):
        paths = [str(write(tmp_path, record)) for record in (first, *followers)]
        arguments = [paths[0], "--tolls", "b300", *(["--followed-by", *paths[1:]] if followers else []), *more]
        assert verb.run(arguments) == 0
        *shown, line = capsys.readouterr().out.strip().splitlines()
        return json.loads(line), "\n".join(shown)

    return run


def test_runs_with_cc_on_are_held_against_the_run_it_starts_from(predicted):
    facts, shown = predicted(base(), run_record("on", 1, step_time_s=0.25))
    assert facts["measured"]["value"] == pytest.approx(0.2, abs=0.01)
    assert facts["off_by"] == pytest.approx(facts["loss"]["value"] - facts["measured"]["value"])
    assert "measured by 1 run that followed, CC on" in shown
    assert f"{100 * facts['off_by']:+.1f} points" in shown


def test_without_a_run_that_followed_nothing_was_measured(predicted):
    facts, shown = predicted(base())
    assert (facts["measured"], facts["off_by"]) == (None, None)
    assert "measured" not in shown


def test_emulated_runs_that_followed_are_held_against_their_own_plain_steps(predicted):
    facts, shown = predicted(base(), emulated(1, 0.8), emulated(2, 0.8), emulated(3, 0.8))
    assert facts["measured"]["low"] < 0.2 < facts["measured"]["high"]
    assert "measured by 3 runs that followed, emulated" in shown
    one, _ = predicted(base(), emulated(1, 0.7))
    assert one["measured"]["low"] < one["measured"]["value"] < one["measured"]["high"]  # of its pairs of blocks


def test_a_step_that_was_measured_elsewhere_is_what_runs_there_are_held_against(predicted):
    facts, _ = predicted(base(), run_record("on", 1, step_time_s=0.5), more=["--base-step-time-s", "0.4"])
    assert facts["measured"]["value"] == pytest.approx(0.2, abs=0.01)
    assert facts["base_step_time_s"] == 0.4


@pytest.mark.parametrize(
    ("arguments", "because"),
    [
        (["--followed-by", "RUN"], "that is the run itself"),
        (["--followed-by", "LATER", "--base-step-time-s", "1"], "held against their own plain steps; leave it out"),
        (["--allow", "engine"], "for what --followed-by names"),
    ],
)
def test_what_says_nothing_of_the_prediction_is_refused(tmp_path, arguments, because):
    named = {"RUN": str(write(tmp_path, base())), "LATER": str(write(tmp_path, emulated(1, 0.8)))}
    with pytest.raises(RequestError, match=because):
        verb.run([named["RUN"], "--tolls", "b300", *(named.get(word, word) for word in arguments)])


def test_the_run_itself_among_those_that_followed_is_passed_over(predicted):
    first = dataclasses.replace(emulated(1, 0.7), crossings=CROSSINGS, summary_off=SUMMARY)
    facts, _ = predicted(first, first, emulated(2, 0.8))
    assert facts["measured"]["value"] == pytest.approx(0.2, abs=0.01)
    assert facts["measured_by"] == "1 run that followed, emulated"


def test_one_profile_by_two_names_is_one_too_many(predicted):
    mine = emulated(2, 0.8)
    mine = dataclasses.replace(mine, tolls=mine.tolls | {"name": "mine"})
    with pytest.raises(RequestError, match="emulated b300 and emulated mine: give runs of one of them"):
        predicted(base(), emulated(1, 0.8), mine)


def test_an_emulated_run_stands_for_its_plain_steps_where_cc_was_on_after_it(predicted):
    first = dataclasses.replace(emulated(1, 0.7), crossings=CROSSINGS, summary_off=SUMMARY)
    facts, shown = predicted(first, run_record("on", 2, step_time_s=0.25))
    assert facts["measured"]["value"] == pytest.approx(0.2, abs=0.01)
    assert "CC on" in shown


@pytest.mark.parametrize(
    ("followers", "because"),
    [
        ([run_record("off", 1)], "modes off; allowed are runs with CC on, or such as were emulated"),
        ([run_record("on", 1), emulated(2, 0.8)], "modes emulated and on"),
        ([emulated_record(1, profile="hopper")], "emulated under hopper; --tolls has other tolls"),
    ],
)
def test_what_is_no_outcome_of_the_prediction_is_refused(predicted, followers, because):
    with pytest.raises(RequestError, match=because):
        predicted(base(), *followers)


@pytest.mark.parametrize(
    ("follower", "more"),
    [
        (run_record("on", 1, seq_len=512), []),
        (run_record("on", 1, seq_len=512), ["--base-step-time-s", "0.4"]),
        (emulated_record(1, seq_len=512), []),
    ],
)
def test_runs_of_something_else_are_refused_by_what_differs(predicted, follower, more):
    follower = dataclasses.replace(follower, tolls=emulated(1, 0.8).tolls) if follower.tolls else follower
    with pytest.raises(
        RequestError, match=r"--followed-by: .*sequence\.seq_len differs.*--allow identity\.seq"
    ) as error:
        predicted(base(), follower, more=more)
    assert "--by" not in str(error.value).replace("--followed-by", "")


@pytest.mark.parametrize("more", [[], ["--base-step-time-s", "0.4"]])
def test_a_run_that_did_not_end_is_no_outcome_unless_it_is_allowed(predicted, more):
    killed = run_record("on", 1, step_time_s=0.5, status="partial", failure="killed")
    with pytest.raises(RequestError, match=r"is partial \(killed\). They are taken with --allow status"):
        predicted(base(), killed, more=more)
    facts, _ = predicted(base(), killed, more=[*more, "--allow", "status"])
    assert facts["measured"]["value"] > 0


def test_what_differs_can_be_allowed(predicted):
    more = ["--allow", "identity.sequence", "--allow", "identity.recipe_hash"]
    facts, _ = predicted(base(), run_record("on", 1, seq_len=512, step_time_s=0.2), more=more)
    assert facts["measured_by"] == "1 run that followed, CC on, --allow identity.sequence, identity.recipe_hash"
    assert facts["measured"]["value"] < 0  # twice the tokens in a step as long
