"""NVML for machines without a GPU: nvml.c, built where a test wants it and steered by environment variables. Beside it,
for the one question asked of the CUDA driver, cuda.c."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, GPU_IS_LOST, UNKNOWN = 3, 4, 9, 15, 999
_SONAMES = {"nvml": "libnvidia-ml.so.1", "cuda": "libcuda.so.1"}


class StubNvml:
    """Builds of the stubs under `root`, one for each set of functions that they lack."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def environment(
        self, *, lacks: Iterable[str] = (), fails: dict[str, int] | None = None, **settings: int
    ) -> dict[str, str]:
        """This environment with what makes a new process find the stub, and without CUDA_VISIBLE_DEVICES.

        `lacks` are functions that the driver does not have, `fails` maps "function" or "function/gpu" to an NVML error
        code, and `settings` are the variables of nvml.c: `gpus=2` is STUB_NVML_GPUS=2.
        """
        outside = ("STUB_NVML_", "CUDA_VISIBLE_DEVICES")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(outside)}
        failing = " ".join(f"{key}={code}" for key, code in (fails or {}).items())
        variables = {f"STUB_NVML_{name.upper()}": str(value) for name, value in settings.items()}
        return {**kept, **self._found("nvml", kept, sorted(lacks)), "STUB_NVML_FAIL": failing, **variables}

    def with_cuda(self, environment: dict[str, str], **settings: str) -> dict[str, str]:
        """The same with a CUDA driver; `settings` are the variables of cuda.c: `multicast="10"` is two GPUs."""
        variables = {f"STUB_CUDA_{name.upper()}": value for name, value in settings.items()}
        return {**environment, **self._found("cuda", environment, []), **variables}

    def _found(self, library: str, environment: dict[str, str], lacks: list[str]) -> dict[str, str]:
        path = f"{self._build(library, lacks)}:{environment.get('LD_LIBRARY_PATH', '')}"
        return {"LD_LIBRARY_PATH": path.rstrip(":")}

    def _build(self, library: str, lacks: list[str]) -> Path:
        directory = self._root / "-".join([library, *lacks])
        if not directory.exists():
            compiler = shutil.which("gcc") or pytest.skip("the stub of NVML needs gcc")
            directory.mkdir()
            renamed = [f"-D{function}=missing_{function}" for function in lacks]
            flags = ["-shared", "-fPIC", f"-Wl,-soname,{_SONAMES[library]}", *renamed]
            source = Path(__file__).with_name(f"{library}.c")
            subprocess.run([compiler, *flags, "-o", directory / _SONAMES[library], source], check=True)
        return directory


_ASKED = """
import dataclasses, json, os, sys
from cctrain.platform import attestation, gpu
calls = {
    "observe": lambda: dataclasses.asdict(gpu.observe()),
    "attest": lambda number, *rest: attestation.attest(bytes.fromhex(number), *rest),
}
for line in sys.stdin:
    environment, call, arguments = json.loads(line)
    os.environ.clear()
    os.environ.update(environment)
    print(json.dumps(calls[call](*arguments), allow_nan=False), flush=True)
"""


class Drivers:
    """A process for each build of the stub, because a process loads one; the rest of the environment may change."""

    def __init__(self, stubs):
        self.stubs, self._processes = stubs, {}

    def ask(self, environment, call, *arguments):
        key = environment["LD_LIBRARY_PATH"]
        if key not in self._processes:
            command = [sys.executable, "-W", "error", "-c", _ASKED]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._processes[key] = subprocess.Popen(command, env=environment, text=True, **pipes)
        process = self._processes[key]
        print(json.dumps([environment, call, arguments]), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    def close(self):
        for process in self._processes.values():
            process.communicate()
