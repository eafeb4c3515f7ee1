"""Records of every format load; whatever else a file holds is refused in one printable line that names it."""

import dataclasses
import json
from pathlib import Path

import make_records
import numpy as np
import pytest

from cctrain.comparison.arms import arms_of
from cctrain.errors import RequestError
from cctrain.load import read_run, read_runs
from cctrain.records import to_json
from cctrain.reduce import summarize

OLD = sorted((Path(__file__).parents[1] / "data" / "runs").glob("*.json"))


def record():
    return json.loads(to_json(make_records.run_record("off", 1, num_steps=30)))


def written(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_records_of_every_format_give_what_their_own_summary_says(path):
    arms = arms_of(read_run(path))
    for arm in arms:
        assert arm.why_unsteady is None
    content = json.loads(path.read_text())
    summaries = [summary for summary in (content.get("summary_off"), content["summary"]) if summary]
    for arm, summary in zip(arms, summaries, strict=True):
        assert arm.tokens_per_s_per_gpu == pytest.approx(summary["tokens_per_s_per_gpu"]["median"])
        assert arm.mean_tokens_per_s_per_gpu == pytest.approx(summary["tokens_per_s_per_gpu"]["mean"], rel=1e-3)


def test_there_is_a_record_of_each_format():
    assert [json.loads(path.read_text())["schema_version"] for path in OLD] == [1, 2, 3]


def test_an_emulated_run_holds_a_plain_and_a_tolled_arm_without_warm_up_or_partial_tolls(tmp_path):
    made = make_records.emulated_record(1, num_steps=48, block=12)
    steps = [dataclasses.replace(step, is_tolled=None) if step.block == 3 else step for step in made.steps]
    run = read_run(written(tmp_path, json.loads(to_json(dataclasses.replace(made, steps=tuple(steps))))))
    plain, tolled = arms_of(run)
    assert (plain.mode, tolled.mode) == ("off", "emulated")
    assert set(run.steps.round[plain.measured]) == {0, 1}
    assert set(run.steps.round[tolled.measured]) == {0}
    assert not run.steps.is_warmup[np.concatenate([plain.measured, tolled.measured])].any()


def test_the_noise_within_a_run_is_that_of_its_rate_also_of_ranks_that_are_late_in_turn(tmp_path):
    draw = np.random.default_rng(7)
    record = make_records.run_record("off", 1, num_gpus=8)
    steps = []
    for step in record.steps:
        times = tuple(step.step_time_s * draw.normal(1, 0.01, size=8))
        steps.append(dataclasses.replace(step, rank_step_time_s=times, step_time_s=max(times)))
    record = dataclasses.replace(record, steps=tuple(steps))
    (arm,) = arms_of(read_run(written(tmp_path, json.loads(to_json(record)))))
    rate = summarize(record.steps, 8, None).tokens_per_s_per_gpu
    assert arm.mean_tokens_per_s_per_gpu == pytest.approx(rate.mean)
    assert arm.half_width == pytest.approx((rate.ci95[1] - rate.ci95[0]) / 2 / rate.mean)


def test_phases_and_what_is_missing_of_them_are_kept(tmp_path):
    content = record()
    content["steps"][10]["phases_s"] = None
    content["steps"][11]["phases_s"]["forward"] = None
    phases = read_run(written(tmp_path, content)).steps.phases_s
    assert set(phases) == set(make_records.PHASES)
    assert np.isnan(phases["forward"][[10, 11]]).all()
    assert np.isfinite(phases["backward"][11])


def with_change(path, value):
    content = record()
    *way, last = path
    node = content
    for key in way:
        node = node[key]
    if value is KeyError:
        del node[last]
    else:
        node[last] = value
    return content


HOSTILE = {
    "schema_version": (("schema_version",), 99),
    "schema_version of a flag": (("schema_version",), True),
    "mode": (("mode",), "quick"),
    "ANSI in a name": (("recipe",), "\x1b[31mred"),
    "line break in a name": (("run_id",), "a\nb"),
    "right-to-left override in a name": (("engine",), "a\u202eb"),
    "half a surrogate in a name": (("recipe",), "\ud800"),
    "name too long": (("recipe",), "a" * 400),
    "name of another type": (("status",), 3),
    "identity of another type": (("identity",), []),
    "control character in identity": (("identity", "model"), "a\x00b"),
    "control character in a key": (("identity", "a\x07b"), 1),
    "no GPUs": (("identity", "num_gpus"), 0),
    "huge number in identity": (("identity", "num_gpus"), 10**400),
    "steps of another type": (("steps",), {}),
    "a step of another type": (("steps", 3), 7),
    "a step without time": (("steps", 3, "step_time_s"), KeyError),
    "time of null": (("steps", 3, "step_time_s"), None),
    "time of text": (("steps", 3, "step_time_s"), "1"),
    "time of a flag": (("steps", 3, "step_time_s"), True),
    "huge tokens": (("steps", 3, "padded_tokens"), 10**300),
    "no ranks": (("steps", 3, "rank_step_time_s"), []),
    "text for a rank": (("steps", 3, "rank_step_time_s"), ["1"]),
    "warm-up of text": (("steps", 3, "is_warmup"), "no"),
    "steps out of order": (("steps", 3, "step"), 1),
    "phases of another type": (("steps", 3, "phases_s"), [1]),
    "phase of text": (("steps", 3, "phases_s"), {"forward": "1"}),
    "script in a phase": (("steps", 3, "phases_s"), {"\x1b]0;title": 1}),
}


@pytest.mark.parametrize(("path", "value"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_record_with_something_wrong_is_refused_by_name(tmp_path, path, value):
    file = written(tmp_path, with_change(path, value))
    with pytest.raises(RequestError) as refused:
        read_run(file)
    assert str(file) in str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000


BAD_FILES = {
    "empty": b"",
    "truncated": to_json(make_records.run_record("off", 1, num_steps=30)).encode()[:900],
    "not JSON": b"mode: off",
    "not UTF-8": b'{"a": "\xff"}',
    "a list": b"[]",
    "NaN": b'{"schema_version": NaN}',
    "nested deeply": b"[" * 100_000,
    "nested in identity": to_json(make_records.run_record("off", 1, num_steps=1))
    .replace('"precision":"bf16"', '"precision":' + '{"a":' * 60 + "1" + "}" * 60)
    .encode(),
    "infinity": to_json(make_records.run_record("off", 1, num_steps=1))
    .replace('"loss":12.5', '"loss":1e999')
    .encode()
    .replace(b'"step_time_s":', b'"step_time_s":1e999,"was":', 1),
    "digits without end": b'{"schema_version": ' + b"9" * 5000 + b"}",
    "a million steps": b'{"schema_version":3,"run_id":"a","recipe":"a","engine":"a","step_kind":"a","mode":"off",'
    b'"status":"complete","identity":{},"steps":[' + b"{}," * 999_999 + b"{}]}",
    "escapes": b"\x1b[2J\x1b[31m",
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_that_is_no_record_is_refused_by_name(tmp_path, content):
    file = written(tmp_path, content)
    with pytest.raises(RequestError) as refused:
        read_run(file)
    assert str(file) in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("content", "what"),
    [(b'{"kind": "tolls", "schema_version": 2}', "it is no run's record but tolls"), (b"{}", "as it has no run_id")],
)
def test_a_file_of_something_else_is_told_by_what_it_is(tmp_path, content, what):
    with pytest.raises(RequestError, match=what):
        read_run(written(tmp_path, content))


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    file = tmp_path / "run.json"
    with file.open("wb") as sparse:
        sparse.truncate(10 << 30)
    with pytest.raises(RequestError, match="larger than 64 MiB"):
        read_run(file)


def test_what_is_no_file_is_not_opened(tmp_path):
    with pytest.raises(RequestError, match="no file at all"):
        read_run(Path("/dev/zero"))
    with pytest.raises(RequestError, match="a directory, not a file"):
        read_run(tmp_path)
    with pytest.raises(RequestError, match="No such file"):
        read_run(tmp_path / "missing.json")


def test_text_for_people_is_cleaned_and_cut(tmp_path):
    content = record()
    content |= {"failure": "line\nbreak \x1b[31m", "command": ["a\tb", 3, "\x00"], "platform": {"a\x1b": ["x" * 9999]}}
    run = read_run(written(tmp_path, content))
    assert run.failure == "line break \ufffd[31m"
    assert run.command == ("a b", "\ufffd")
    assert len(run.platform["a\ufffd"][0]) < 2010


def test_runs_are_found_in_a_directory_of_run_directories_and_read_once(tmp_path):
    folders = [make_records.write(tmp_path, make_records.run_record("off", number)) for number in (1, 2)]
    runs = read_runs([tmp_path, folders[0], folders[1] / "run.json"])
    assert [run.path.parent for run in runs] == folders


def test_a_copy_of_a_run_is_no_replicate(tmp_path):
    for place in ("a", "b"):
        make_records.write(tmp_path / place, make_records.run_record("off", 1))
    with pytest.raises(RequestError, match="are the same run"):
        read_runs([tmp_path / "a", tmp_path / "b"])


def test_a_directory_without_runs_says_so(tmp_path):
    with pytest.raises(RequestError, match="holds no run"):
        read_runs([tmp_path])
