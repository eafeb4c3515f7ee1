"""One run on several machines, each started with the same command.

Node 0 is a run like any other: it writes and follows the run directory, and announces it under the run root, which all
machines share. The others read the announcement there, start their part of the ranks, and tell of those that die; the
ranks of all machines read node 0's config.json and write their samples beside each other. Ranks that wait for others
do not notice that the network between them is gone, nor does torchrun for minutes: so the others ask after node 0.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cctrain import launcher
from cctrain.announcement import SEEN_VARIABLE, WAIT_S, announce, announced, check_alike, wait_for
from cctrain.config import LaunchConfig
from cctrain.errors import RequestError, RunError
from cctrain.follow import Follower
from cctrain.launcher import Rendezvous
from cctrain.samples import SampleFile

_OLDEST_S = 600.0
"""Of an announcement: as long as node 0's torchrun waits for the others."""
_POLL_S = 0.5
_LEAVE_S = 30.0
"""How long ranks here get to leave after node 0 has ended the run."""
_ASK_S = 5.0
"""How often to ask whether node 0 can be reached, as often as torchrun tells it that this machine lives."""
_LOST_S = 30.0
"""How long node 0 may be out of reach; TCP mends shorter gaps."""


class _LostError(Exception):
    """Node 0 cannot be reached."""


def rendezvous(launch: LaunchConfig) -> Rendezvous | None:
    """Where the machines of `launch` meet; None where this one is alone. Raises RequestError for an unknown host."""
    if launch.num_nodes == 1:
        return None
    assert launch.rdzv_endpoint
    host, _, port = launch.rdzv_endpoint.rpartition(":")
    try:
        address = str(socket.getaddrinfo(host, int(port), socket.AF_INET)[0][4][0])
    except OSError as error:
        raise RequestError(f"launch.rdzv_endpoint={launch.rdzv_endpoint}: no such host ({error})") from error
    is_host = launch.node_rank == 0 if launch.node_rank is not None else _is_own(address)
    # The name in the endpoint is one that every machine knows; this machine's own may mean loopback, or nothing.
    return Rendezvous(launch.num_nodes, launch.rdzv_endpoint, is_host, host if is_host else _address_towards(address))


def _is_own(address: str) -> bool:
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _address_towards(address: str) -> str:
    """This machine's address on the way to `address`. Nothing is sent."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 1))
        except OSError as error:
            raise RequestError(f"launch.rdzv_endpoint: there is no way to {address} ({error})") from error
        return str(probe.getsockname()[0])


def _file(run_root: Path, endpoint: str) -> Path:
    return run_root / f".nodes-{re.sub(r'[^A-Za-z0-9.]+', '_', endpoint)}"


@contextlib.contextmanager
def announcing(run_dir: Path, meeting: Rendezvous | None, facts: Mapping[str, Any]) -> Iterator[None]:
    """On node 0: have the other machines know the run directory and `facts`, until the run ends."""
    if meeting is None:
        yield
        return
    file = _file(run_dir.parent, meeting.endpoint)
    announce(file, {"run_dir": str(run_dir), **facts})
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def join(run_root: Path, meeting: Rendezvous, facts: Mapping[str, Any], environment: dict[str, str]) -> int:
    """On any other machine: train as part of node 0's run, which must agree with `facts`. Returns 0; raises where the
    run cannot be joined, or its ranks here fail."""
    file = _file(run_root, meeting.endpoint)
    found = wait_for(file, _OLDEST_S)
    if found is None:
        raise RequestError(
            f"waited {WAIT_S:g} s for node 0's {file}: run_root must be a directory that all nodes share"
        )
    run_dir = Path(found["run_dir"])
    if not (run_dir / "config.json").is_file():
        raise RequestError(f"node 0's run directory {run_dir} is not here: all nodes must see run_root at one path")
    check_alike(facts, found)
    environment = environment | {SEEN_VARIABLE: json.dumps(facts)}
    failure = _train(run_dir, file, meeting, int(facts["nproc_per_node"]), environment)
    line = {"run_dir": str(run_dir), "host": socket.gethostname(), "exit_code": RunError.exit_code if failure else 0}
    print(json.dumps(line | ({"error": failure} if failure else {})))  # noqa: T201 - the last line, as of every verb
    if failure:
        raise RunError(f"{failure}. Node 0 writes the record: {run_dir / 'run.json'}; logs: {run_dir / 'logs'}")
    return 0


def _train(run_dir: Path, file: Path, meeting: Rendezvous, num_ranks: int, environment: dict[str, str]) -> str | None:
    """Start the ranks of this machine and wait for their end. Returns why they failed, or None."""
    command = launcher.worker_command(num_ranks, run_dir, meeting)
    log = run_dir / "logs" / f"torchrun.{socket.gethostname()}.{meeting.address}.log"
    torchrun = launcher.launch(command, log, environment)
    follower = Follower(run_dir, 0.0, 0.0)
    why = "killed, from outside or for host memory"
    try:
        return _wait(torchrun, follower, file, run_dir, meeting)
    except KeyboardInterrupt:
        why = "stopped by Ctrl-C, SIGTERM or SIGHUP"
        return why
    except _LostError as lost:
        why = str(lost)
        return why
    finally:
        follower.end_ranks(torchrun)
        _tell_dead(follower, why)


def _wait(
    torchrun: subprocess.Popen[bytes], follower: Follower, file: Path, run_dir: Path, meeting: Rendezvous
) -> str | None:
    over_at, way = None, _Way(meeting.endpoint)
    while (code := torchrun.poll()) is None:
        way.check()
        _tell_dead(follower, "killed, from outside or for host memory")
        if (announced(file) or {}).get("run_dir") != str(run_dir):
            over_at = over_at or time.monotonic()
            if time.monotonic() - over_at > _LEAVE_S:
                return "node 0 has ended the run"
        else:
            over_at = None  # it could not be read for a moment
        time.sleep(_POLL_S)
    return f"the ranks of this machine ended with exit code {code}" if code else None


class _Way:
    """From this machine to node 0."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        host, _, port = endpoint.rpartition(":")
        self._address = (socket.gethostbyname(host), int(port))  # once: a name server that fails is no lost node
        self._asked_at = self._reached_at = time.monotonic()

    def check(self) -> None:
        """Raises _LostError where node 0 has been out of reach for too long."""
        if time.monotonic() - self._asked_at < _ASK_S:
            return
        self._asked_at = time.monotonic()
        try:
            socket.create_connection(self._address, timeout=_ASK_S).close()
        except ConnectionRefusedError:
            pass  # by a machine that is there
        except OSError as error:
            lost_s = time.monotonic() - self._reached_at
            if lost_s < _LOST_S:
                return
            raise _LostError(
                f"{socket.gethostname()} has not reached node 0 ({self._endpoint}) for {lost_s:.0f} s ({error}): the "
                "network between them or node 0 is gone"
            ) from error
        self._reached_at = time.monotonic()


def _tell_dead(follower: Follower, why: str) -> None:
    """A rank that was killed cannot say so, and node 0 does not see its process."""
    for number, progress in follower.dead_here().items():
        line = {"event": "error", "kind": "killed", "time": time.time(), "message": f"{why}, after {progress}"}
        path = follower.run_dir / "samples" / f"rank{number}.jsonl"
        with contextlib.suppress(OSError), contextlib.closing(SampleFile(path)) as samples:
            samples.write(line)
