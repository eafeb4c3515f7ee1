"""Runs as W&B and trackio hold them, read back with W&B's own tool and in a browser; and trackers that fail a run."""

import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from make_records import emulated_record, run_record, write

from cctrain.sinks.tracking import Tracking

BIN = Path(sys.executable).parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECRET = "planted-and-not-to-be-seen"
EMULATED = (
    "recipe=tiny_llama_peft",
    "cc=emulated",
    "tolls=b300",
    "cc.blocks=2",
    "measure.warmup=3",
    "measure.steps=32",
)
STEPS = 35


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Of somebody who has never logged in to W&B."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def start(start_cctrain, home):
    def start(*overrides, **variables):
        facts = {"HOME": str(home), "NETRC": str(home / "netrc"), "WANDB_MODE": "", "OWN_API_KEY": SECRET}
        return start_cctrain(*overrides, **{**facts, "TRACKIO_DIR": str(home / "trackio"), **variables})

    return start


@pytest.fixture(scope="module")
def run(start):
    """An emulated run, tracked by both."""
    return start(*EMULATED, "track=both", "track.project=mine").finish()


def offline_run(run_dir):
    (folder,) = run_dir.glob("wandb/offline-run-*")
    return folder


def read_back(run_dir):
    """The records of an offline run by type, as W&B's own tool reads them."""
    command = [BIN / "wandb", "leet", "inspect", "--json", offline_run(run_dir)]
    records: dict[str, list] = {}
    for line in subprocess.check_output(command, text=True).splitlines():
        record = json.loads(line)
        records.setdefault(record["type"], []).append(record[record["type"]])
    return records


def summary_of(run):
    command = [BIN / "wandb", "leet", "inspect", "--summary", "--json", offline_run(run.run_dir)]
    return json.loads(subprocess.check_output(command, text=True))


def test_without_a_login_wandb_is_offline_and_says_so_once(run):
    assert run.code == 0, run.stderr
    said = [line for line in run.stderr.splitlines() if line.startswith(("wandb:", "trackio:", "warning:"))]
    assert len(said) == 2, run.stderr
    (about_wandb,) = (line for line in said if line.startswith("wandb:"))
    assert "no login here" in about_wandb
    assert re.search(r"`wandb sync \S+/offline-run-\S+` sends it", about_wandb)
    assert "trackio: `trackio show --project mine` opens the dashboard in the browser" in said


def test_wandb_holds_every_step_with_every_key(run):
    records = read_back(run.run_dir)
    rows = [item["item"] for item in records["history"] if "train/step" in item["item"]]
    assert [row["train/step"] for row in rows] == list(range(1, STEPS + 1))
    wanted = {"step_time_s", "tokens_per_s_per_gpu", "real_tokens_per_s_per_gpu", "loss", "padded_tokens", "is_warmup"}
    for row, step in zip(rows, run.record["steps"], strict=True):
        assert {f"train/{key}" for key in wanted} <= set(row)
        assert {key for key in row if key.startswith("phases/")} == {f"phases/{name}_s" for name in step["phases_s"]}
        assert row["train/step_time_s"] == pytest.approx(step["step_time_s"])
        assert row["train/loss"] == pytest.approx(step["loss"])
        assert row["train/is_warmup"] == step["is_warmup"]
        assert row.get("train/is_tolled") == step["is_tolled"]
    axes = {metric["glob_name"]: metric["step_metric"] for metric in records["metric"] if "glob_name" in metric}
    assert axes == {"train/*": "train/step", "phases/*": "train/step"}
    assert "stats" not in records, "W&B reads no GPU while we measure"


def test_wandb_holds_provenance_and_marks_an_emulated_run_everywhere(run):
    (about,) = read_back(run.run_dir)["run"]
    assert (about["project"], about["job_type"]) == ("mine", "cc-emulated")
    assert about["run_group"].startswith("tiny_llama_peft-automodel-stock-")
    assert about["display_name"] == f"emulated CC b300 {run.run_dir.name}"
    assert {"cc-emulated", "b300"} <= set(about["tags"])
    config = summary_of(run)["config"]
    assert config["identity"] == run.record["identity"]
    assert config["alike"] == about["run_group"]
    assert config["command"][:4] == ["python", "-m", "cctrain", EMULATED[0]]
    assert config["tolls"]["sha256"] == run.record["tolls"]["sha256"]
    assert config["platform"].keys() >= {"guest", "gpus", "host"}
    assert config["automodel"]["step_scheduler"]["max_steps"] == STEPS


def test_wandb_holds_the_summary_the_tolls_and_the_files(run):
    summary = summary_of(run)["summary"]
    assert summary["summary/step_time_s/median"] == pytest.approx(run.record["summary"]["step_time_s"]["median"])
    assert summary["keep_ratio/value"] == pytest.approx(run.record["keep_ratio"]["value"])
    assert summary["status"] == "complete"
    assert summary["tolls"]["nrows"] > 5
    (files,) = (one for one in read_back(run.run_dir)["artifact"] if one["type"] == "cctrain-run")
    contents = {one["path"]: one["local_path"] for one in files["manifest"]["contents"]}
    assert contents.keys() == {
        *("run.json", "config.json", "automodel.yaml", "torchrun.log", "rank0.log", "rank1.log"),
    }
    assert Path(contents["run.json"]).read_text() == (run.run_dir / "run.json").read_text()


def test_all_that_wandb_needs_lies_in_the_run_directory(run, home):
    assert not list(home.rglob("*wandb*"))


def test_no_secret_is_in_what_the_trackers_hold(run, home):
    files = [path for path in (*run.run_dir.rglob("*"), *home.rglob("*")) if path.is_file()]
    assert len(files) > 15
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path


@pytest.fixture
def trackio_address(run, home, tmp_path):
    """`trackio show`, as the run's own note says."""
    said = tmp_path / "said"
    with said.open("w") as output:
        server = subprocess.Popen(
            [BIN / "trackio", "show", "--project", "mine"],
            env={**os.environ, "TRACKIO_DIR": str(home / "trackio"), "BROWSER": "true", "HF_HUB_OFFLINE": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    begin = time.monotonic()
    try:
        while not (found := re.search(r"http://127\.0\.0\.1:\d+\S*(?=\s)", said.read_text())):
            assert server.poll() is None, f"no address, and it is over:\n{said.read_text()}"
            assert time.monotonic() - begin < 60, f"no address in:\n{said.read_text()}"
            time.sleep(0.1)
        yield found[0]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.skipif(not CHROMIUM, reason="no chromium on the path: apt-get install chromium")
def test_trackios_dashboard_shows_the_run_in_a_browser(run, trackio_address):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 1400})
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(trackio_address)
        page.get_by_text(f"emulated CC b300 {run.run_dir.name}").first.wait_for(timeout=20_000)
        for name in ("step_time_s", "tokens_per_s_per_gpu", "loss", "is_tolled", "keep_ratio", "forward_s"):
            page.get_by_text(name, exact=True).first.wait_for(timeout=20_000)
        browser.close()
    assert problems == []


@pytest.fixture
def silent_server():
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def sent_again(run, folder, url):
    """A finished run's directory handed to W&B at `url`: what the user is told, and the directory."""
    again = shutil.copytree(run.run_dir, folder / "again", ignore=shutil.ignore_patterns("wandb", "track-*"))
    login = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": url, "WANDB_MODE": "online"}
    haste = {"WANDB_INIT_TIMEOUT": "3", "WANDB_FINISH_TIMEOUT": "3"}
    told = []
    tracking = Tracking(again, told.append)
    tracking.start(["wandb"], environment={**os.environ, "HOME": str(folder), **login, **haste})
    tracking.close()
    assert "a" * 40 not in repr(told) + (again / "logs" / "track-wandb.log").read_text()
    return [text for text in told if "waiting for" not in text], again


def test_a_wandb_server_that_never_answers_costs_one_warning_and_the_run_is_kept_offline(run, silent_server, tmp_path):
    (said,), again = sent_again(run, tmp_path, silent_server)
    assert said.startswith("warning: wandb: W&B did not take the run, so it is kept offline")
    history = read_back(again)["history"]
    assert len([item for item in history if "train/step" in item["item"]]) == STEPS


class WandbServer(BaseHTTPRequestHandler):
    """As much of a W&B server as takes a run; it stops answering once it has got the first steps."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if any("train/step" in row for row in self.server.history):
            self.server.is_over.wait(120)
            return
        answer = json.dumps(self.answer(json.loads(body)) if self.path == "/graphql" else {}).encode()
        if self.path.endswith("/file_stream") and self.server.is_full:
            self.send_error(403)
            return
        if self.path.endswith("/file_stream"):
            self.server.history += json.loads(body)["files"].get("wandb-history.jsonl", {}).get("content", [])
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def answer(self, asked):
        project = {"id": "p", "name": "cctrain", "entity": {"id": "e", "name": "somebody"}}
        bucket = {"id": "b", "name": asked.get("variables", {}).get("name"), "config": "{}", "project": project}
        by_name = {
            "Viewer": {"viewer": {"id": "v", "entity": "somebody", "username": "somebody"}},
            "UpsertBucket": {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": True}},
            "query ArtifactType(": {"project": None},
            "CreateRunFiles": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}},
        }
        if "mutation CreateArtifact" in asked["query"]:
            return {"errors": [{"message": "the quota of storage is used up"}]}
        return {"data": next((answer for name, answer in by_name.items() if name in asked["query"]), {})}

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), WandbServer) as server:
        server.is_over, server.history, server.is_full = threading.Event(), [], False
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.is_over.set()
        server.shutdown()
        thread.join()


def test_a_live_run_is_seen_as_it_goes_and_a_server_that_stalls_costs_one_warning(start, server):
    url = f"http://127.0.0.1:{server.server_port}"
    login = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": url}
    haste = {"WANDB_FINISH_TIMEOUT": "3", "WANDB_HTTP_TIMEOUT": "3", "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1"}
    run = start("recipe=tiny_llama_peft", "measure.steps=100", "data=recipe", "track=wandb", **login, **haste)
    run.wait_until(lambda: any("train/step" in row for row in server.history), "no step at the server")
    assert json.loads((run.run_dir / "run.json").read_text())["failure"] == "still running"
    run.finish()
    assert run.code == 0, run.stderr
    assert run.record["status"] == "complete"
    assert f"wandb: {url}/somebody/cctrain/runs/" in run.stderr
    warnings = [line for line in run.stderr.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1, run.stderr
    assert "not all was sent" in warnings[0]
    steps = [json.loads(row) for row in server.history if "train/step" in row]
    assert steps[0]["train/step"] == 1
    assert steps[0].keys() >= {"train/step_time_s", "train/tokens_per_s_per_gpu", "phases/forward_s"}


def test_a_server_that_takes_no_more_data_costs_one_warning(run, server, tmp_path):
    server.is_full = True
    (address, said), _ = sent_again(run, tmp_path, f"http://127.0.0.1:{server.server_port}")
    assert address.startswith("wandb: http://127.0.0.1:")
    assert said.startswith("warning: wandb: Fatal error while uploading data (`wandb sync")


def test_a_failed_run_is_a_failed_one_there_too(start):
    run = start("recipe=tiny_llama_peft", "measure.setup_timeout_s=2", "track=wandb").finish()
    assert run.code == 4
    assert "setup_timeout_s" in run.stderr.splitlines()[-1], "the failure stays the last word"
    found = summary_of(run)
    assert (found["exit_code"], found["summary"]["status"]) == (1, "partial")
    assert "setup_timeout_s" in found["summary"]["failure"]


@pytest.fixture(scope="module")
def orphaned(start):
    """A run whose parent was killed, once no process of it is left, and the steps it had had for two seconds then."""
    run = start("recipe=tiny_llama_peft", "measure.steps=5000", "data=recipe", "track=both")
    run.wait_for_steps(4)
    steps = run.steps_older_than(2)
    os.kill(run.process.pid, signal.SIGKILL)
    run.wait_until_gone()
    return run, steps


def test_a_killed_parent_leaves_a_failed_run_at_the_tracker(orphaned):
    found = summary_of(orphaned[0])
    assert found["exit_code"] == 1
    assert found["summary"]["failure"] == "the process that followed the run was killed"
    assert found["summary"]["train/step"] > 1


def test_the_next_verb_finishes_the_record_of_a_killed_parent(orphaned, start):
    run, steps = orphaned
    refused = "train.step_scheduler.local_batch_size=3"
    next_verb = start("recipe=tiny_llama_peft", refused, "track=none", run_root=run.run_root).finish()
    assert next_verb.code == 2
    assert str(run.run_dir) in next_verb.stderr
    assert run.record["status"] == "partial"
    assert "was killed" in run.record["failure"]
    assert steps
    assert {step["step"] for step in run.record["steps"]} >= steps


@pytest.fixture
def compared(tmp_path):
    """`compare`, run in an empty directory, by somebody who has never logged in."""
    for number in range(2):
        write(tmp_path / "runs", run_record("off", 2 * number))
        write(tmp_path / "runs", run_record("on", 2 * number + 1, step_time_s=0.28))
        write(tmp_path / "runs", emulated_record(20 + number, keep=0.72))

    def compare(*flags, **variables):
        kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        facts = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), **variables}
        command = [sys.executable, "-m", "cctrain", "compare", "runs", *flags]
        return subprocess.run(command, cwd=tmp_path, env=kept | facts, capture_output=True, text=True, check=False)

    return compare


def test_a_comparison_is_a_run_with_its_verdicts_and_figures(compared, tmp_path):
    done = compared("--track", "wandb", "--json")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr.startswith("wandb: no login here")
    assert len(done.stderr.splitlines()) == 1
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    found = json.loads(subprocess.check_output([BIN / "wandb", "leet", "inspect", "--summary", "--json", folder]))
    assert found["name"] == "compare llama8b_peft (measured and emulated)"
    assert found["summary"]["compare/keep_ratio"] == pytest.approx(json.loads(done.stdout)["keep_ratio"])
    assert {"figures/keep_ratio", "verdicts", "verdicts_emulated"} <= found["summary"].keys()
    tables = {
        path.name.partition("_0_")[0].partition("_1_")[0]: json.loads(path.read_text())
        for path in folder.glob("files/media/table/*.json")
    }
    assert [row[0] for row in tables["verdicts"]["data"]] == ["llama8b_peft: on / off"]
    assert [row[0] for row in tables["verdicts_emulated"]["data"]] == ["llama8b_peft: emulated b300 / off"]
