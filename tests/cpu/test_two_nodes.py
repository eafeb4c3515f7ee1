"""One run on two machines: the same command twice, in network namespaces with host names of their own.

Where namespaces are not permitted, two "machines" of one host, told apart by launch.node_rank, show the good case.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cpu.conftest import free_ports

TINY = ("recipe=tiny_llama_peft", "launch.num_nodes=2", "launch.nproc_per_node=1")
SHORT = ("data=synthetic", "data.seq_len=64", "measure.warmup=2", "measure.steps=4")
ENDLESS = ("data=recipe", "measure.warmup=5", "measure.steps=5000")


@dataclass(frozen=True)
class Node:
    """A machine of its own, as far as the network knows."""

    name: str
    address: str

    @property
    def inside(self) -> tuple[str, ...]:
        """What runs a command there."""
        rename = f'hostname {self.name} && exec "$@"'
        return ("ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", rename, "sh")

    def kill_everything(self) -> None:
        """SIGKILL to every process on it, as a power cut would."""
        pids = subprocess.run(["ip", "netns", "pids", self.name], check=True, capture_output=True, text=True).stdout
        for pid in pids.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def network():
    """Two nodes and a cable between them, or why there can be none."""
    tag = secrets.token_hex(2)
    pair = [Node(f"node{number}-{tag}", f"10.77.0.{number + 1}") for number in (0, 1)]
    try:
        for node in pair:
            _ip("netns", "add", node.name)
        _ip("link", "add", "eth0", "netns", pair[0].name, "type", "veth", "peer", "name", "eth0", "netns", pair[1].name)
        for node in pair:
            _ip("-n", node.name, "address", "add", f"{node.address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", node.name, "link", "set", link, "up")
        yield pair
    except (OSError, subprocess.CalledProcessError) as error:
        yield f"needs the right to make network namespaces: {error}"
    finally:
        for node in pair:
            with contextlib.suppress(OSError):  # there may be no `ip`
                subprocess.run(["ip", "netns", "delete", node.name], check=False, capture_output=True)


@pytest.fixture
def nodes(network):
    if isinstance(network, str):
        pytest.skip(network)
    return network


@pytest.fixture
def start_both(start_cctrain, nodes, tmp_path):
    """Start the same command on both nodes, with one run root."""

    def start(*settings):
        where = f"launch.rdzv_endpoint={nodes[0].address}:29400"
        return [
            start_cctrain(
                *TINY, where, *settings, run_root=tmp_path / "runs", inside=node.inside, GLOO_SOCKET_IFNAME="eth0"
            )
            for node in nodes
        ]

    return start


@pytest.fixture
def cut(nodes):
    """Cut the cable between the machines: with one end down neither hears the other. It is mended after the test."""
    yield lambda: _ip("-n", nodes[1].name, "link", "set", "eth0", "down")
    _ip("-n", nodes[1].name, "link", "set", "eth0", "up")


def assert_one_complete_record(first, second):
    assert (first.code, second.code) == (0, 0), first.stderr + second.stderr
    assert first.record["status"] == "complete"
    assert first.record["identity"]["layout"]["world"] == first.record["identity"]["num_gpus"] == 2
    assert [len(step["rank_step_time_s"]) for step in first.record["steps"]] == [2] * 6
    assert {step["padded_tokens"] for step in first.record["steps"]} == {4 * 64}
    assert first.last_line["run_dir"] == second.last_line["run_dir"] == str(first.run_dir)
    assert [path.name for path in first.run_root.iterdir()] == [first.run_dir.name]  # nothing is left beside it
    assert first.processes() == []


def test_the_same_command_on_two_machines_gives_one_record(start_both):
    first, second = [run.finish() for run in start_both(*SHORT)]
    assert_one_complete_record(first, second)
    starts = [json.loads(file.read_text().partition("\n")[0]) for file in first.run_dir.glob("samples/rank*.jsonl")]
    assert len({start["host"] for start in starts}) == 2


def test_two_machines_of_one_host_are_told_apart_by_their_rank(network, start_cctrain, tmp_path):
    if not isinstance(network, str):
        pytest.skip("needed only where there can be no network namespaces")
    where = f"launch.rdzv_endpoint=127.0.0.1:{free_ports(1)[0]}"
    runs = [
        start_cctrain(*TINY, *SHORT, where, f"launch.node_rank={rank}", run_root=tmp_path / "runs") for rank in (1, 0)
    ]
    second, first = [run.finish() for run in runs]
    assert_one_complete_record(first, second)


def rank_of(run, node: Node) -> tuple[int, int]:
    """Number and pid of the rank on `node`."""
    for file in run.run_dir.glob("samples/rank*.jsonl"):
        start = json.loads(Path(file).read_text().partition("\n")[0])
        if start["host"].startswith(node.name):
            return start["rank"], start["pid"]
    raise AssertionError(f"no rank on {node.name}")


def assert_partial(first, second, because):
    assert (first.finish().code, second.finish().code) in ((4, 4), (4, -signal.SIGKILL)), first.stderr + second.stderr
    assert first.record["status"] == "partial"
    assert because in first.record["failure"]
    assert first.record["steps"]
    assert first.processes() == []
    assert [path.name for path in first.run_root.iterdir()] == [first.run_dir.name]


def test_a_rank_killed_on_the_other_machine_ends_the_run_and_is_named(start_both, nodes):
    first, second = start_both(*ENDLESS)
    first.wait_for_steps(4)
    rank, pid = rank_of(first, nodes[1])
    os.kill(pid, signal.SIGKILL)
    first.wait_until_gone()
    assert_partial(first, second, because=f"rank {rank}: killed, from outside or for host memory, after step ")


def test_a_machine_that_dies_ends_the_run_as_partial(start_both, nodes):
    first, second = start_both(*ENDLESS)
    first.wait_for_steps(4)
    rank, _ = rank_of(first, nodes[1])
    nodes[1].kill_everything()
    first.wait_until_gone()
    assert_partial(first, second, because=f"rank {rank} on {nodes[1].name} fell silent after step ")


def test_a_cable_that_is_cut_ends_the_run_as_partial_on_both_sides(start_both, nodes, cut):
    first, second = start_both(*ENDLESS)
    first.wait_for_steps(4)
    rank, _ = rank_of(first, nodes[1])
    cut()
    first.wait_until_gone(90)
    why = f"{nodes[1].name} has not reached node 0 ({nodes[0].address}:29400) for "
    assert_partial(first, second, because=f"rank {rank}: {why}")
    assert "the network between them or node 0 is gone, after step " in first.record["failure"]
    assert why in second.last_line["error"]


def test_ctrl_c_on_node_0_ends_the_other_machine_too(start_both):
    first, second = start_both(*ENDLESS)
    first.wait_for_steps(4)
    first.process.send_signal(signal.SIGINT)
    first.wait_until_gone()
    assert_partial(first, second, because="stopped by Ctrl-C")
