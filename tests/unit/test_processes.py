"""That a process ends with the one that started it, whenever that one is killed."""

import os
import signal
import subprocess
import sys

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
