"""How torchrun is started: the environment of its ranks, and a stop that comes just then."""

import subprocess
import sys

import pytest

from cctrain.launcher import NO_MULTICAST, launch, rank_environment


@pytest.fixture(autouse=True)
def multicast_is_unset(monkeypatch):
    for name in NO_MULTICAST:
        monkeypatch.delenv(name, raising=False)


def test_ranks_do_without_multicast_which_cc_takes_away_whatever_the_user_has_set(monkeypatch):
    assert NO_MULTICAST.items() <= rank_environment(is_cpu=False).items()
    for name, off in NO_MULTICAST.items():
        monkeypatch.setenv(name, {"0": "1", "1": "0"}[off])
    assert NO_MULTICAST.items() <= rank_environment(is_cpu=False).items()


STOPPED_WHILE_IT_STARTS = """
import os, pathlib, signal, sys
from cctrain.launcher import launch
signal.signal(signal.SIGTERM, signal.default_int_handler)
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))
try:
    launch(["sleep", "600"], pathlib.Path(sys.argv[1]), dict(os.environ))
except KeyboardInterrupt:
    try:
        os.waitpid(-1, 0)
    except ChildProcessError:
        print("stopped, and nothing left behind")
"""


def test_a_stop_while_torchrun_starts_is_not_lost(tmp_path):
    command = [sys.executable, "-c", STOPPED_WHILE_IT_STARTS, tmp_path / "log"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout == "stopped, and nothing left behind\n"


def test_torchrun_itself_can_be_stopped(tmp_path):
    blocked = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
    launch([sys.executable, "-c", blocked], tmp_path / "log", {}).wait(60)
    assert (tmp_path / "log").read_text() == "set()\n"
