"""The dashboard's form is pinned: what would be saved to W&B is tests/data/dashboard.json.

After a wanted change: CCTRAIN_NEW_GOLDEN=1 pytest tests/unit/test_dashboard.py, and look at what git says changed.
"""

import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cctrain.commands import dashboard as verb
from cctrain.errors import RequestError
from cctrain.sinks import dashboard

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of wandb-workspaces itself
GOLDEN = Path(__file__).parents[1] / "data" / "dashboard.json"


@pytest.fixture(autouse=True)
def no_login(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def normalised(node):
    """Without what differs from one call to the next; a table's query, W&B's own and long, is its table's name."""
    if isinstance(node, dict):
        if "panel2Config" in node:
            return {"table": re.findall(r'"val": "(\w+)"', json.dumps(node))}
        return {key: "ID" if key in ("__id__", "id", "ref") else normalised(value) for key, value in node.items()}
    return [normalised(item) for item in node] if isinstance(node, list) else node


def test_its_form_is_pinned():
    found = normalised(dashboard.build("cctrain", None).to_json())
    if os.environ.get("CCTRAIN_NEW_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(GOLDEN.read_text())


def test_it_asks_the_four_questions_of_keys_that_runs_log():
    text = json.dumps(dashboard.build("cctrain", None).to_json())
    for title in ("Keep ratio by recipe", "Step time by mode", "Loss against batch", "Tolls"):
        assert text.count(f'"{title}"') >= 2, "in the workspace and in the Report"
    for key in ("keep_ratio/value", "train/step_time_s", "summary/tokens_per_step", "keep_ratio/loss", "verdicts"):
        assert key in text


def test_without_a_login_it_is_a_file_and_says_so(tmp_path, capsys):
    assert verb.run(["--project", "mine"]) == 0
    printed = capsys.readouterr()
    last = json.loads(printed.out.splitlines()[-1])
    assert last == {
        "file": "cctrain-dashboard.json", "workspace": None, "report": None, "error": None, "exit_code": 0
    }  # fmt: skip
    assert set(json.loads((tmp_path / "cctrain-dashboard.json").read_text())) == {"workspace", "report"}
    assert "no login" in printed.err


class Refusing(BaseHTTPRequestHandler):
    """A W&B server that knows nobody."""

    def do_POST(self):
        self.send_error(401)

    def log_message(self, *_):
        pass


@pytest.fixture
def refusing():
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_that_says_no_costs_exit_4_and_the_file_is_written_all_the_same(
    monkeypatch, refusing, tmp_path, capsys
):
    for name, value in (("MODE", "online"), ("API_KEY", "a" * 40), ("BASE_URL", refusing)):
        monkeypatch.setenv(f"WANDB_{name}", value)
    import wandb

    wandb.teardown()
    try:
        assert verb.run(["--out", "own.json"]) == 4
    finally:
        wandb.teardown()
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["exit_code"] == 4
    assert "W&B did not take the dashboard" in printed.err
    assert (tmp_path / "own.json").exists()
    assert "a" * 40 not in printed.err + printed.out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--project", "a/b"], "--project a/b: allowed are"),
        (["--out", "/no/such/place.json"], "--out /no/such/place.json: no file can be written"),
        (["--projct", "x"], "Did you mean --project"),
    ],
)
def test_wrong_flags_are_named(flags, said):
    with pytest.raises(RequestError, match="dashboard") as refused:
        verb.run(flags)
    assert said in str(refused.value)


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(dashboard, "PACKAGE", "no_such_package")
    with pytest.raises(RequestError, match=re.escape("pip install 'cctrain[dashboard]'")):
        verb.run([])
