"""The git commits behind a run: of cctrain, where it runs from a checkout, and of the working directory's repository.

Remotes and configuration are not read: their addresses may hold passwords, and they may name programs to run.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from cctrain.packaged import CONF

_TIMEOUT_S = 1.0
_GIT = ("git", "-c", "core.fsmonitor=false", "--no-optional-locks")


def observe(working_directory: Path, package: Path = CONF.parent) -> dict[str, Any]:
    """`cctrain` and `working_directory`, each with `commit`, `is_dirty` (tracked files differ from it) and
    `num_untracked`; None where there is no repository, or git cannot tell in a second."""
    here = _state(working_directory)
    if not (package / ".git").exists():
        return {"cctrain": None, "working_directory": here}
    is_same = working_directory.resolve() == package.resolve()
    return {"cctrain": here if is_same else _state(package), "working_directory": here}


def _state(folder: Path) -> dict[str, Any] | None:
    # Variables of a git hook that started this would point it at another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = [*_GIT, "-C", str(folder), "status", "--porcelain=v2", "--branch"]
    try:
        done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return None
    head, *rest = done.stdout.splitlines()
    entries = [line for line in rest if not line.startswith("#")]
    untracked = sum(line.startswith("?") for line in entries)
    commit = head.removeprefix("# branch.oid ")
    if commit == "(initial)":
        return None
    return {"commit": commit, "is_dirty": len(entries) > untracked, "num_untracked": untracked}
