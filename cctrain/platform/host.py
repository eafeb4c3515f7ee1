"""The host: CPU, kernel, and the versions of what trains."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "nemo-automodel", "transformers", "triton", "cctrain")
_ENVIRONMENT = ("CUDA_", "NCCL_", "OMP_NUM", "PYTORCH_", "TORCH_SYMM_MEM")
"""Prefixes of the variables that change speed. Everything else stays out of the record: it may be secret."""


def observe(environment: Mapping[str, str]) -> dict[str, Any]:
    """CPU model and cores, kernel, Python, and those variables of the ranks' `environment` that change speed."""
    return {
        "cpu": _cpu_model(),
        "num_cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "environment": {key: environment[key] for key in sorted(environment) if key.startswith(_ENVIRONMENT)},
    }


def package_versions() -> dict[str, str | None]:
    """Installed versions of what decides a run's speed; None for what is not installed."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
