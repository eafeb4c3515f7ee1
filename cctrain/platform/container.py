"""The container around this process, from the marks it leaves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_MARKS = {"docker": ".dockerenv", "podman": "run/.containerenv"}
_VARIABLES = {
    "apptainer": "APPTAINER_CONTAINER",
    "singularity": "SINGULARITY_CONTAINER",
    "kubernetes": "KUBERNETES_SERVICE_HOST",
}
_CGROUP = re.compile(r"docker|containerd|cri-o|podman|libpod|lxc|kubepods")
_NAMES = {"cri-o": "containerd", "libpod": "podman", "kubepods": "kubernetes"}


def observe(environment: Mapping[str, str], root: Path = Path("/")) -> str | None:
    """Its kind by name, None where nothing tells of one."""
    marked = [name for name, mark in _MARKS.items() if (root / mark).exists()]
    marked += [name for name, variable in _VARIABLES.items() if variable in environment]
    try:
        cgroup = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        cgroup = ""
    marked += [_NAMES.get(found, found) for found in _CGROUP.findall(cgroup)]
    return marked[0] if marked else None
