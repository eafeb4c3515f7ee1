"""A rank: how one ends that failed, what its last line says of the error, and with which variables it trains."""

import json
import os
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


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (MemoryError(), "host"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "host"),
        (RuntimeError("std::bad_alloc"), "host"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "GPU"),
        (RuntimeError("CUDA error: out of memory"), "GPU"),
        (RuntimeError("InductorError: OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"), "GPU"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "GPU"),
        (RuntimeError("NCCL error\nLast error:\nCuda failure 2 'out of memory'"), "GPU"),
    ],
)
def test_out_of_memory_is_told_as_such_with_what_to_lower(error, where):
    found = explained(error)
    assert found["kind"] == "out_of_memory"
    assert f"out of {where} memory" in found["message"]
    assert "train.step_scheduler.local_batch_size" in found["message"]


def test_adapters_that_match_no_layer_are_told_by_the_key_that_names_them():
    found = explained(ValueError("optimizer received no trainable parameters"))
    assert found["kind"] == "ValueError"
    assert "train.peft.target_modules may match no layer" in found["message"]


def test_what_a_network_may_lock_of_memory_keeps_its_own_words():
    text = "ncclSystemError: Call to ibv_create_cq failed with error Cannot allocate memory"
    assert explained(RuntimeError(text)) == {"kind": "RuntimeError", "message": f"RuntimeError: {text}"}


RANK_OF_ANOTHER_JOB = """
import atexit, os, pathlib, resource, sys, types
from cctrain import in_job
run_root = pathlib.Path(sys.argv[1])

def train(config, samples):
    {train}

sys.modules["cctrain.engines.fake"] = types.SimpleNamespace(train=train)
atexit.register(lambda: (run_root / "waited").touch())
job = in_job.Job(key="job", rank=1, world=2, local_rank=1)
in_job.run_rank(job, ["recipe=x", f"run_root={{run_root}}"])
"""


@pytest.fixture
def train_in_another_job(tmp_path):
    """Be a rank that somebody else started, with an engine that does what `train` says. Returns its exit code."""

    def start(train, **variables):
        for folder in ("samples", "logs"):
            (tmp_path / "run" / folder).mkdir(parents=True)
        recipe = {"dist_env": {"backend": "gloo"}}
        config = {"engine": {"name": "fake"}, "tolls": None, "measure": {"crossings": False}, "train": recipe}
        (tmp_path / "run" / "config.json").write_text(json.dumps(config))
        announce(tmp_path / "job", {"run_dir": str(tmp_path / "run"), "master_addr": "node0", "master_port": 29500})
        script = RANK_OF_ANOTHER_JOB.format(train=train)
        command = [sys.executable, "-c", script, tmp_path]
        return subprocess.run(command, check=False, env=os.environ | variables, timeout=60).returncode

    return start


def test_a_rank_of_another_job_that_a_full_disk_ends_waits_in_no_exit_handler(train_in_another_job, tmp_path):
    no_more_bytes = "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    assert train_in_another_job(f"{no_more_bytes}; raise RuntimeError('no space left')") == 4
    assert not (tmp_path / "waited").exists()


def test_a_rank_of_another_job_has_no_multicast_whatever_that_job_has_set(train_in_another_job, tmp_path):
    said = "return {'value': os.environ['NCCL_NVLS_ENABLE']}"
    assert train_in_another_job(said, NCCL_NVLS_ENABLE="1") == 0
    (end,) = (tmp_path / "run" / "samples" / "rank1.jsonl").read_text().splitlines()[1:]
    assert json.loads(end)["value"] == "0"
