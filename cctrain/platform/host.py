"""The host: CPU, kernel and its command line, and the variables that change speed."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cctrain.redaction import redacted

_ENVIRONMENT = (
    *("CUBLAS", "CUDA_", "CUDNN_", "GLOO_", "KMP_", "LD_PRELOAD", "MALLOC_", "MKL_", "NCCL_", "NVIDIA_", "NVTE_"),
    *("OMP_", "PYTORCH_", "TOKENIZERS_", "TORCH", "TRITON_", "UCX_"),
)
"""Prefixes of the variables that change speed. Everything else stays out of the record: it may be secret."""


def observe(environment: Mapping[str, str], root: Path = Path("/")) -> dict[str, Any]:
    """CPU model and cores, kernel, Python, and those variables of the ranks' `environment` that change speed. `boot` is
    alike in what one machine records until it is booted again, in containers too (and in machines resumed from one
    snapshot); None where the kernel does not say."""
    command_line = _read(root / "proc/cmdline")
    boot_id = _read(root / "proc/sys/kernel/random/boot_id").strip()
    relevant = {key: environment[key] for key in sorted(environment) if key.startswith(_ENVIRONMENT)}
    return {
        "cpu": _cpu_model(root),
        "num_cores": len(os.sched_getaffinity(0)),
        "boot": hashlib.sha256(boot_id.encode()).hexdigest()[:12] if boot_id else None,
        "kernel": platform.release(),
        "kernel_command_line": redacted(command_line.strip(), environment) or None,
        "python": platform.python_version(),
        "environment": redacted(relevant, environment),
    }


def _cpu_model(root: Path) -> str:
    lines = _read(root / "proc/cpuinfo").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _read(path: Path) -> str:
    """The file's text; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
