"""Sinks that are slow, full, broken or gone, what is put before them, and that a run never notices."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from make_records import emulated_record, run_record

from cctrain import rundir
from cctrain.config import TrackConfig
from cctrain.errors import RequestError
from cctrain.records import strict_json, to_json
from cctrain.redaction import REDACTED
from cctrain.request.compose import compose_config
from cctrain.request.recipe import recipe_hash
from cctrain.sinks.child import stream
from cctrain.sinks.compared import track_comparison
from cctrain.sinks.facts import Steps, end_of, start_of
from cctrain.sinks.tracking import Tracking, check_sinks

TOKEN = "hf_" + "aB3" * 10
STALE = "sys.stdin.read(); time.sleep(60)"
"""A sink that never gets rid of what it was given."""


class FakeSink:
    """Remembers what it is given; raises in the calls named."""

    def __init__(self, *broken: str) -> None:
        self.broken, self.steps, self.began, self.ended = broken, [], None, None

    def begin(self, start):
        self.began = start
        self.maybe_raise("begin")

    def step(self, step, values):
        self.steps.append((step, values))
        self.maybe_raise("step")

    def end(self, end):
        self.ended = end
        self.maybe_raise("end")

    def maybe_raise(self, call):
        if call in self.broken:
            raise OSError(28, f"No space left on device, {TOKEN}")


class RunDir:
    """A run directory as it looks when the ranks are starting."""

    def __init__(self, folder, record=None, track=None, world=2):
        self.path, self.world = folder, world
        for name in ("samples", "logs"):
            (folder / name).mkdir()
        self.record = json.loads(to_json(record or run_record("off", 1, num_gpus=world)))
        config = {"track": {"sinks": ["wandb"], "project": None, "group": None, **(track or {})}}
        config |= {"measure": {"warmup": 1}, "train": {"model": {}}, "tolls": None}
        rundir.write_json(folder / "config.json", config)
        rundir.write_json(folder / "running.json", {})
        rundir.write_json(folder / "run.json", {**self.record, "status": "partial", "failure": "still running"})
        for rank in range(world):
            self.write(rank, {"event": "start", "rank": rank, "world_size": world})
            self.write(rank, {"event": "ready", "data_rank": rank, "data_ranks": world})

    def write(self, rank, line):
        with (self.path / "samples" / f"rank{rank}.jsonl").open("a") as file:
            file.write(strict_json(line))

    def step(self, number, *, ranks=None, **changed):
        counts = {"padded_tokens": 100, "real_tokens": 90, "label_tokens": 80, "num_images": 0}
        times = {"step_time_s": 0.5, "data_wait_s": 0.1, "phases_s": {"forward": 0.3, "backward": 0.2}}
        for rank in range(self.world) if ranks is None else ranks:
            self.write(rank, {"step": number, "loss": 1.5, **counts, **times, **changed})

    def finish(self, **changed):
        rundir.write_json(self.path / "run.json", {**self.record, **changed})
        (self.path / "running.json").unlink()


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path)


def streamed(run, sink, polls):
    """What the user is told while `sink` follows the run; `polls` are done one a poll, the last ends the run."""
    told, left = [], list(polls)

    def is_over():
        left.pop(0)()
        return not left

    stream(run.path, sink, is_over, lambda kind, text: told.append((kind, text)))
    return told


def test_a_sink_gets_each_step_once_all_ranks_have_finished_it(run):
    sink, seen = FakeSink(), []

    def look():
        seen.append([number for number, _ in sink.steps])

    polls = (
        lambda: run.step(1),
        lambda: (look(), run.step(2, ranks=[0])),
        lambda: (look(), run.step(2, ranks=[1]), run.step(3)),
        lambda: (look(), run.finish()),
    )
    assert streamed(run, sink, polls) == []
    assert seen == [[1], [1], [1, 2, 3]]
    assert [number for number, _ in sink.steps] == [1, 2, 3]
    assert sink.ended.is_complete


def test_the_keys_of_a_step(run):
    run.step(1, loss=None)
    run.step(2, is_tolled=True, ranks=[0])
    run.step(2, is_tolled=True, ranks=[1], step_time_s=1.0)
    steps = dict(Steps(run.path).new())
    assert steps[2] == {
        "train/step_time_s": 1.0,
        "train/tokens_per_s_per_gpu": 100.0,
        "train/real_tokens_per_s_per_gpu": 90.0,
        "train/loss": 1.5,
        "train/padded_tokens": 200,
        "train/is_warmup": 0,
        "train/is_tolled": 1,
        "phases/forward_s": 0.3,
        "phases/backward_s": 0.2,
    }
    assert steps[1]["train/is_warmup"] == 1
    assert {"train/loss", "train/is_tolled", "train/mfu"}.isdisjoint(steps[1]), "unknown is left out"


@pytest.mark.parametrize(
    ("broken", "num_steps", "has_end"),
    [(["begin"], 0, False), (["step"], 1, True), (["end"], 3, True), (["step", "end"], 1, True)],
)
def test_a_sink_that_is_full_costs_one_warning(run, broken, num_steps, has_end):
    sink = FakeSink(*broken)
    polls = [lambda number=number: run.step(number) for number in (1, 2, 3)]
    told = streamed(run, sink, [*polls, run.finish])
    assert [kind for kind, _ in told] == ["warning"]
    assert "No space left on device" in told[0][1]
    assert (len(sink.steps), bool(sink.ended)) == (num_steps, has_end)


def test_the_results_are_the_records_by_path_and_the_files_are_named(tmp_path):
    run = RunDir(tmp_path, emulated_record(1), world=1)
    (tmp_path / "logs" / "rank0.log").write_text("step 1")
    (tmp_path / "logs" / "track-wandb.log").write_text("still written")
    (tmp_path / "automodel.yaml").write_text("model: {}")
    summary = {"step_time_s": {"median": 0.2, "ci95": [0.1, 0.3]}, "steady_state": {"first_step": 6}, "mfu": None}
    run.finish(summary=summary, keep_ratio={"value": 0.7, "ci95": [0.68, 0.72], "num_pairs": 8})
    end = end_of(tmp_path)
    assert end.results["summary/step_time_s/median"] == 0.2
    assert (end.results["summary/step_time_s/ci95_low"], end.results["summary/step_time_s/ci95_high"]) == (0.1, 0.3)
    assert (end.results["keep_ratio/value"], end.results["keep_ratio/loss"]) == (0.7, pytest.approx(0.3))
    assert end.results["explain/launch/cost_s"] > 0
    assert end.results["summary/tokens_per_step"] == 1024
    assert "summary/mfu" not in end.results
    assert [file.name for file in end.files] == ["run.json", "automodel.yaml", "config.json", "rank0.log"]


def test_an_emulated_run_is_marked_in_name_tags_and_job_type(tmp_path):
    record = emulated_record(1)
    start = start_of(RunDir(tmp_path, record, world=1).path)
    assert start.name == f"emulated CC b300 {record.run_id}"
    assert start.job_type == "cc-emulated"
    assert {"cc-emulated", "b300", "llama8b_peft"} <= set(start.tags)
    assert ("launch_us", "18.6", "seed post, section 3") in start.tolls
    assert start.config["tolls"] == {"name": "b300", "sha256": record.tolls["sha256"]}


def test_runs_that_differ_in_mode_only_are_one_group(tmp_path):
    def start(name, mode, track=None, **changes):
        (tmp_path / name).mkdir()
        return start_of(RunDir(tmp_path / name, run_record(mode, 1, **changes), track=track).path)

    off, on = start("off", "off"), start("on", "on")
    assert (off.job_type, on.job_type) == ("cc-off", "cc-on")
    assert off.group == on.group
    assert off.group.startswith("llama8b_peft-automodel-stock-")
    changes = {"engine": {"engine": "hf"}, "step": {"step_kind": "graphed"}, "GPUs": {"num_gpus": 2}}
    others = {start(name, "off", **change).group for name, change in changes.items()}
    assert len({off.group, *others}) == 4
    assert start("own", "off", track={"group": "tuesday"}).group == "tuesday"


def test_no_secret_reaches_a_sink(tmp_path, monkeypatch):
    monkeypatch.setenv("OWN_API_KEY", "a-value-nobody-may-see")
    record = run_record("off", 1, command=("python", "-m", "cctrain", f"train.x={TOKEN}", "train.api_key=hush-hush"))
    record.platform["host"]["kernel"] = "6.8 a-value-nobody-may-see"
    run = RunDir(tmp_path, record, track={"group": TOKEN})
    run.finish(status="partial", failure=f"401 for {TOKEN}")
    sink = FakeSink()
    streamed(run, sink, [lambda: None])
    given = repr((sink.began, sink.ended))
    assert REDACTED in given
    for secret in (TOKEN, "hush-hush", "a-value-nobody-may-see"):
        assert secret not in given


def test_a_run_whose_parent_was_killed_ends_as_failed_and_sends_no_unredacted_log(run):
    (run.path / "logs" / "rank0.log").write_text("step 1")
    end = end_of(run.path)
    assert not end.is_complete
    assert end.results["failure"] == "the process that followed the run was killed"
    assert end.files == []


def tracked(tmp_path, code, *, close_s=20.0, before_close=lambda tracking: None, names=("trackio",)):
    """What the user is told by sinks that run `code`, and how long closing them took."""
    (tmp_path / "logs").mkdir(exist_ok=True)
    told = []
    tracking = Tracking(tmp_path, told.append, close_s=close_s)
    tracking.start(names, lambda *_: [sys.executable, "-c", f"import sys, time, os; {code}"])
    before_close(tracking)
    begin = time.monotonic()
    tracking.close()
    return told, time.monotonic() - begin


def test_what_a_sink_says_is_passed_on_while_the_run_goes(tmp_path):
    told = []

    def relay(tracking):
        while not told:
            tracking.relay()

    (tmp_path / "logs").mkdir()
    tracking = Tracking(tmp_path, told.append)
    code = """print('{"note": "here"}', flush=True); import sys; sys.stdin.read(); print('{"warning": "gone"}')"""
    tracking.start(["trackio"], lambda *_: [sys.executable, "-c", code])
    relay(tracking)
    assert told == ["trackio: here"]
    tracking.close()
    assert told[1:] == ["warning: trackio: gone (the run and its record are not affected)"]


def test_a_slow_sink_is_given_up_after_its_time_with_one_warning(tmp_path):
    told, seconds = tracked(tmp_path, STALE, close_s=0.3, names=("trackio", "wandb"))
    assert seconds < 5, "both share the time"
    assert [text.partition(":")[0] for text in told] == ["warning", "warning"]
    assert "had not taken everything 0.3 s after the end" in told[0]
    assert "logs/track-trackio.log" in told[0]


def test_a_stop_signal_ends_the_wait_for_a_slow_sink_and_its_handlers_come_back(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    told, seconds = tracked(tmp_path, STALE, close_s=30.0)
    assert seconds < 10
    assert "not waited for" in told[0]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("code", ["sys.exit(3)", "os.kill(os.getpid(), 9)", "print('{'); sys.exit(1)"])
def test_a_sink_that_crashes_costs_one_warning(tmp_path, code):
    told, _ = tracked(tmp_path, code)
    assert len(told) == 1
    assert "its process ended with exit code" in told[0]


def test_a_sink_that_has_warned_does_not_warn_again(tmp_path):
    told, _ = tracked(tmp_path, """print('{"warning": "the server is down"}', flush=True); sys.exit(1)""")
    assert told == ["warning: trackio: the server is down (the run and its record are not affected)"]


def test_a_sink_that_cannot_be_started_costs_a_warning(tmp_path):
    told = []
    tracking = Tracking(tmp_path, told.append)
    tracking.start(["trackio"], lambda *_: ["/no/such/program"])
    tracking.close()
    assert len(told) == 1
    assert "cannot be started" in told[0]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import time; time.sleep(60)", "timed out"),
        ("import sys; sys.exit('no wandb-core here')", "no wandb-core here"),
        ("""print('{"warning": "the server is down"}'); raise SystemExit(1)""", "the server is down"),
    ],
)
def test_a_comparison_that_cannot_be_logged_costs_one_warning(code, said):
    told = []
    track_comparison({}, [], told.append, command=[sys.executable, "-c", code], timeout_s=1.0)
    assert len(told) == 1
    assert told[0].startswith("warning: wandb: ")
    assert said in told[0]


def test_a_sinks_log_is_left_without_secrets(tmp_path):
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "track-trackio.log"
    tracked(tmp_path, f"open({str(log)!r}, 'w').write('login with {TOKEN}')")
    assert log.read_text() == f"login with {REDACTED}"


def test_wandb_told_to_do_nothing_starts_no_process(tmp_path):
    tracking = Tracking(tmp_path, pytest.fail)
    tracking.start(["wandb"], lambda *_: pytest.fail("started"), {"WANDB_MODE": "disabled"})
    tracking.close()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["trackio"], "pip install 'cctrain[trackio]'"),
        (["wandb"], "pip install wandb"),
        (["child"], "child is none"),
        (["../evil"], "is none"),
    ],
)
def test_a_missing_package_is_named_with_the_way_to_get_it(names, said):
    with pytest.raises(RequestError, match="track") as refused:
        check_sinks(names, find=lambda package: None)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"project": "mine"}, "track.project=mine is read with"),
        ({"sinks": ["wandb"], "project": "a/b"}, "track.project=a/b: allowed are"),
        ({"sinks": ["wandb"], "group": ""}, "track.group=: allowed are"),
    ],
)
def test_wrong_settings_name_the_key(wrong, said):
    with pytest.raises(RequestError) as refused:
        TrackConfig(**wrong)
    assert said in str(refused.value)


def test_every_choice_of_track_is_there_and_none_changes_what_is_trained():
    configs = {
        kind: compose_config(["recipe=tiny_llama_peft", f"track={kind}"])
        for kind in ("none", "wandb", "trackio", "both")
    }
    assert [config.track.sinks for config in configs.values()] == [[], ["wandb"], ["trackio"], ["wandb", "trackio"]]
    assert len({recipe_hash(config.train) for config in configs.values()}) == 1
    for config in configs.values():
        check_sinks(config.track.sinks)
    assert compose_config(["recipe=tiny_llama_peft"]).track.sinks == ["wandb"]


@pytest.mark.parametrize(
    "module", ["cctrain.commands.train", "cctrain.worker", "cctrain.sinks.wandb", "cctrain.sinks.trackio"]
)
def test_trackers_are_imported_in_a_sinks_own_process_only(module):
    code = f"import {module}, sys; print(sorted({{'wandb', 'trackio', 'wandb_workspaces'}} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_ranks_know_nothing_of_sinks():
    code = "import cctrain.worker, sys; print([name for name in sys.modules if name.startswith('cctrain.sinks')])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
