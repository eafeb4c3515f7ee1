"""torchrun as a subprocess: its command, its environment, its start."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cctrain.processes import STOPS, die_with_parent

NO_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
"""CC turns NVLink multicast off; with CC off, what is to be compared with it does without as well."""
_RANK_DEFAULTS = {
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # as in the seed post's runs
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the driver's order, by which GPUs are told, measured and attested
    "TOKENIZERS_PARALLELISM": "false",
    "TRITON_CACHE_AUTOTUNING": "1",  # the same kernels in every run of a shape, and a minute less of the next start
    "NCCL_DEBUG": "INFO",  # says once for each communicator whether it knows of CC
    "NCCL_DEBUG_SUBSYS": "INIT",
}


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the torchrun of each of several machines meets the others' (c10d)."""

    num_nodes: int
    endpoint: str
    is_host: bool
    """Whether the endpoint is this machine's."""
    address: str
    """By which the others reach this machine."""

    def arguments(self, run_id: str) -> list[str]:
        """Of torchrun. `run_id` keeps a latecomer of an earlier run out."""
        return [
            f"--nnodes={self.num_nodes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={self.endpoint}",
            f"--rdzv-id={run_id}",
            f"--rdzv-conf=is_host={int(self.is_host)}",
            f"--local-addr={self.address}",
        ]


def worker_command(nproc_per_node: int, run_dir: Path | str, rendezvous: Rendezvous | None = None) -> list[str]:
    """The argv we exec. Pure: `dry_run=true` prints it and the tests compare it."""
    where = rendezvous.arguments(Path(run_dir).name) if rendezvous else ["--standalone"]
    return _torchrun(where, nproc_per_node, "cctrain.worker", str(run_dir))


def torchrun_command(nproc_per_node: int, module: str, *arguments: str) -> list[str]:
    """The argv that starts ranks of `module` on this machine."""
    return _torchrun(["--standalone"], nproc_per_node, module, *arguments)


def _torchrun(where: list[str], nproc_per_node: int, module: str, *arguments: str) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", *where, f"--nproc-per-node={nproc_per_node}"]
    return [*torchrun, "-m", module, *arguments]


def rank_environment(*, is_cpu: bool) -> dict[str, str]:
    """The ranks' environment: this one's, with defaults that the user's own settings win over, and without multicast
    whatever they say."""
    environment = {**_RANK_DEFAULTS, **os.environ, **NO_MULTICAST}
    if is_cpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
        environment.setdefault("OMP_NUM_THREADS", "1")
    return environment


def first_to_fail(log: Path) -> int | None:
    """The rank that torchrun's log names as the root cause: the others ended because it had told them to."""
    if not log.is_file():
        return None
    found = re.search(r"Root Cause.*?\brank\s*:\s*(\d+)", log.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    return int(found[1]) if found else None


def launch(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start torchrun in a session of its own (a Ctrl-C reaches us, not it), ending when we do. A stop that comes while
    it starts is raised once it can be ended."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # raised in the middle of a fork, Python would lose it
    process = None
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=partial(_begin, os.getpid()),  # noqa: PLW1509 - this process has one thread when it launches
            )
    finally:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        except KeyboardInterrupt:
            if process:
                process.kill()
                process.wait()
            raise
    return process


def _begin(parent: int) -> None:
    """In torchrun's process, before it is torchrun."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    die_with_parent(parent)
