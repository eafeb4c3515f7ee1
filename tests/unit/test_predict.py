"""The verb predict: what a run would lose under CC, by hand-computed cases, and which records are refused."""

import copy
import json

import pytest

from cctrain.commands import predict as verb
from cctrain.emulation.profile import KIND, load_profile, parse_profile
from cctrain.errors import RequestError
from cctrain.predict import predict, read_base

NO_COPY = {"count": 0, "bytes": 0}
CROSSINGS = {
    "counted_by": "cupti",
    "launches": 5000,
    "graph_launches": 2,
    "graph_nodes": 0,
    "waits": 8,
    "copies": {
        "h2d_pinned": {"count": 4, "bytes": 4000},
        "h2d_pageable": NO_COPY,
        "d2h_pinned": NO_COPY,
        "d2h_pageable": {"count": 2, "bytes": 8},
        "d2d": {"count": 3, "bytes": 3000},
    },
    "allocs_host": 0,
    "allocs_device": 1,
    "collectives": 100,
    "in_driver_s": 0.08,
    "blocked_s": 0.03,
    "injected_s": {},
}
SUMMARY = {"step_time_s": {"median": 0.19, "mean": 0.2, "ci95": None}, "steady_state": {"is_steady": True}}
RECORD = {"schema_version": 3, "run_id": "r", "mode": "off", "summary": SUMMARY, "crossings": CROSSINGS}


def number(value, interval=None):
    return {"value": value, "interval": interval, "source": "made up"}


TOLLS = {
    "launch_us": number(10, [8, 12]),
    "graph_launch_us": number(5),
    "wait_us": number(20),
    "copy_h2d_pinned_us": number([[0, 10], [2000, 30]]),
    "copy_d2h_pageable_us": number([[64, 50]]),
    "collective_us": number(100, [50, 200]),
    "host_ratio": number(1.1, [1.05, 1.15]),
}
PROFILE = parse_profile({"kind": KIND, "schema_version": 1, "name": "made up", "tolls": TOLLS})
# Of the host: 5000 x 10 us + 2 x 5 + 8 x 20 + 4 x 20 (1000 bytes) + 2 x 50 = 50.35 ms, and 10 % of 120 ms.
HOST_S = 0.05035 + 0.012
GPU_S = 100 * 100e-6


def changed(**keys):
    return copy.deepcopy(RECORD) | keys


def with_crossings(**keys):
    return changed(crossings=CROSSINGS | keys)


@pytest.fixture
def write(tmp_path):
    def write(content, name="run.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.fixture
def predicted(write):
    return lambda record, profile=PROFILE, *rest: predict(read_base(write(record)), profile, *rest)


# The model


def test_the_host_pays_every_crossing_less_what_it_would_have_waited_for_the_gpu(predicted):
    prediction = predicted(RECORD)
    extra = {part.toll: part.extra_s for part in prediction.parts}
    assert extra["launch_us"].value == pytest.approx(0.05)
    assert extra["copy_h2d_pinned_us"].value == pytest.approx(4 * 20e-6)
    assert extra["host_ratio"].value == pytest.approx(0.012)
    assert prediction.extra_s.value == pytest.approx(HOST_S - 0.03)
    assert prediction.hidden_s == pytest.approx(0.03 + GPU_S)
    assert prediction.step_time_s.value == pytest.approx(0.2 + HOST_S - 0.03)
    assert prediction.loss.value == pytest.approx((HOST_S - 0.03) / (0.2 + HOST_S - 0.03))


def test_the_range_is_from_low_tolls_hidden_to_high_tolls_with_nothing_hidden(predicted):
    extra_s = predicted(with_crossings(in_driver_s=0.055)).extra_s  # 5 us a launch
    assert extra_s.low == pytest.approx(0.05035 - 0.01 + 0.05 * (0.2 - 0.055) - 0.03)
    assert predicted(RECORD).extra_s.high == pytest.approx(HOST_S + 0.01 + 0.006 + 2 * GPU_S)


def test_the_upper_end_has_the_host_code_behind_copies_that_wait_for_their_stream(predicted):
    blocking = parse_profile(
        {"kind": KIND, "schema_version": 1, "name": "blocking", "tolls": TOLLS | {"h2d_pinned_blocks": number(True)}}
    )
    with_waits, without = (predicted(RECORD, profile).extra_s for profile in (blocking, PROFILE))
    assert with_waits.high == pytest.approx(without.high + 4 / (4 + 8) * (0.2 - 0.03))
    assert (with_waits.low, with_waits.value) == (without.low, without.value)


def test_what_launches_take_beyond_their_own_time_may_be_a_wait_that_hides_tolls(predicted):
    prediction = predicted(with_crossings(in_driver_s=0.06))  # 6 us a launch
    assert prediction.extra_s.low == pytest.approx(0.05035 - 0.01 + 0.05 * (0.2 - 0.06) - 0.03 - 0.005)
    assert prediction.extra_s.value == pytest.approx(0.05035 + 0.1 * (0.2 - 0.06) - 0.03)


def test_what_launches_take_beyond_any_hosts_is_a_wait_of_the_gpu(predicted):
    prediction = predicted(with_crossings(in_driver_s=0.09))  # 12 us a launch
    assert prediction.extra_s.value == pytest.approx(0.05035 + 0.1 * (0.2 - 0.09) - 0.03 - 5000 * 2e-6)


def test_what_delays_the_gpu_counts_where_it_is_more_than_the_hosts(predicted):
    prediction = predicted(with_crossings(blocked_s=0.15))
    assert (prediction.extra_s.low, prediction.extra_s.value) == (0, pytest.approx(GPU_S))
    alone = predicted(with_crossings(blocked_s=0.15, collectives=0))
    assert alone.loss.value == 0
    assert alone.hidden_s == pytest.approx(HOST_S)


def test_extra_time_is_added_to_a_step_measured_elsewhere_before_it_is_divided(predicted):
    here, there = predicted(RECORD), predicted(RECORD, PROFILE, 0.4)
    assert there.extra_s == here.extra_s
    assert there.loss.value == pytest.approx(here.extra_s.value / (0.4 + here.extra_s.value))


def test_a_toll_that_is_not_known_adds_nothing_and_is_named(predicted):
    parts = {part.toll: part for part in predicted(RECORD).parts}
    assert parts["alloc_device_us"].extra_s is None
    assert parts["alloc_device_us"].a_step == 1
    assert "alloc_host_us" not in parts  # none was crossed


def test_no_toll_is_no_loss(predicted):
    nothing = parse_profile({"kind": KIND, "schema_version": 1, "name": "none", "tolls": {}})
    loss = predicted(RECORD, nothing).loss
    assert (loss.low, loss.value, loss.high) == (0, 0, 0)


def test_an_emulated_run_is_predicted_from_its_plain_steps_and_says_how_far_off_that_was(predicted):
    slow = {"step_time_s": {"mean": 9.0}, "steady_state": {"is_steady": True}}
    record = changed(
        mode="emulated",
        summary=slow,
        summary_off=SUMMARY,
        tolls={"name": "x", "sha256": PROFILE.sha256},
        keep_ratio={"value": 0.9, "ci95": [0.88, 0.91], "num_pairs": 8},
    )
    prediction = predicted(record)
    assert prediction.base_step_time_s == 0.2
    assert (prediction.measured.low, prediction.measured.value, prediction.measured.high) == pytest.approx(
        (0.09, 0.1, 0.12)
    )
    assert prediction.off_by == pytest.approx(prediction.loss.value - 0.1)
    assert predicted(record, load_profile("b300")).measured is None  # other tolls
    assert predicted(record, PROFILE, 0.4).off_by is None  # another machine


def test_the_cpus_stand_in_pays_the_launch_toll_alone(predicted):
    crossings = {"counted_by": "operators", "operators": 1000, "injected_s": {"launch": 0.0}}
    prediction = predicted(changed(crossings=crossings))
    assert prediction.extra_s.value == pytest.approx(0.01)
    assert [part.toll for part in prediction.parts] == ["launch_us"]


def test_a_folder_of_runs_is_refused_with_what_to_name(tmp_path):
    with pytest.raises(RequestError, match=r"holds no run.json: give one run directory of it, as .*/RUN"):
        read_base(tmp_path)


def test_on_a_cpu_too_the_measured_loss_stands_beside_the_prediction(predicted):
    record = changed(
        mode="emulated",
        summary_off=SUMMARY,
        crossings={"counted_by": "operators", "operators": 1000, "injected_s": {"launch": 0.0}},
        tolls={"name": "x", "sha256": PROFILE.sha256},
        keep_ratio={"value": 0.9, "ci95": None, "num_pairs": 5},
    )
    prediction = predicted(record)
    assert prediction.measured.value == pytest.approx(0.1)


# Records of others


@pytest.mark.parametrize(
    ("content", "because"),
    [
        ("", "is no run.json: it is empty"),
        ("{", "it is no JSON, from line 1, column 2 on"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "the file is"),
        ('{"mode": NaN}', "NaN is no number"),
        (changed(mode="on"), "have paid CC's tolls already"),
        (changed(crossings=None), "measure.crossings=true, or with cc=emulated"),
        (changed(crossings=[]), "crossings is"),
        (changed(summary=None), "summary is null"),
        (changed(mode="emulated"), "summary_off is null"),
        (changed(summary=SUMMARY | {"step_time_s": {"mean": None}}), "summary mean is null"),
        (changed(summary=SUMMARY | {"step_time_s": {"mean": 0}}), "is 0"),
        (with_crossings(launches=None), "launches is null"),
        (with_crossings(launches=True), "launches is true"),
        (with_crossings(launches=-1), "launches is -1"),
        (with_crossings(launches=10**400), "launches is 1000"),
        (with_crossings(waits="\x1b[2J"), r'waits is the text "\u001b[2J"'),
        (with_crossings(in_driver_s=None), "in_driver_s is null"),
        (with_crossings(copies={}), "copies.h2d_pinned is null"),
        (changed(schema_version=99), "schema_version is 99, allowed is 1 to"),
        (with_crossings(copies=CROSSINGS["copies"] | {"h2d_pinned": {"count": 1e-300, "bytes": 8}}), "mean bytes"),
        (changed(tolls={}, keep_ratio={"value": "x"}), "keep_ratio is the text x"),
        (changed(tolls={}, keep_ratio={"value": 1, "ci95": [1]}), "ci95 is [1], not two numbers"),
    ],
)
def test_a_record_that_cannot_be_predicted_from_is_refused_in_one_line(write, content, because):
    path = write(content)
    with pytest.raises(RequestError) as caught:
        read_base(path)
    assert because in str(caught.value)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_is_no_record_is_refused(tmp_path):
    for name in ("absent", "absent\0", "."):
        with pytest.raises(RequestError):
            read_base(tmp_path / name)


# The verb


def last_line(capsys):
    output = capsys.readouterr().out
    return output, json.loads(output.splitlines()[-1])


def test_the_verb_prints_a_table_what_it_rests_on_and_one_json_line(write, capsys):
    record = with_crossings(collectives=0)
    assert verb.run([str(write(record).parent), "--tolls", "b300"]) == 0
    output, line = last_line(capsys)
    assert "assumed: launch tolls are paid by the thread that calls" in output
    assert "not emulated: NVLink bandwidth" in output
    assert "in the upper end only: what 4.0 pinned copies a step cost by draining their stream" in output
    assert "not known to the profile, nothing added: allocations, device" in output
    assert (line["mode"], line["exit_code"], line["tolls"]["name"]) == ("predicted", 0, "b300")
    assert line["loss"]["low"] <= line["loss"]["value"] <= line["loss"]["high"]
    assert line["measured"] is None
    assert f"{line['loss']['value']:.1%}" in output


def test_a_profile_that_knows_none_of_the_tolls_is_refused(write):
    knows_nothing = write({"kind": KIND, "schema_version": 1, "name": "empty", "tolls": {}}, "empty.json")
    with pytest.raises(RequestError, match=r"knows no toll of what this run crosses.*launch_us"):
        verb.run([str(write(RECORD)), "--tolls", str(knows_nothing)])


def test_a_step_without_pinned_copies_has_none_that_drain_their_stream(write, capsys):
    copies = CROSSINGS["copies"] | {"h2d_pinned": NO_COPY}
    verb.run([str(write(with_crossings(copies=copies))), "--tolls", "b300"])
    assert "draining" not in last_line(capsys)[0]


def test_a_run_that_was_not_steady_is_pointed_out(write, capsys):
    verb.run([str(write(changed(summary=SUMMARY | {"steady_state": {"is_steady": False}}))), "--tolls", "h100"])
    output, line = last_line(capsys)
    assert "were not steady" in output
    assert line["is_steady"] is False


@pytest.mark.parametrize(
    ("arguments", "because"),
    [
        (["RUN"], "--tolls"),
        (["--tolls", "b300"], "RUN"),
        (["RUN", "--tolls", "b30"], "Did you mean b300?"),
        (["RUN", "--tolls", "b300", "--base-step-time-s", "0"], "more than 0 seconds"),
        (["RUN", "--tolls", "b300", "--base-step-time-s", "nan"], "more than 0 seconds"),
        (["RUN", "--tolls", "b300", "--base-step-time-s", "inf"], "more than 0 seconds"),
        (["RUN", "--tolls", "b300", "--base-step-time-s", "fast"], "fast: allowed is a number"),
        (["RUN", "--toll", "b300"], "--tolls"),
    ],
)
def test_a_wrong_command_line_is_refused_with_what_to_change(write, arguments, because):
    run = str(write(RECORD))
    with pytest.raises(RequestError) as caught:
        verb.run([run if word == "RUN" else word for word in arguments])
    assert because in str(caught.value)


@pytest.mark.parametrize(
    ("interval", "shown"),
    [
        ([8, 12], {"210.0 ms (208.0 ms to 212.0 ms)", "4.8% (3.8% to 5.7%)"}),
        (None, {"210.0 ms", "4.8%"}),
        ([9.99, 10.01], {"210.0 ms", "4.8%"}),
    ],
)
def test_the_ends_of_a_range_are_printed_where_they_read_otherwise_than_its_value(write, capsys, interval, shown):
    tolls = {"kind": KIND, "schema_version": 1, "name": "made up", "tolls": {"launch_us": number(10, interval)}}
    run = write(changed(crossings={"counted_by": "operators", "operators": 1000}))
    verb.run([str(run), "--tolls", str(write(tolls, "tolls.json"))])
    rows = [line.strip("│ ").split("│") for line in last_line(capsys)[0].splitlines() if line.startswith("│")]
    assert {row[-1].strip() for row in rows if row[0].startswith(("step with CC", "loss"))} == shown
