"""NVML for machines without a GPU: nvml.c, built where a test wants it and steered by environment variables."""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, GPU_IS_LOST = 3, 4, 9, 15
_SONAME = "libnvidia-ml.so.1"


class StubNvml:
    """Builds of the stub under `root`, one for each set of functions that it lacks."""

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
        path = f"{self._build(sorted(lacks))}:{kept.get('LD_LIBRARY_PATH', '')}".rstrip(":")
        failing = " ".join(f"{key}={code}" for key, code in (fails or {}).items())
        variables = {f"STUB_NVML_{name.upper()}": str(value) for name, value in settings.items()}
        return {**kept, "LD_LIBRARY_PATH": path, "STUB_NVML_FAIL": failing, **variables}

    def _build(self, lacks: list[str]) -> Path:
        directory = self._root / "-".join(["nvml", *lacks])
        if not directory.exists():
            compiler = shutil.which("gcc") or pytest.skip("the stub of NVML needs gcc")
            directory.mkdir()
            renamed = [f"-D{function}=missing_{function}" for function in lacks]
            flags = ["-shared", "-fPIC", f"-Wl,-soname,{_SONAME}", *renamed]
            source = Path(__file__).with_name("nvml.c")
            subprocess.run([compiler, *flags, "-o", directory / _SONAME, source], check=True)
        return directory
