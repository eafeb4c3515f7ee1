"""The container and the scheduler around this process, from the marks they leave."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CONTAINER_MARKS = {"docker": ".dockerenv", "podman": "run/.containerenv"}
_CONTAINER_VARIABLES = {"apptainer": "APPTAINER_CONTAINER", "singularity": "SINGULARITY_CONTAINER"}
_SCHEDULER_VARIABLES = {"kubernetes": "KUBERNETES_SERVICE_HOST", "slurm": "SLURM_JOB_ID"}
_CGROUPS = {
    "container": re.compile(r"docker|containerd|cri-o|podman|libpod|lxc"),
    "scheduler": re.compile(r"kubepods|slurm"),
}
_NAMES = {"cri-o": "containerd", "libpod": "podman", "kubepods": "kubernetes"}


def observe(environment: Mapping[str, str], root: Path = Path("/")) -> dict[str, Any]:
    """`container` and `scheduler`, by name; None where nothing tells of one."""
    found = {
        "container": next((name for name, mark in _CONTAINER_MARKS.items() if (root / mark).exists()), None)
        or next((name for name, variable in _CONTAINER_VARIABLES.items() if variable in environment), None),
        "scheduler": next((name for name, variable in _SCHEDULER_VARIABLES.items() if variable in environment), None),
    }
    try:
        cgroup = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        cgroup = ""
    for kind, pattern in _CGROUPS.items():
        match = pattern.search(cgroup)
        if match and not found[kind]:
            found[kind] = _NAMES.get(match[0], match[0])
    return found
