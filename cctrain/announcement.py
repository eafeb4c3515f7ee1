"""How processes on several machines find a run directory: a small file under the run root, which all of them share.

What else it says of the first machine, the others hold theirs against: one run has one mode and one kind of GPU.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cctrain.errors import PlatformError
from cctrain.processes import host_name, is_alive, is_here, this_process

WAIT_S = 600.0
"""How long to wait for an announcement."""
SEEN_VARIABLE = "CCTRAIN_SEEN"
"""Environment variable of ranks: what was seen of their machine, as JSON, for the `start` line of their samples."""


def announce(file: Path, content: Mapping[str, Any]) -> None:
    """Put `content` into `file` with this process and the time; a reader sees all of it or nothing."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps({**this_process(), "time": time.time(), **content}), encoding="utf-8")
    part.replace(file)


def announced(file: Path) -> dict[str, Any] | None:
    """What stands in `file`, or None."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def wait_for(file: Path, oldest_s: float) -> dict[str, Any] | None:
    """The announcement in `file`, once there is one; None where none comes.

    One of a process that has ended, or older than this wait by more than `oldest_s`, is an earlier job's.
    """
    begin = time.time()
    while time.time() - begin < WAIT_S:
        content = announced(file)
        if content and not _is_stale(content, begin - oldest_s):
            return content
        time.sleep(0.05)
    return None


def check_alike(seen: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises PlatformError where what was `seen` of this machine is not as the announcement `found` has it of its
    own."""
    here, there = host_name(this_process()), host_name(found)
    for name, value in seen.items():
        if found.get(name) != value:
            raise PlatformError(
                f"{name} is {_shown(value)} on {here} and {_shown(found.get(name))} on {there}, where the run began; "
                "the machines of a run must agree"
            )


def _shown(value: Any) -> str:
    return (", ".join(value) or "none") if isinstance(value, list) else str(value)


def _is_stale(content: Mapping[str, Any], oldest: float) -> bool:
    if is_here(content):
        return not is_alive(content)
    return not isinstance(content.get("time"), float) or content["time"] < oldest
