"""How a rank ends that failed: what its last line says of the error, and that it waits for nobody."""

import json
import subprocess
import sys

import pytest

from cctrain.announcement import announce
from cctrain.worker import explained


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a shape does not fit\nand more of it", "RuntimeError: a shape does not fit"),
        (
            "backend='inductor' raised:\nAssertionError: so it is\n",
            "RuntimeError: backend='inductor' raised: AssertionError: so it is",
        ),
        ("the following:\n\n  Missing key", "RuntimeError: the following: Missing key"),
        ("nothing follows:", "RuntimeError: nothing follows:"),
        ("", "RuntimeError: no message"),
    ],
)
def test_a_rank_says_the_first_line_and_what_it_announces(text, message):
    assert explained(RuntimeError(text)) == {"kind": "RuntimeError", "message": message}


def test_out_of_memory_is_told_as_such_with_what_to_lower():
    found = explained(MemoryError())
    assert found["kind"] == "out_of_memory"
    assert "train.step_scheduler.local_batch_size" in found["message"]


FULL_DISK = """
import atexit, pathlib, resource, sys, types
from cctrain import in_job
run_root = pathlib.Path(sys.argv[1])

def train(config, samples):
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # from here on nothing more can be written
    raise RuntimeError("the disk is full")

sys.modules["cctrain.engines.filling"] = types.SimpleNamespace(train=train)
atexit.register(lambda: (run_root / "waited").touch())
job = in_job.Job(key="job", rank=1, world=2, local_rank=1)
in_job.run_rank(job, ["recipe=x", f"run_root={run_root}"])
"""


def test_a_rank_of_another_job_that_a_full_disk_ends_waits_in_no_exit_handler(tmp_path):
    for folder in ("samples", "logs"):
        (tmp_path / "run" / folder).mkdir(parents=True)
    config = {"engine": {"name": "filling"}, "tolls": None, "measure": {"crossings": False}, "train": {}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    announce(tmp_path / "job", {"run_dir": str(tmp_path / "run"), "master_addr": "node0", "master_port": 29500})
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], check=False, timeout=60)
    assert done.returncode == 4
    assert not (tmp_path / "waited").exists()
