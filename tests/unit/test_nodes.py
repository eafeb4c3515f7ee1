"""Several machines: which of them is node 0, by what its torchrun meets the others', and what is refused."""

import json
import socket
import threading
import time

import pytest

from cctrain import nodes
from cctrain.announcement import announce, announced
from cctrain.commands import train
from cctrain.config import LaunchConfig, LaunchKind
from cctrain.errors import PlatformError, RequestError
from cctrain.launcher import Rendezvous, worker_command

ENDPOINT = "127.0.0.1:29400"
ELSEWHERE = Rendezvous(num_nodes=2, endpoint="node0:29400", is_host=False, address="10.0.0.2")


def test_one_machine_meets_nobody():
    assert nodes.rendezvous(LaunchConfig()) is None
    assert "--standalone" in worker_command(2, "runs/RUN")


def test_the_machine_that_the_endpoint_names_is_node_0():
    assert nodes.rendezvous(LaunchConfig(num_nodes=2, rdzv_endpoint=ENDPOINT)).is_host
    assert not nodes.rendezvous(LaunchConfig(num_nodes=2, rdzv_endpoint="192.0.2.1:29400", node_rank=1)).is_host


def test_a_rank_given_by_the_user_wins():
    assert not nodes.rendezvous(LaunchConfig(num_nodes=2, rdzv_endpoint=ENDPOINT, node_rank=1)).is_host


def test_a_host_that_nobody_knows_is_refused():
    with pytest.raises(RequestError, match=r"rdzv_endpoint=nowhere\.invalid:1: no such host"):
        nodes.rendezvous(LaunchConfig(num_nodes=2, rdzv_endpoint="nowhere.invalid:1"))


def test_torchrun_is_told_where_to_meet_and_in_which_run():
    command = worker_command(8, "runs/RUN", ELSEWHERE)
    assert command[3:] == [
        *("--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=node0:29400", "--rdzv-id=RUN"),
        *("--rdzv-conf=is_host=0", "--local-addr=10.0.0.2", "--nproc-per-node=8", "-m", "cctrain.worker", "runs/RUN"),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_nodes": 2}, "launch.rdzv_endpoint=None: with launch.num_nodes=2 allowed is HOST:PORT"),
        ({"num_nodes": 2, "rdzv_endpoint": "node0"}, "allowed is HOST:PORT"),
        ({"num_nodes": 0}, "launch.num_nodes=0: allowed is 1 or more machines"),
        ({"rdzv_endpoint": ENDPOINT}, "is read with launch=torchrun and launch.num_nodes=2 or more only"),
        ({"num_nodes": 2, "rdzv_endpoint": ENDPOINT, "node_rank": 2}, "launch.node_rank=2: allowed is 0 to 1"),
        ({"kind": LaunchKind.slurm, "node_rank": 0}, "launch.node_rank=0 is read with launch=torchrun"),
        ({"options": ["--time=60"]}, "is read with launch=slurm, kubernetes or nemo_run only"),
        ({"kind": LaunchKind.slurm, "image": "cctrain"}, "is read with launch=kubernetes only"),
    ],
)
def test_a_launch_that_cannot_be_meant_is_refused(settings, message):
    with pytest.raises(RequestError, match=message):
        LaunchConfig(**settings)


def test_an_announcement_lasts_as_long_as_the_run(tmp_path):
    meeting = Rendezvous(2, "node0:29400", is_host=True, address="node0")
    with nodes.announcing(tmp_path / "run", meeting, {"mode": "off"}):
        (file,) = tmp_path.iterdir()
        assert announced(file)["run_dir"] == str(tmp_path / "run")
        assert announced(file)["mode"] == "off"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "off"}, "mode is off on {host} and on on {host}, where the run began"),
        ({"gpu": ["NVIDIA H100"]}, "gpu is NVIDIA H100 on {host} and NVIDIA H200 on {host}"),
        ({"gpu": []}, "gpu is none on {host} and NVIDIA H200 on"),
    ],
)
def test_a_machine_that_differs_from_node_0_does_not_join_it(tmp_path, change, message):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.json").write_text("{}")
    facts = {"mode": "on", "gpu": ["NVIDIA H200"], "nproc_per_node": 8}
    with (
        nodes.announcing(run_dir, ELSEWHERE, facts),
        pytest.raises(PlatformError, match=message.format(host=socket.gethostname())),
    ):
        nodes.join(tmp_path, ELSEWHERE, facts | change, {})


def test_a_run_directory_that_is_not_here_is_refused(tmp_path):
    with (
        nodes.announcing(tmp_path / "run", ELSEWHERE, {}),
        pytest.raises(RequestError, match="all nodes must see run_root at one path"),
    ):
        nodes.join(tmp_path, ELSEWHERE, {}, {})


def test_a_machine_that_is_early_waits_for_node_0(tmp_path):
    file = tmp_path / ".nodes-node0_29400"
    late = threading.Timer(0.3, announce, (file, {"run_dir": str(tmp_path / "run")}))
    late.start()
    begin = time.monotonic()
    with pytest.raises(RequestError, match="is not here"):
        nodes.join(tmp_path, ELSEWHERE, {}, {})
    assert time.monotonic() - begin > 0.25
    late.join()


def test_an_old_announcement_of_another_machine_is_an_earlier_runs(tmp_path, monkeypatch):
    file = tmp_path / ".nodes-node0_29400"
    announce(file, {"host": "elsewhere", "time": time.time() - 3600, "run_dir": str(tmp_path / "run")})
    monkeypatch.setattr("cctrain.announcement.WAIT_S", 0.2)
    with pytest.raises(RequestError, match="run_root must be a directory that all nodes share"):
        nodes.join(tmp_path, ELSEWHERE, {}, {})


def test_the_own_address_is_the_one_on_the_way_to_the_endpoint():
    meeting = nodes.rendezvous(LaunchConfig(num_nodes=2, rdzv_endpoint=ENDPOINT, node_rank=1))
    assert socket.inet_aton(meeting.address)[0] == 127


def test_a_cluster_can_be_looked_at_from_where_it_is_not_known(capsys):
    arguments = ("recipe=llama70b_peft", "weights=random", "data=synthetic", "launch.nproc_per_node=8", "dry_run=true")
    assert train.run([*arguments, "launch.num_nodes=2", "launch.rdzv_endpoint=nowhere.invalid:29500"]) == 0
    command = json.loads(capsys.readouterr().out.splitlines()[-1])["command"]
    assert {"--nnodes=2", "--rdzv-endpoint=nowhere.invalid:29500", "--nproc-per-node=8"} <= set(command)
