"""The record's JSON is strict: what is not a number is null."""

import dataclasses
import json
import math

from cctrain.records import SCHEMA_VERSION, RunRecord, StepRecord, strict_json, to_json

STEP = StepRecord(
    step=1,
    step_time_s=0.5,
    rank_step_time_s=(0.5, math.inf),
    data_wait_s=0.0,
    phases_s={"forward": math.nan, "backward": 0.25},
    padded_tokens=10,
    real_tokens=9,
    label_tokens=8,
    num_images=0,
    loss=math.nan,
    is_warmup=False,
)
RECORD = RunRecord(
    run_id="a",
    recipe="tiny",
    engine="automodel",
    step_kind="stock",
    mode="off",
    status="partial",
    failure=None,
    identity={"limits": [1.0, -math.inf], "name": "NaN"},
    platform={},
    command=("cctrain",),
    started_at="",
    ended_at=None,
    notes=(),
    steps=(STEP,),
    summary=None,
)


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_what_is_not_a_number_becomes_null():
    record = json.loads(to_json(RECORD), parse_constant=refuse)
    (step,) = record["steps"]
    assert step["loss"] is None
    assert step["rank_step_time_s"] == [0.5, None]
    assert step["phases_s"] == {"forward": None, "backward": 0.25}
    assert record["identity"] == {"limits": [1.0, None], "name": "NaN"}


def test_numbers_text_and_flags_are_kept_as_they_are():
    record = json.loads(to_json(RECORD))
    assert set(record) == {field.name for field in dataclasses.fields(RunRecord)}
    assert (record["schema_version"], record["command"], record["summary"]) == (SCHEMA_VERSION, ["cctrain"], None)
    assert record["steps"][0]["is_warmup"] is False
    assert record["steps"][0]["padded_tokens"] == 10


def test_what_a_fast_encoder_refuses_is_written_all_the_same():
    content = {"large": 2**70, "argument": "\udcff", "loss": float("nan")}
    assert json.loads(strict_json(content)) == {**content, "loss": None}
