"""That a process ends with the one that started it, whenever that one is killed; and that a stop can wait."""

import os
import signal
import subprocess
import sys

import pytest

from cctrain.processes import STOPS, ignore_stops, stops_held

CHILD = """
import os, sys
from cctrain.processes import die_with_parent
die_with_parent({parent})
print("lives", flush=True)
"""


def ended_how(parent):
    child = [sys.executable, "-c", CHILD.format(parent=parent)]
    return subprocess.run(child, capture_output=True, text=True, check=False)


def test_a_parent_that_was_gone_before_the_child_could_ask_takes_it_along():
    """The child's parent is by then whoever takes in orphans, here this process, and not the one that it was told."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    done = ended_how(gone.pid)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


def test_a_child_of_a_living_parent_goes_on():
    assert ended_how(os.getpid()).stdout == "lives\n"
    assert ended_how(None).stdout == "lives\n"


@pytest.fixture
def handlers():
    """Of stops: a Ctrl-C as ever, the others alike; put back in the end."""
    before = {stop: signal.signal(stop, signal.default_int_handler) for stop in STOPS}
    yield lambda: {signal.getsignal(stop) for stop in STOPS}
    for stop, handler in before.items():
        signal.signal(stop, handler)


def held(work):
    """What `work`, which gets what lets go of stops, does while they are held."""
    with stops_held() as let_go:
        work(let_go)


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_waits_until_what_it_would_cut_short_is_done(handlers, stop):
    done = []

    def work(_):
        signal.raise_signal(stop)
        done.append("import")

    with pytest.raises(KeyboardInterrupt):
        held(work)
    assert done == ["import"]
    assert handlers() == {signal.default_int_handler}


def test_stops_may_be_let_go_of_before_the_end(handlers):
    def work(let_go):
        let_go()
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it waited")

    with pytest.raises(KeyboardInterrupt):
        held(work)


def test_a_stop_that_came_is_told_where_stops_are_let_go_of(handlers):
    told = []
    with stops_held() as let_go:
        signal.raise_signal(signal.SIGTERM)
        try:
            let_go()
        except KeyboardInterrupt:
            told.append("there")
    assert told == ["there"]


def test_a_process_that_is_ending_meanwhile_goes_on_to_ignore_stops(handlers):
    with stops_held():
        signal.raise_signal(signal.SIGINT)
        ignore_stops()
    assert handlers() == {signal.SIG_IGN}


def test_an_error_is_not_hidden_by_a_stop_that_waited(handlers):
    def work(_):
        signal.raise_signal(signal.SIGINT)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        held(work)
    assert handlers() == {signal.default_int_handler}


def test_what_is_ignored_stays_ignored(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stops_held():
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
