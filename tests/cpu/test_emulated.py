"""Emulated runs of the real AutoModel recipe, where operators of this CPU stand in for launches: tolls, arms, outcome.

Nothing here says how long anything takes, but for what the stand-in itself counts as injected.
"""

import json

import pytest

from cctrain.emulation.profile import KIND, SCHEMA_VERSION, load_profile

STEPS, WARMUP, BLOCKS = 48, 4, 3
RECIPE = ("recipe=tiny_llama_peft", "data.seq_len=64")
ONE_RANK = (*RECIPE, "launch.nproc_per_node=1", f"measure.warmup={WARMUP}", f"measure.steps={STEPS}")
EMULATED = ("cc=emulated", "tolls=b300")


@pytest.fixture(scope="module")
def both(start_cctrain):
    """An emulated run beside a plain one: each is mostly AutoModel's import."""
    kinds = (*EMULATED, f"cc.blocks={BLOCKS}"), ("measure.crossings=true",)
    started = [start_cctrain(*ONE_RANK, *kind, NCCL_NVLS_ENABLE="1") for kind in kinds]
    return [run.finish() for run in started]


@pytest.fixture(scope="module")
def emulated(both):
    """One rank, in three pairs of blocks."""
    return both[0]


@pytest.fixture(scope="module")
def plain(both):
    """The same without tolls, counted."""
    return both[1]


@pytest.fixture(scope="module")
def explained(run_cctrain, tmp_path_factory):
    """Two ranks, two rounds, under a profile of its own."""
    path = tmp_path_factory.mktemp("profile") / "own.json"
    tolls = {name: {"value": 20.0, "interval": None, "source": "made up"} for name in ("launch_us", "wait_us")}
    path.write_text(json.dumps({"kind": KIND, "schema_version": SCHEMA_VERSION, "name": "own", "tolls": tolls}))
    run = ("measure.warmup=2", "measure.steps=48", "cc.blocks=2", "launch.nproc_per_node=2")
    return run_cctrain("explain", *RECIPE, f"tolls={path}", *run)


def test_an_emulated_run_is_complete_and_says_everywhere_what_it_is(emulated):
    assert emulated.code == 0, emulated.stderr
    record = emulated.record
    assert (record["mode"], record["status"], record["failure"]) == ("emulated", "complete", None)
    profile = load_profile("b300")
    tolls = record["tolls"]
    assert (tolls["name"], tolls["sha256"], tolls["content"]) == ("b300", profile.sha256, profile.to_dict())
    assert emulated.last_line["mode"] == "emulated"
    assert emulated.last_line["tolls"] == "b300"
    assert emulated.last_line["keep_ratio"] == record["keep_ratio"]
    assert "-emulated-" in emulated.run_dir.name
    for words in ("CC emulated, tolls b300", "assumed: launch tolls are paid", "not emulated: NVLink bandwidth"):
        assert words in emulated.stdout


def test_a_profile_that_charges_nothing_is_said_to_before_the_wait_and_in_the_record(start_cctrain, tmp_path):
    path = tmp_path / "free.json"
    path.write_text(json.dumps({"kind": KIND, "schema_version": SCHEMA_VERSION, "name": "free", "tolls": {}}))
    run = start_cctrain(*RECIPE, "cc=emulated", f"tolls={path}", "measure.setup_timeout_s=0.5").finish()
    assert "note: the profile free charges nothing here" in run.stderr
    assert any("the profile free charges nothing here" in note for note in run.record["notes"])
    assert "charges nothing here" in run.stdout


def test_its_ranks_have_no_multicast_though_the_user_set_it_and_the_record_says_so(emulated):
    assert emulated.record["platform"]["host"]["environment"]["NCCL_NVLS_ENABLE"] == "0"


def test_a_stand_in_for_a_gpu_is_called_one(emulated):
    (note,) = [note for note in emulated.record["notes"] if "no GPU" in note]
    assert "says nothing about any machine" in note
    assert "operators, each in place of a launch" in emulated.stdout


def test_steps_are_of_a_plain_or_a_tolled_block_and_the_warm_up_of_none(emulated):
    steps = emulated.record["steps"]
    assert len(steps) == WARMUP + STEPS
    for step in steps[:WARMUP]:
        assert (step["arm"], step["block"], step["is_tolled"], step["is_warmup"]) == (None, None, None, True)
    measured = steps[WARMUP:]
    assert [step["block"] for step in measured] == [index // 8 for index in range(STEPS)]
    arms = ["off", "all", "all", "off", "off", "all"]
    assert [step["arm"] for step in measured] == [arms[index // 8] for index in range(STEPS)]
    assert all(step["is_tolled"] is (step["arm"] == "all") for step in measured)
    assert [step["is_warmup"] for step in measured] == [index % 8 < 2 for index in range(STEPS)]


def test_only_tolled_steps_pay_and_they_pay_for_every_operator(emulated):
    lines = [json.loads(line) for line in (emulated.run_dir / "samples" / "rank0.jsonl").read_text().splitlines()]
    rows = [line for line in lines if "step" in line]
    toll_s = load_profile("b300").number("launch_us") / 1e6
    for row in rows:
        crossings = row["crossings"]
        assert crossings["operators"] > 100
        injected_s = crossings["injected_s"]["launch"]
        if row.get("is_tolled"):
            assert injected_s >= crossings["operators"] * toll_s * 0.999
        else:
            assert injected_s == 0


def test_each_arm_has_its_summary(emulated):
    record = emulated.record
    steps = {arm: [step for step in record["steps"] if step["arm"] == arm] for arm in ("off", "all")}
    for arm, key in (("all", "summary"), ("off", "summary_off")):
        state = record[key]["steady_state"]
        assert state["num_steps"] <= len([step for step in steps[arm] if not step["is_warmup"]]) == 18
        assert state["first_step"] in {step["step"] for step in steps[arm]}
    assert record["explain"] is None


def test_crossings_are_those_of_a_plain_step_and_what_was_injected_that_of_a_tolled_one(emulated, plain):
    assert plain.code == 0, plain.stderr
    found, counted = emulated.record["crossings"], plain.record["crossings"]
    assert found["counted_by"] == counted["counted_by"] == "operators"
    assert found["operators"] == pytest.approx(counted["operators"], rel=0.01)
    toll_s = load_profile("b300").number("launch_us") / 1e6  # each spins at least so long
    assert found["injected_s"]["launch"] > found["operators"] * toll_s * 0.99
    assert counted["injected_s"] == {"launch": 0}
    assert not [note for note in plain.record["notes"] if "paid the launch toll" in note]


def test_emulation_changes_nothing_about_training(emulated, plain):
    losses = [[step["loss"] for step in run.record["steps"]] for run in (emulated, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert len(set(losses[0])) > 10


def test_a_counted_plain_run_is_off_and_holds_no_tolls(plain):
    record = plain.record
    assert record["mode"] == "off"
    assert (record["tolls"], record["keep_ratio"], record["summary_off"], record["explain"]) == (None, None, None, None)
    assert {step["arm"] for step in record["steps"]} == {None}
    assert any("no GPU: operators of this CPU are counted" in note for note in record["notes"])


def test_both_ranks_of_an_explained_run_change_tolls_with_the_same_steps(explained):
    assert explained.code == 0, explained.stderr
    lines = [path.read_text().splitlines() for path in sorted(explained.run_dir.glob("samples/rank*.jsonl"))]
    ranks = [[row for row in map(json.loads, each) if "step" in row] for each in lines]
    assert len(ranks) == 2
    facts = [
        [(row["step"], row.get("arm"), row.get("block"), row.get("is_settling")) for row in rows] for rows in ranks
    ]
    assert facts[0] == facts[1]
    for rows in ranks:
        for row in rows:
            pays = row.get("arm") in ("all", "only launch")
            assert (row["crossings"]["injected_s"]["launch"] > 0) == pays


def test_on_a_cpu_launches_are_all_there_is_to_explain(explained):
    record = explained.record
    arms = {step["arm"] for step in record["steps"]}
    assert arms == {None, "off", "all", "only launch", "without launch"}
    assert {step["is_tolled"] for step in record["steps"] if step["arm"] in ("only launch", "without launch")} == {None}
    assert max(step["block"] or 0 for step in record["steps"]) == 7
