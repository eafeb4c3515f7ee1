"""Which environments mean that somebody else has launched us as a rank."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from cctrain import in_job
from cctrain.commands import train
from cctrain.errors import RequestError
from cctrain.in_job import detect
from cctrain.processes import this_process
from tests.stub_nvml import StubNvml

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node-1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "a/b c",
    "TORCHELASTIC_RESTART_COUNT": "0",
}
SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "8",
}


def test_outside_of_a_job_cctrain_launches_its_own_ranks():
    assert detect({"HOME": "/home/me", "PATH": "/bin"}) is None


def test_a_rank_of_torchrun_is_recognised():
    job = detect(TORCHRUN)
    assert (job.rank, job.world, job.local_rank) == (3, 8, 1)


def test_a_rank_of_srun_is_one_of_its_step_not_of_the_allocation():
    job = detect(SRUN)
    assert (job.rank, job.world, job.local_rank) == (5, 8, 1)


def test_a_single_task_of_srun_is_a_rank_too():
    job = detect(SRUN | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0"})
    assert (job.rank, job.world) == (0, 1)


def test_a_shell_of_srun_launches_its_own_ranks():
    alone = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0"}
    shell = {"SLURM_PTY_PORT": "34721", "SLURM_PTY_WIN_COL": "80"}
    assert detect(SRUN | alone | shell) is None
    assert detect(SRUN | shell).world == 8  # what srun starts from there inherits that


def test_a_batch_script_that_calls_cctrain_without_srun_launches_its_own_ranks():
    assert detect({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"}) is None


def test_torchrun_inside_srun_is_torchruns():
    assert detect(SRUN | TORCHRUN) == detect(TORCHRUN)


def test_the_parent_that_the_first_rank_starts_is_no_rank():
    assert detect(TORCHRUN | {"CCTRAIN_PARENT_OF_JOB": "{}"}) is None


def test_a_number_of_ranks_that_the_job_has_not_is_refused(tmp_path, monkeypatch):
    told = {"file": str(tmp_path / "said"), "world": 1, "pid": os.getppid()}
    monkeypatch.setenv("CCTRAIN_PARENT_OF_JOB", json.dumps(told))
    arguments = ["recipe=tiny_llama_peft", f"run_root={tmp_path}", "launch.nproc_per_node=2"]
    with pytest.raises(RequestError, match=r"launch.nproc_per_node=2: srun or torchrun has started 1 rank of this job"):
        train.run(arguments)


def test_ranks_of_one_job_meet_under_one_file_name():
    assert detect(TORCHRUN).key == detect(TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"}).key
    assert detect(SRUN).key == detect(SRUN | {"SLURM_PROCID": "0"}).key
    assert "/" not in detect(TORCHRUN).key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TORCHRUN, TORCHRUN | {"TORCHELASTIC_RUN_ID": "another"}),
        (TORCHRUN, TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "1"}),
        (SRUN, SRUN | {"SLURM_STEP_ID": "3"}),
        (SRUN, SRUN | {"SLURM_JOB_ID": "8"}),
    ],
)
def test_two_jobs_never_meet(one, other):
    assert detect(one).key != detect(other).key


def test_a_refusal_ends_the_ranks_that_wait(tmp_path):
    job = detect(TORCHRUN)
    refused = {**this_process(), "time": time.time(), "exit_code": 2}
    (tmp_path / job.key).write_text(json.dumps(refused))
    with pytest.raises(RequestError, match="first rank's request was refused"):
        in_job.run_rank(job, ["recipe=x", f"run_root={tmp_path}"])


WAITING_RANK = """
import sys
from cctrain import in_job
job = in_job.Job(key="job", rank=1, world=2, local_rank=1)
in_job.run_rank(job, ["recipe=x", "run_root=" + sys.argv[1]])
"""


def test_an_announcement_of_a_process_that_is_gone_is_an_earlier_jobs(tmp_path):
    """A rank that waits takes the refusal of the living first rank, not what a dead one left."""
    left = {**this_process(), "process_start": "another boot:1", "time": time.time(), "exit_code": 2}
    (tmp_path / "job").write_text(json.dumps(left))
    rank = subprocess.Popen([sys.executable, "-c", WAITING_RANK, tmp_path], stderr=subprocess.PIPE, text=True)
    with pytest.raises(subprocess.TimeoutExpired):
        rank.wait(0.6)  # it starts in 0.2 s
    (tmp_path / "job").write_text(json.dumps({**left, **this_process()}))
    _, stderr = rank.communicate(timeout=10)
    assert "first rank's request was refused" in stderr


def test_the_parent_knows_who_started_it_and_where_to_announce_its_run_directory(tmp_path):
    said = tmp_path / "said"
    environment = {"CCTRAIN_PARENT_OF_JOB": json.dumps({"file": str(said), "world": 8, "pid": os.getppid()})}
    starter = in_job.first_rank(environment)
    starter.announce(tmp_path / "run")
    assert said.read_text() == str(tmp_path / "run")
    assert (starter.world, starter.is_gone()) == (8, False)
    assert in_job.first_rank({}) is None


def test_a_first_rank_that_ended_is_told():
    gone = in_job.first_rank({"CCTRAIN_PARENT_OF_JOB": json.dumps({"file": "x", "world": 2, "pid": 0})})
    assert gone.is_gone()


# The machines of a job


OFF, ON = {"cc_feature": 0}, {"cc_feature": 1, "environment": 2, "ready": 1, "protected_gib": 80}
STUBS_OFF = {"mode": "off", "gpu": ["Stub GPU"]}


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    return StubNvml(tmp_path_factory.mktemp("stubs"))


@pytest.fixture
def train_on_another_machine(tmp_path, stubs):
    """Start the first rank of a second machine, whose driver behaves so, in a job that `first` announced. Its exit
    code, its stderr, and its samples; one that may train ends with 4, for want of an engine of that name."""

    def train(first, expected="auto", **how):
        run_dir = tmp_path / "run"
        for folder in ("samples", "logs"):
            (run_dir / folder).mkdir(parents=True, exist_ok=True)
        config = {"cc": {"mode": expected}, "engine": {"name": "none"}, "tolls": None, "measure": {"crossings": False}}
        (run_dir / "config.json").write_text(json.dumps({**config, "train": {}}))
        meeting = {"run_dir": str(run_dir), "master_addr": "node0", "master_port": 29500}
        announced = {"host": "node0/pid:[1]", "time": time.time(), **meeting, **first}
        job = TORCHRUN | {"LOCAL_RANK": "0"}
        (tmp_path / detect(job).key).write_text(json.dumps(announced))
        command = [sys.executable, "-m", "cctrain", "recipe=x", f"run_root={tmp_path}"]
        environment = stubs.environment(**how) | job
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)
        lines = (run_dir / "samples" / "rank3.jsonl").read_text().splitlines()
        return done.returncode, done.stderr, [json.loads(line) for line in lines]

    return train


def test_the_first_rank_of_each_machine_says_what_is_seen_there(train_on_another_machine):
    code, _, (start, error) = train_on_another_machine(STUBS_OFF, gpus=2, **OFF)
    assert start["seen"] == STUBS_OFF
    assert (code, error["kind"]) == (4, "ModuleNotFoundError")


@pytest.mark.parametrize(
    ("first", "expected", "how", "words"),
    [
        (STUBS_OFF, "auto", ON, "mode is on on {here} and off on node0, where the run began"),
        (STUBS_OFF, "off", ON, "{here} is not as node0, where the run began with mode off: cc=off, but this machine's"),
        (STUBS_OFF | {"mode": "on"}, "on", OFF, "began with mode on: cc=on, but this machine's mode is off (NVML's"),
        (STUBS_OFF | {"gpu": ["NVIDIA B300"]}, "auto", OFF, "gpu is Stub GPU on {here} and NVIDIA B300 on node0"),
    ],
)
def test_a_machine_unlike_the_first_ranks_trains_nothing_and_names_both(
    train_on_another_machine, first, expected, how, words
):
    code, stderr, (start, error) = train_on_another_machine(first, expected, **how)
    assert code == 3
    assert words.format(here=socket.gethostname()) in stderr
    assert start["seen"] == {"mode": "on" if how is ON else "off", "gpu": ["Stub GPU"]}
    assert words.format(here=socket.gethostname()) in error["message"]


def test_modes_that_are_not_looked_at_need_not_agree(train_on_another_machine):
    unknown = STUBS_OFF | {"mode": "unknown"}
    code, _, (start, _) = train_on_another_machine(unknown, "unverified", **ON)
    assert (code, start["seen"]) == (4, unknown)
