"""What is handed to Slurm, Kubernetes and NeMo-Run, shown and submitted."""

import json
import os
import sys

import pytest
import yaml

from cctrain.config import LaunchConfig, LaunchKind
from cctrain.errors import RequestError
from cctrain.submit import job, kubernetes, slurm
from cctrain.submit.submission import settings_of_the_job

SETTINGS = ["recipe=llama70b_peft", "launch=slurm", "launch.num_nodes=2", "dry_run=true", "train.optimizer.lr=1e-4"]


def launch_on(kind, **changes):
    return LaunchConfig(**{"kind": LaunchKind(kind), "num_nodes": 2, "nproc_per_node": 8, **changes})


def test_a_job_gets_every_setting_but_where_it_runs():
    assert settings_of_the_job(SETTINGS) == ["recipe=llama70b_peft", "train.optimizer.lr=1e-4"]


def test_slurm_is_asked_for_a_task_a_gpu_and_the_users_options_come_last():
    built = slurm.submission(launch_on("slurm", options=["--time=60"]), SETTINGS, is_cpu=False)
    script = built.command[-3]
    assert built.command[:-3] == [
        *("sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--time=60"),
    ]
    assert script.endswith("launch/slurm.sh")
    assert 'cctrain "$@"' in built.text
    assert built.environment == {"CCTRAIN_PYTHON": sys.executable}


def test_a_cpu_recipe_asks_for_no_gpu():
    assert not [word for word in slurm.submission(launch_on("slurm"), [], is_cpu=True).command if "gpu" in word]
    cpu = kubernetes.submission(launch_on("kubernetes", image="cctrain:1"), [], is_cpu=True)
    assert "resourcesPerNode" not in yaml.safe_load(cpu.stdin)["spec"]["trainer"]


def test_the_manifest_is_the_readable_one_with_the_users_numbers():
    built = kubernetes.submission(launch_on("kubernetes", image="cctrain:1", num_nodes=4), SETTINGS, is_cpu=False)
    assert yaml.safe_load(built.stdin)["spec"]["trainer"] == {
        "image": "cctrain:1",
        "numNodes": 4,
        "numProcPerNode": 8,
        "resourcesPerNode": {"limits": {"nvidia.com/gpu": 8}},
        "command": ["torchrun", "-m", "cctrain"],
        "args": ["recipe=llama70b_peft", "train.optimizer.lr=1e-4", "run_root=/shared/runs"],
    }


def test_a_run_root_of_the_users_own_is_kept():
    built = kubernetes.submission(launch_on("kubernetes", image="x"), ["recipe=x", "run_root=/data"], is_cpu=False)
    assert yaml.safe_load(built.stdin)["spec"]["trainer"]["args"] == ["recipe=x", "run_root=/data"]


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (launch_on("slurm", nproc_per_node=None), "launch=slurm needs launch.nproc_per_node"),
        (launch_on("kubernetes"), "launch=kubernetes needs launch.image=IMAGE"),
    ],
)
def test_a_job_that_lacks_something_is_refused(launch, message):
    with pytest.raises(RequestError, match=message):
        job.submit(launch, [], is_cpu=False, dry_run=True)


def test_a_dry_run_shows_the_job_and_submits_nothing(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert job.submit(launch_on("slurm"), SETTINGS, is_cpu=False, dry_run=True) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("# sbatch --parsable --nodes=2")
    assert "#SBATCH --job-name=cctrain" in shown
    assert json.loads(shown.splitlines()[-1])["command"][0] == "sbatch"


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A command of that name which does as it is told."""

    def put(body):
        (tmp_path / "sbatch").write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "sbatch").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin:/bin")

    return put


def test_the_schedulers_name_for_the_job_is_the_last_line(sbatch, capsys):
    sbatch("echo 42")
    job.submit(launch_on("slurm"), SETTINGS, is_cpu=False, dry_run=False)
    assert json.loads(capsys.readouterr().out) == {"submitted": "slurm", "job": "42"}


def test_a_scheduler_that_refuses_is_quoted(sbatch):
    sbatch("echo invalid partition >&2; exit 1")
    with pytest.raises(RequestError, match="sbatch refused the job: invalid partition"):
        job.submit(launch_on("slurm"), SETTINGS, is_cpu=False, dry_run=False)


def test_a_scheduler_that_is_not_here_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RequestError, match="there is no sbatch here"):
        job.submit(launch_on("slurm"), SETTINGS, is_cpu=False, dry_run=False)
