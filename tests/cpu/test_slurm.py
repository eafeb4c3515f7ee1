"""The sbatch script, and launch=slurm: submitted to a real Slurm of two nodes on this machine, run and collected."""

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.cpu.conftest import free_ports

SCRIPT = Path(__file__).parents[2] / "launch" / "slurm.sh"
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
SETTINGS = (
    *("recipe=tiny_llama_peft", "data=synthetic", "data.seq_len=64", "measure.warmup=2", "measure.steps=4"),
    *("launch=slurm", "launch.num_nodes=2", "launch.nproc_per_node=1"),
)
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]},{ports[2]}] CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=10 State=UP
"""


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed (Debian package shellcheck)")
def test_the_script_is_sound():
    subprocess.run(["shellcheck", str(SCRIPT)], check=True)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The configuration file of a Slurm that runs."""
    missing = [name for name in DAEMONS if not shutil.which(name)]
    if missing or Path("/proc/self/loginuid").stat().st_uid != 0:
        pytest.skip(f"needs root and Slurm (Debian packages slurm-wlm, munge); missing: {', '.join(missing) or 'root'}")
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    for name in ("state", "spool.n1", "spool.n2"):
        (folder / name).mkdir()
    configuration = folder / "slurm.conf"
    host = socket.gethostname()
    configuration.write_text(CONFIGURATION.format(host=host, folder=folder, ports=free_ports(3)))
    key = folder / "munge.key"
    key.write_bytes(bytes(range(256)) * 4)
    key.chmod(0o400)
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    commands = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
        ["slurmctld", "-D", "-f", str(configuration)],
        ["slurmd", "-D", "-f", str(configuration), "-N", "n1"],
        ["slurmd", "-D", "-f", str(configuration), "-N", "n2"],
    ]
    daemons = []
    try:
        for command in commands:
            with (folder / f"{len(daemons)}.log").open("w") as log:
                daemons.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL))
            time.sleep(1)
        _wait_until(lambda: _idle_nodes(configuration) == 2, 30, folder)
        yield configuration
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _wait_until(is_true, seconds, folder):
    begin = time.monotonic()
    while not is_true():
        if time.monotonic() - begin > seconds:
            pytest.fail("".join(f"== {log}\n{log.read_text()[-2000:]}" for log in sorted(folder.glob("*.log"))))
        time.sleep(0.5)


def _ask(configuration, *command):
    environment = {"SLURM_CONF": str(configuration), "PATH": "/usr/bin:/bin:/usr/sbin"}
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True).stdout


def _idle_nodes(configuration):
    return _ask(configuration, "sinfo", "--noheader", "--Node", "--format=%T").split().count("idle")


def test_a_submitted_job_trains_on_two_nodes_and_leaves_one_record(run_cctrain, slurm):
    submitted = run_cctrain(*SETTINGS, f'launch.options=["--output={slurm.parent}/job.out"]', SLURM_CONF=str(slurm))
    assert submitted.code == 0, submitted.stderr
    job = submitted.last_line["job"]
    _wait_until(
        lambda: (
            "JobState=RUN" not in (state := _ask(slurm, "scontrol", "show", "job", job))
            and "JobState=PEND" not in state
        ),
        120,
        slurm.parent,
    )
    output = (slurm.parent / "job.out").read_text()
    assert "JobState=COMPLETED" in _ask(slurm, "scontrol", "show", "job", job), output
    assert submitted.record["status"] == "complete"
    assert [len(step["rank_step_time_s"]) for step in submitted.record["steps"]] == [2] * 6
    assert json.loads(output.splitlines()[-1])["run_dir"] == str(submitted.run_dir)
