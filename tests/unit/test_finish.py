"""The end of a record: by the process that followed the run, or by the next verb where that one was killed."""

import json
import subprocess
import sys

import pytest

from cctrain import rundir
from cctrain.emulation.blocks import ALL, OFF, schedule
from cctrain.emulation.profile import load_profile
from cctrain.finish import finish_abandoned, finish_record
from cctrain.processes import this_process
from cctrain.records import RunRecord, strict_json


def make_run(run_root, owner=None, *, num_steps=3, num_measured=None):
    """A run directory as one rank's run leaves it; `owner` follows it, or did."""
    expected = {"warmup": 1, "steps": num_measured or num_steps - 1, "ranks": 1}
    run_dir = rundir.create(run_root, "tiny", "off", expected)
    facts = {"recipe": "tiny", "engine": "automodel", "step_kind": "stock", "mode": "off", "status": "partial"}
    rest = {"identity": {}, "platform": {}, "command": (), "started_at": "", "ended_at": None, "notes": ()}
    record = RunRecord(run_id=run_dir.name, failure="still running", steps=(), summary=None, **facts, **rest)
    rundir.begin_record(run_dir, record)
    if owner:
        rundir.write_json(run_dir / "running.json", {**owner, **expected})
    write_samples(run_dir, rank=0, world=1, num_steps=num_steps)
    return run_dir


def write_samples(run_dir, *, rank, world, num_steps, loss=1.5, end=None, of_step=lambda number: {}, **changed):
    ready = {"event": "ready", "data_rank": rank, "data_ranks": world}
    lines = [{"event": "start", "rank": rank, "world_size": world, **this_process()}, ready]
    counts = {"padded_tokens": 10, "real_tokens": 9, "label_tokens": 8, "num_images": 0}
    times = {"step_time_s": 0.5, "data_wait_s": 0.1, "phases_s": {"forward": 0.5}, **changed}
    lines += [
        {"step": number, "loss": loss, "begin_s": 1e9 + number / 2, **counts, **times, **of_step(number)}
        for number in range(1, num_steps + 1)
    ]
    lines += [{"event": "end", **end}] if end else []
    (run_dir / "samples" / f"rank{rank}.jsonl").write_text("".join(map(strict_json, lines)))


def read_record(run_dir):
    return json.loads((run_dir / "run.json").read_text())


@pytest.fixture(scope="module")
def dead_process():
    """Identity of a process of this machine that has ended."""
    code = "import json; from cctrain.processes import this_process; print(json.dumps(this_process()))"
    return json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)


def test_a_record_is_complete_with_its_steps_and_summary(tmp_path):
    run_dir = make_run(tmp_path)
    finish_record(run_dir, None)
    record = read_record(run_dir)
    assert (record["status"], record["failure"]) == ("complete", None)
    assert [step["is_warmup"] for step in record["steps"]] == [True, False, False]
    assert record["summary"]["tokens_per_s_per_gpu"]["mean"] == pytest.approx(20)
    assert record["ended_at"]


def test_a_failed_run_is_partial_and_says_why(tmp_path):
    record = finish_record(make_run(tmp_path), "rank 0: ValueError: bad")
    assert (record["status"], record["failure"]) == ("partial", "rank 0: ValueError: bad")
    assert len(record["steps"]) == 3


def test_a_run_whose_data_ended_early_is_partial(tmp_path):
    record = finish_record(make_run(tmp_path, num_measured=9), None)
    assert record["status"] == "partial"
    assert "training ended after 3 of 10 steps" in record["failure"]


def test_a_run_that_was_to_stop_by_itself_names_the_key_of_its_maximum(tmp_path):
    run_dir = make_run(tmp_path, num_measured=9)
    (run_dir / "config.json").write_text('{"measure": {"steps": "auto"}}')
    assert "lower measure.max_steps or give more data" in finish_record(run_dir, None)["failure"]


def test_room_is_kept_for_every_step_of_the_record_before_the_run_starts(tmp_path):
    reserve_bytes, record_bytes = [], []
    for num_steps in (10, 510):
        run_dir = make_run(tmp_path, num_steps=num_steps)
        reserve_bytes.append((run_dir / ".reserve").stat().st_size)
        finish_record(run_dir, None)
        record_bytes.append((run_dir / "run.json").stat().st_size)
    assert record_bytes[1] - record_bytes[0] < reserve_bytes[1] - reserve_bytes[0]
    assert record_bytes[1] < reserve_bytes[1]


def test_a_run_without_a_step_still_gets_its_record(tmp_path):
    run_dir = make_run(tmp_path)
    (run_dir / "samples" / "rank0.jsonl").unlink()
    record = finish_record(run_dir, "no step")
    assert (record["steps"], record["summary"], record["status"]) == ([], None, "partial")


BLOCKS = schedule(32, (OFF, ALL), 2)


def cut_emulated_run(run_root, num_steps):
    """The record of an emulated run that was killed after `num_steps` steps, the first of which is its warm-up."""
    run_dir = make_run(run_root, num_measured=len(BLOCKS))
    config = {"tolls": load_profile("b300").to_dict(), "cc": {"explain": False}}
    (run_dir / "config.json").write_text(json.dumps(config))

    def of_step(number):
        if number == 1:
            return {"crossings": {"operators": 100, "injected_s": {"launch": 0.0}}}
        slot = BLOCKS[number - 2]
        is_tolled = slot.arm == ALL
        place = {"arm": slot.arm, "block": slot.block, "is_tolled": is_tolled, "is_settling": slot.is_settling}
        crossings = {"operators": 100, "injected_s": {"launch": 0.1 * is_tolled}}
        return {**place, "step_time_s": 0.5 if is_tolled else 0.4, "crossings": crossings}

    write_samples(run_dir, rank=0, world=1, num_steps=num_steps, of_step=of_step)
    return finish_record(run_dir, "rank 0 was killed")


@pytest.mark.parametrize(("num_steps", "kinds"), [(1, {None}), (7, {None, False})], ids=["warm-up", "plain block"])
def test_an_emulated_run_killed_before_it_paid_a_toll_has_its_steps_and_no_summary(tmp_path, num_steps, kinds):
    record = cut_emulated_run(tmp_path, num_steps)
    assert (record["status"], record["failure"]) == ("partial", "rank 0 was killed")
    assert len(record["steps"]) == num_steps
    assert {step["is_tolled"] for step in record["steps"]} == kinds
    assert (record["summary"], record["summary_off"], record["keep_ratio"]) == (None, None, None)


def test_an_emulated_run_killed_in_a_tolled_block_has_a_summary_of_both_kinds_of_steps(tmp_path):
    record = cut_emulated_run(tmp_path, 1 + 8 + 5)
    assert record["status"] == "partial"
    assert {step["is_tolled"] for step in record["steps"]} == {None, True, False}
    assert record["summary"]["step_time_s"]["median"] == 0.5
    assert record["summary_off"]["step_time_s"]["median"] == 0.4
    assert record["keep_ratio"]["num_pairs"] == 1
    injected_s = {"launch": pytest.approx(0.1)}  # of a tolled step, all else of a plain one
    assert record["crossings"] == {"counted_by": "operators", "operators": 100, "injected_s": injected_s}


def test_a_finished_run_holds_no_marker_and_no_reserve(tmp_path):
    run_dir = make_run(tmp_path)
    finish_record(run_dir, None)
    assert {path.name for path in run_dir.iterdir()} == {"logs", "run.json", "samples"}


def test_unequal_ranks_are_noted_and_only_common_steps_kept(tmp_path):
    run_dir = make_run(tmp_path)
    write_samples(run_dir, rank=0, world=2, num_steps=5)
    write_samples(run_dir, rank=1, world=2, num_steps=2)
    record = finish_record(run_dir, "rank 1 was killed")
    assert [step["step"] for step in record["steps"]] == [1, 2]
    (note,) = record["notes"]
    assert "(rank 0: 5, rank 1: 2); the 2 that all finished are kept" in note


def test_steps_without_a_real_token_are_said_so(tmp_path):
    run_dir = make_run(tmp_path)
    write_samples(run_dir, rank=0, world=1, num_steps=3, real_tokens=0, rows=[[10, [0]]])
    record = finish_record(run_dir, None)
    assert "3 steps have no real token" in record["notes"][0]
    assert record["summary"]["real_tokens_per_s_per_gpu"] == 0
    assert record["summary"]["joules_per_token"] is None


def test_a_clock_that_goes_backwards_inside_a_step_is_said_so_and_nothing_summed(tmp_path):
    run_dir = make_run(tmp_path)
    write_samples(run_dir, rank=0, world=1, num_steps=3, phases_s={"forward": 0.6, "backward": -0.1})
    record = finish_record(run_dir, None)
    assert record["summary"] is None
    assert "went backwards at step 1" in record["notes"][0]


def test_memory_that_was_full_is_said_so(tmp_path):
    run_dir = make_run(tmp_path)
    peaks = {"peak_allocated_bytes": 2**30, "peak_reserved_bytes": 2**31, "num_alloc_retries": 3}
    write_samples(run_dir, rank=0, world=1, num_steps=3, end=peaks)
    record = finish_record(run_dir, None)
    assert "GPU memory was full" in record["notes"][0]
    assert record["summary"]["rank_peak_memory_gib"] == {"allocated": [1.0], "reserved": [2.0]}


def test_energy_and_clocks_are_those_of_the_steady_steps(tmp_path):
    run_dir = make_run(tmp_path)
    readings = [{"time": 1e9 + at, "gpus": [{"energy_j": 300 * at, "sm_clock_mhz": 1500}]} for at in range(4)]
    (run_dir / "telemetry.jsonl").write_text("".join(json.dumps(reading) + "\n" for reading in readings))
    record = finish_record(run_dir, None)
    assert record["summary"]["joules_per_token"] == pytest.approx(300 * 2 * 0.5 / (2 * 9))
    assert record["gpu_state"]["total"]["sm_clock_mhz"]["median"] == 1500


def test_energy_of_some_of_the_gpus_is_not_taken_for_that_of_all(tmp_path):
    run_dir = make_run(tmp_path)
    for rank in (0, 1):
        write_samples(run_dir, rank=rank, world=2, num_steps=3)
    readings = [{"time": 1e9 + at, "gpus": [{"energy_j": 300 * at}]} for at in range(4)]
    (run_dir / "telemetry.jsonl").write_text("".join(json.dumps(reading) + "\n" for reading in readings))
    assert finish_record(run_dir, None)["summary"]["joules_per_token"] is None


def test_a_rank_whose_clock_goes_backwards_is_seen_though_it_is_not_the_slowest(tmp_path):
    run_dir = make_run(tmp_path)
    write_samples(run_dir, rank=0, world=2, num_steps=3)
    write_samples(run_dir, rank=1, world=2, num_steps=3, step_time_s=-100.0)
    record = finish_record(run_dir, None)
    assert record["summary"] is None
    assert "went backwards at step 1; no summary" in record["notes"][0]


def test_a_clock_that_goes_backwards_in_the_warm_up_costs_the_warm_up_only(tmp_path):
    run_dir = make_run(tmp_path)
    path = run_dir / "samples" / "rank0.jsonl"
    path.write_text(path.read_text().replace('"step_time_s":0.5', '"step_time_s":-1.0', 1))
    record = finish_record(run_dir, None)
    assert record["summary"]["step_time_s"]["mean"] == 0.5
    assert "went backwards at step 1; it was warm-up" in record["notes"][0]


def test_damaged_samples_leave_a_record_that_says_so(tmp_path):
    run_dir = make_run(tmp_path)
    write_samples(run_dir, rank=0, world=1, num_steps=3, padded_tokens="many")
    record = finish_record(run_dir, None)
    assert record["status"] == "partial"
    assert "the samples could not be summed up (TypeError" in record["notes"][0]
    assert record["failure"] == record["notes"][0]
    assert not (run_dir / "running.json").exists()


def test_a_run_whose_steps_are_all_there_and_cannot_be_summed_up_is_partial(tmp_path):
    run_dir = make_run(tmp_path)
    write_samples(run_dir, rank=0, world=1, num_steps=3, of_step=lambda number: {"arm": (ALL, OFF)[number % 2]})
    (run_dir / "config.json").write_text('{"tolls": {"name": "no profile"}, "cc": {"explain": false}}')
    record = finish_record(run_dir, None)
    assert (record["status"], record["summary"], len(record["steps"])) == ("partial", None, 3)
    assert "the samples could not be summed up" in record["failure"]


def test_what_the_end_cannot_tell_of_the_machine_costs_a_note(tmp_path):
    run_dir = make_run(tmp_path)
    record = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps({**record, "platform": {"versions": "many"}}))
    record = finish_record(run_dir, None)
    assert record["status"] == "complete"
    assert "what the run's end tells of the machine is not known (TypeError" in record["notes"][-1]


def test_a_seed_figure_that_cannot_be_had_is_said_so(tmp_path):
    run_dir = make_run(tmp_path)
    (run_dir / "config.json").write_text('{"measure": {"kind": "seed"}}')
    record = finish_record(run_dir, None)
    assert record["summary"]["seed"] is None
    assert "measure=seed: the run ended before AutoModel's step 10" in record["notes"][0]


def test_a_run_that_was_told_to_stop_is_complete_and_says_why(tmp_path):
    run_dir = make_run(tmp_path, num_measured=500)
    (run_dir / "stop.json").write_text('{"why": "measure.steps=auto stopped: narrow enough"}')
    record = finish_record(run_dir, None)
    assert (record["status"], record["notes"]) == ("complete", ["measure.steps=auto stopped: narrow enough"])


def test_the_next_verb_finishes_what_a_killed_process_left_and_only_once(tmp_path, dead_process):
    run_dir = make_run(tmp_path, dead_process)
    assert finish_abandoned(tmp_path) == [run_dir]
    record = read_record(run_dir)
    assert record["status"] == "partial"
    assert "was killed" in record["failure"]
    assert [step["is_warmup"] for step in record["steps"]] == [True, False, False]
    assert finish_abandoned(tmp_path) == []


@pytest.mark.parametrize("change", [{}, {"host": "another-machine", "pid": 1}])
def test_a_run_that_may_still_be_followed_is_left_alone(tmp_path, change):
    run_dir = make_run(tmp_path, this_process() | change)
    assert finish_abandoned(tmp_path) == []
    assert read_record(run_dir)["failure"] == "still running"


def test_a_reused_pid_does_not_keep_a_record_open(tmp_path):
    run_dir = make_run(tmp_path, this_process() | {"process_start": "another boot:1"})
    assert finish_abandoned(tmp_path) == [run_dir]


@pytest.mark.parametrize("garbage", ["", "[1]", "{}", '{"host": 1', '"x"'])
def test_a_marker_that_is_not_ours_hides_no_other_run(tmp_path, dead_process, garbage):
    strange = tmp_path / "00000000-strange"
    strange.mkdir()
    (strange / "running.json").write_text(garbage)
    run_dir = make_run(tmp_path, dead_process)
    assert finish_abandoned(tmp_path) == [run_dir]
    assert (strange / "running.json").read_text() == garbage


@pytest.mark.parametrize(("restored", "status"), [(3, "complete"), (2, "partial")])
def test_a_resumed_run_has_the_steps_behind_its_checkpoint(tmp_path, restored, status):
    run_dir = make_run(tmp_path, num_steps=6)
    rundir.write_json(run_dir / "config.json", {"train": {"checkpoint": {"restore_from": "elsewhere"}}})
    lines = (run_dir / "samples" / "rank0.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line).get("step", 9) > 3]
    kept = kept[: len(kept) - (3 - restored)]
    (run_dir / "samples" / "rank0.jsonl").write_text("".join(kept))
    finish_record(run_dir, None)
    record = read_record(run_dir)
    assert [step["step"] for step in record["steps"]] == [4, 5, 6][:restored]
    assert record["status"] == status


def test_a_run_killed_before_it_had_a_record_is_met_once(tmp_path, dead_process):
    half = make_run(tmp_path, dead_process)
    (half / "run.json").unlink()
    whole = make_run(tmp_path, dead_process)
    assert finish_abandoned(tmp_path) == [whole]
    assert finish_abandoned(tmp_path) == []
    assert not (half / ".reserve").exists()


def test_a_run_whose_ranks_were_all_done_is_complete_though_its_parent_was_killed(tmp_path, dead_process):
    run_dir = make_run(tmp_path, dead_process)
    with (run_dir / "samples" / "rank0.jsonl").open("a") as file:
        file.write('{"event": "end", "peak_allocated_bytes": null}\n')
    finish_abandoned(tmp_path)
    assert read_record(run_dir)["status"] == "complete"


def write_samples_elsewhere(run_dir, rank, host, seen):
    write_samples(run_dir, rank=rank, world=2, num_steps=3)
    path = run_dir / "samples" / f"rank{rank}.jsonl"
    start, _, rest = path.read_text().partition("\n")
    path.write_text(json.dumps(json.loads(start) | {"host": f"{host}/pid:[1]"} | seen) + "\n" + rest)


def on_two_machines(tmp_path, seen, **facts):
    """The record of a run whose second rank is on node1, where its first rank has `seen` so much."""
    run_dir = make_run(tmp_path)
    rundir.write_json(run_dir / "run.json", read_record(run_dir) | {"identity": {"gpu": ["NVIDIA H200"]}} | facts)
    write_samples(run_dir, rank=0, world=2, num_steps=3)
    write_samples_elsewhere(run_dir, 1, "node1", seen)
    return finish_record(run_dir, None)


def test_the_record_names_the_machines_that_its_platform_is_not_of(tmp_path):
    record = on_two_machines(tmp_path, {"seen": {"mode": "off", "gpu": ["NVIDIA H200"]}})
    other = {"host": "node1", "num_ranks": 1, "mode": "off", "gpu": ["NVIDIA H200"]}
    assert record["platform"]["other_machines"] == [other]
    assert "of node1 it has mode and GPU names at most" in record["notes"][0]
    assert not [note for note in record["notes"] if "unlike" in note or "attested" in note]


@pytest.mark.parametrize("change", [{"mode": "on"}, {"gpu": ["NVIDIA B300"]}])
def test_a_machine_unlike_the_one_that_began_the_run_is_noted(tmp_path, change):
    record = on_two_machines(tmp_path, {"seen": {"mode": "off", "gpu": ["NVIDIA H200"]} | change})
    (note,) = [note for note in record["notes"] if "unlike" in note]
    assert note.startswith("node1 is unlike the machine that began the run: mode ")


def test_a_machine_that_nobody_looked_at_is_noted(tmp_path):
    record = on_two_machines(tmp_path, {})
    assert record["platform"]["other_machines"][0]["mode"] is None
    assert "node1 did not say which mode it is in" in record["notes"]


def test_with_cc_on_the_gpus_of_other_machines_are_noted_as_not_attested(tmp_path):
    record = on_two_machines(tmp_path, {"seen": {"mode": "on", "gpu": ["NVIDIA H200"]}}, mode="on")
    assert "their GPUs are not attested" in record["notes"][0]


def test_one_machine_has_no_others(tmp_path):
    run_dir = make_run(tmp_path)
    record = finish_record(run_dir, None)
    assert (record["platform"]["other_machines"], record["notes"]) == ([], [])


def test_nccl_that_contradicts_the_mode_is_noted(tmp_path):
    run_dir = make_run(tmp_path)
    (run_dir / "logs" / "rank0.log").write_text("h:1 [0] NCCL INFO CC On, workFifoBytes 0\n")
    assert finish_record(run_dir, None)["notes"] == [
        "NCCL says that CC is on (logs/rank0.log), the driver that it is off: do not rely on the mode"
    ]


def test_the_record_takes_nccls_word_and_says_why_nothing_was_attested(tmp_path):
    run_dir = make_run(tmp_path)
    (run_dir / "logs" / "rank0.log").write_text("h:1 [0] NCCL INFO CC Off, workFifoBytes 1048576\n")
    seen = finish_record(run_dir, None)["platform"]
    assert seen["nccl"] == {"cc": "off", "work_fifo_bytes": 1 << 20}
    assert seen["attestation"]["missing"] == "CC is off: there is nothing to attest"
    assert len(bytes.fromhex(seen["attestation"]["nonce"])) == 32


def test_a_secret_in_a_failure_or_a_log_does_not_stay(tmp_path):
    run_dir = make_run(tmp_path)
    log = run_dir / "logs" / "rank0.log"
    log.write_text("get https://me:pw@host/x\n")
    record = finish_record(run_dir, "rank 0: OSError: token=abc")
    assert record["failure"] == "rank 0: OSError: token=[redacted]"
    assert log.read_text() == "get https://[redacted]@host/x\n"
