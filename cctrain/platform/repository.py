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
    return {
        "cctrain": _state(package) if (package / ".git").exists() else None,
        "working_directory": _state(working_directory),
    }


def _state(folder: Path) -> dict[str, Any] | None:
    commit = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain")
    if commit is None or status is None:
        return None
    untracked = sum(line.startswith("??") for line in status)
    return {"commit": commit[0], "is_dirty": len(status) > untracked, "num_untracked": untracked}


def _git(folder: Path, *arguments: str) -> list[str] | None:
    # Variables of a git hook that started this would point it at another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            [*_GIT, "-C", str(folder), *arguments],
            check=False,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None
