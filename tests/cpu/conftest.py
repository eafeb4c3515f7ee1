"""The real command with real ranks and real AutoModel recipes, on this CPU.

A run costs 10 to 30 s, most of it AutoModel's import; so a fixture makes one run and many tests look at it.
"""

import contextlib
import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

_RUN_S = 150.0
"""Longest that any run here may take."""
_GONE_S = 60.0
"""Longest that processes may take to go once their run is over."""
_OUTSIDE = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "TORCHELASTIC_", "SLURM_"),
    *("HF_", "CCTRAIN_", "TORCHDYNAMO_", "WANDB_", "TRACKIO_"),
)
"""Prefixes of the variables of whatever job runs these tests."""


@dataclass
class Run:
    """A command under way, or finished."""

    process: subprocess.Popen[str]
    run_root: Path
    output: Path
    """Directory of what it printed."""

    def finish(self, timeout_s: float = _RUN_S) -> "Run":
        """Wait for its end; where it takes too long it is killed, and the test fails with what was printed."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            left = self.processes()
            self.kill()
            pytest.fail(f"no end in {timeout_s} s of {left}:\n{self.stderr}")
        return self

    def kill(self) -> None:
        """SIGKILL to all that is left of it: ranks and parents in sessions of their own do not end with the command."""
        begin = time.monotonic()
        while (left := self._processes()) and time.monotonic() - begin < _GONE_S:  # some may just be starting others
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()  # reaps it
            time.sleep(0.1)
        self.process.wait(_GONE_S)

    @property
    def code(self) -> int:
        return self.process.returncode

    @property
    def stdout(self) -> str:
        return (self.output / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.output / "stderr").read_text()

    @cached_property
    def last_line(self) -> dict[str, Any]:
        """The JSON object that ends stdout."""
        return json.loads(self.stdout.splitlines()[-1])

    @property
    def run_dirs(self) -> list[Path]:
        return sorted(path for path in self.run_root.glob("*") if path.is_dir())

    @property
    def run_dir(self) -> Path:
        (run_dir,) = self.run_dirs
        return run_dir

    @cached_property
    def record(self) -> dict[str, Any]:
        """run.json; raises where it is not strict JSON."""
        return read_strict_json(self.run_dir / "run.json")

    def pids(self) -> list[int]:
        """The ranks that have started, rank 0 first."""
        lines = [path.read_text().partition("\n")[0] for path in sorted(self.run_dir.glob("samples/rank*.jsonl"))]
        return [json.loads(line)["pid"] for line in lines if line]  # a rank's file is empty for a moment

    def wait_for_steps(self, seconds: float) -> None:
        """Wait until the ranks have trained for that long."""
        self.wait_until(lambda: bool(self.steps_older_than(seconds)), "no steps")

    def steps_older_than(self, seconds: float) -> set[int]:
        """Steps that by AutoModel's own log were finished that long ago."""
        latest = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
        steps = set()
        for log in self.run_root.glob("*/checkpoints/training.jsonl"):
            for line in log.read_text().splitlines():
                with contextlib.suppress(ValueError):  # it may be writing the last one
                    entry = json.loads(line)
                    if datetime.datetime.fromisoformat(entry["timestamp"]) < latest:
                        steps.add(entry["step"] + 1)
        return steps

    def wait_until(self, is_true: Callable[[], bool], problem: str, timeout_s: float = _RUN_S) -> None:
        """Poll; fails the test with what was printed where it takes too long or the run is over."""
        begin = time.monotonic()
        while not is_true():
            assert self.process.poll() is None, f"{problem}, and the run is over:\n{self.stderr}"
            assert time.monotonic() - begin < timeout_s, f"{problem} in {timeout_s} s:\n{self.stderr}"
            time.sleep(0.1)

    def processes(self) -> list[str]:
        """Command lines of this run's processes that still live, the command itself included."""
        return list(self._processes().values())

    def _processes(self) -> dict[int, str]:
        return {pid: line for pid, line in _command_lines() if str(self.run_root) in line}

    def wait_until_gone(self, timeout_s: float = _GONE_S) -> None:
        """Wait until no process of this run is left; fails the test where some never go."""
        begin = time.monotonic()
        while left := self.processes():
            assert time.monotonic() - begin < timeout_s, f"left after {timeout_s} s: {left}\n{self.stderr}"
            self.process.poll()  # reaps it
            time.sleep(0.1)


def read_strict_json(path: Path) -> dict[str, Any]:
    """JSON without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(), parse_constant=refuse)


def _command_lines() -> Iterator[tuple[int, str]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield int(path.parent.name), path.read_bytes().replace(b"\0", b" ").decode(errors="replace")


@pytest.fixture(scope="session")
def clean_environment(tmp_path_factory) -> dict[str, str]:
    """No job, no hub, no W&B and no GPU around the run, and nothing cached in the user's home.

    Without torch.compile a run starts five seconds sooner; the tests of the default recipe keep it.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_OUTSIDE)}
    fixed = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    fixed["WANDB_MODE"] = "disabled"
    return kept | fixed | {"HF_HOME": str(tmp_path_factory.mktemp("huggingface"))}


def free_ports(num: int) -> list[int]:
    """Ports that nobody has now, each another one."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("", 0))) for _ in range(num)]
        return [probe.getsockname()[1] for probe in probes]


def heed_stops() -> None:
    """Tests that a script starts in the background, or nohup, inherit ignored signals; a terminal hands down none."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def start_cctrain(tmp_path_factory, clean_environment) -> Iterator[Callable[..., Run]]:
    """Start the command with some overrides in an empty directory; whatever is left of it at the end is killed."""
    started: list[Run] = []

    def start(
        *overrides: str,
        run_root: Path | None = None,
        launcher: tuple[str, ...] = (),
        inside: tuple[str, ...] = (),
        **variables: str,
    ) -> Run:
        output, cwd = tmp_path_factory.mktemp("output"), tmp_path_factory.mktemp("cwd")
        root = run_root or output / "runs"
        with (output / "stdout").open("w") as stdout, (output / "stderr").open("w") as stderr:
            process = subprocess.Popen(
                [*inside, sys.executable, *launcher, "-m", "cctrain", *overrides, f"run_root={root}"],
                cwd=cwd,
                env={key: value for key, value in (clean_environment | variables).items() if value},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                text=True,
                preexec_fn=heed_stops,  # noqa: PLW1509 - the tests have one thread
            )
        started.append(Run(process, root, output))
        return started[-1]

    yield start
    for run in started:
        run.kill()


@pytest.fixture(scope="session")
def run_cctrain(start_cctrain) -> Callable[..., Run]:
    """Run the command with some overrides to its end."""

    def run(*overrides: str, **options: Any) -> Run:
        return start_cctrain(*overrides, **options).finish()

    return run


@pytest.fixture
def training():
    """Make a `regression.Training`; all are closed in the end."""
    from regression import Training  # and with it torch, which most tests here leave to the ranks

    made = []

    def make(**options):
        made.append(Training(**options))
        return made[-1]

    yield make
    for one in made:
        one.step.close()
