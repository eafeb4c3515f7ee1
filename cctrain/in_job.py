"""cctrain started as a rank of somebody else's job: torchrun or srun has launched already, so we do not again.

The first rank runs the parent (`python -m cctrain ...`) as a child process, which composes, writes the run directory
and follows it; every rank waits for its config.json and then trains. Ranks find the run directory through a file under
the run root named after the job. The parent has looked at the first rank's machine only, so the first rank of each
machine looks at its own.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cctrain.announcement import SEEN_VARIABLE, WAIT_S, announce, check_alike, wait_for
from cctrain.config import CcMode
from cctrain.errors import PlatformError, RequestError, RunError
from cctrain.launcher import rank_environment
from cctrain.platform import cc, gpu
from cctrain.processes import host_name, leave_if_failed, this_process
from cctrain.request.recipe import is_cpu_recipe
from cctrain.request.run_root import plain_path
from cctrain.rundir import write_text

_PARENT_OF = "CCTRAIN_PARENT_OF_JOB"
"""Set for the child, a JSON object: the `file` to write the run directory's name to, the job's `world` of ranks, and
the first rank's `pid`."""
_REFUSAL_S = 10.0
"""How long a refused request is announced to ranks that are slower to start; torchrun ends the wait by itself."""
_OLDEST_S = 300.0
"""An announcement older than this process by more is an earlier job's."""


@dataclass(frozen=True, slots=True)
class Job:
    """The job that this process is a rank of."""

    key: str
    rank: int
    world: int
    local_rank: int


def detect(environment: Mapping[str, str]) -> Job | None:
    """The job this process is a rank of, or None where cctrain should launch its own ranks."""
    if _PARENT_OF in environment:
        return None
    if environment.get("RANK"):
        names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
        key = "-".join(environment[name] for name in names if name in environment)
        rank, world = int(environment["RANK"]), int(environment.get("WORLD_SIZE") or "1")
        return Job(_file_name(key or "job"), rank, world, int(environment.get("LOCAL_RANK") or "0"))
    if environment.get("SLURM_PROCID"):
        world = int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or "1")
        if world == 1 and "SLURM_PTY_PORT" in environment:
            return None  # a shell of srun --pty, from which cctrain is called as from any
        if "SLURM_STEP_ID" not in environment and "SLURM_JOB_ID" in environment:
            return None  # an sbatch script that calls cctrain without srun
        key = f"slurm-{environment.get('SLURM_JOB_ID', '0')}.{environment.get('SLURM_STEP_ID', '0')}"
        key += f".{environment.get('SLURM_RESTART_COUNT', '0')}"
        return Job(_file_name(key), int(environment["SLURM_PROCID"]), world, int(environment.get("SLURM_LOCALID", "0")))
    return None


def _file_name(key: str) -> str:
    return ".job-" + re.sub(r"[^A-Za-z0-9.]+", "_", key)


@dataclass(frozen=True, slots=True)
class FirstRank:
    """What the first rank's child, the parent of the run, knows of it."""

    file: str
    world: int
    pid: int

    def announce(self, run_dir: Path) -> None:
        """Tell the waiting first rank where the run directory is."""
        write_text(Path(self.file), str(run_dir))

    def is_gone(self) -> bool:
        """Whether it ended: it is no longer the process that started this one."""
        return os.getppid() != self.pid


def first_rank(environment: Mapping[str, str]) -> FirstRank | None:
    """In the first rank's child: who started it. None elsewhere."""
    value = environment.get(_PARENT_OF)
    return FirstRank(**json.loads(value)) if value else None


def run_rank(job: Job, arguments: list[str]) -> int:
    """Be rank `job.rank`: wait for the run directory, then train. Returns the exit code."""
    run_root = _run_root(arguments)
    run_root.mkdir(parents=True, exist_ok=True)
    pointer = run_root / job.key
    if job.rank:
        return leave_if_failed(_train(job, _wait_for_run(pointer)))
    pointer.unlink(missing_ok=True)
    try:
        code = _first_rank(job, arguments, pointer)
    finally:
        pointer.unlink(missing_ok=True)
    return leave_if_failed(code)


def _run_root(arguments: list[str]) -> Path:
    values = [argument.partition("=")[2] for argument in arguments if argument.startswith("run_root=")]
    return plain_path(values[-1] if values else "runs", "inside a job of torchrun or srun")


def _first_rank(job: Job, arguments: list[str], pointer: Path) -> int:
    said = pointer.with_name(f"{pointer.name}.parent")
    said.unlink(missing_ok=True)
    parent = subprocess.Popen(
        [sys.executable, "-m", "cctrain", *arguments],
        env={
            **os.environ,
            _PARENT_OF: json.dumps({"file": str(said.resolve()), "world": job.world, "pid": os.getpid()}),
        },
        start_new_session=True,  # it outlives a first rank that is killed, and writes the record
    )
    try:
        while not said.exists() and parent.poll() is None:
            time.sleep(0.05)
        if not said.exists():
            announce(pointer, {"exit_code": parent.returncode})
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(parent.returncode))
            time.sleep(_REFUSAL_S if job.world > 1 else 0)
            return parent.returncode
        run_dir = Path(said.read_text(encoding="utf-8"))
        record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
        announcement = {
            **this_process(),
            "master_addr": socket.gethostname(),
            "run_dir": str(run_dir),
            "master_port": _free_port(),
            "mode": record["mode"],
            "gpu": record["identity"]["gpu"],
        }
    finally:
        said.unlink(missing_ok=True)
    announce(pointer, announcement)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _train(job, announcement)
    return parent.wait()


def _end_with(parent: subprocess.Popen[bytes]) -> None:
    """A killed parent ends its ranks; one that finished leaves them to their own end."""
    if parent.wait() < 0:
        os._exit(RunError.exit_code)


def _wait_for_run(pointer: Path) -> dict[str, Any]:
    """The first rank's announcement. Raises RequestError where none comes, or its request was refused."""
    announcement = wait_for(pointer, _OLDEST_S)
    if announcement is None:
        raise RequestError(
            f"waited {WAIT_S:g} s for the first rank's run directory ({pointer}): run_root must be a directory that "
            "all nodes share"
        )
    if "exit_code" in announcement:
        raise RequestError("the first rank's request was refused; its message says why")
    return announcement


def _train(job: Job, announcement: Mapping[str, Any]) -> int:
    from cctrain import worker

    run_dir = Path(announcement["run_dir"])
    config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    is_cpu = is_cpu_recipe(config["train"])
    os.environ.setdefault("RANK", str(job.rank))
    os.environ.setdefault("WORLD_SIZE", str(job.world))
    os.environ.setdefault("LOCAL_RANK", str(job.local_rank))
    os.environ.setdefault("MASTER_ADDR", announcement["master_addr"])
    os.environ.setdefault("MASTER_PORT", str(announcement["master_port"]))
    if job.local_rank == 0:
        try:
            _look(CcMode(config["cc"]["mode"]), announcement, is_cpu=is_cpu)
        except PlatformError as error:
            worker.begin(run_dir).write(worker.last_words(error))
            raise
    os.environ.update(rank_environment(is_cpu=is_cpu))
    return RunError.exit_code if worker.main(run_dir) else 0


def _look(expected: CcMode, announcement: Mapping[str, Any], *, is_cpu: bool) -> None:
    """Observe this machine for its ranks' samples. Raises PlatformError where it is not as `expected`, or not as the
    first rank's."""
    gpus = gpu.observe()
    seen = {"mode": cc.seen_mode(gpus.cc), "gpu": gpu.models(gpus, is_cpu=is_cpu)}
    try:
        seen["mode"] = cc.observed_mode(expected, gpus.cc)
    except PlatformError as error:
        first = f"{host_name(announcement)}, where the run began with mode {announcement['mode']}"
        raise PlatformError(f"{host_name(this_process())} is not as {first}: {error}") from error
    finally:
        os.environ[SEEN_VARIABLE] = json.dumps(seen)
    check_alike(seen, announcement)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
