"""The W&B run of a comparison (`compare --track wandb`) or a search (`tune`), made in a process of its own for at most
a minute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cctrain.redaction import redacted
from cctrain.sinks.child import in_words
from cctrain.sinks.tracking import CLOSE_S

_COMMAND = (sys.executable, "-m", "cctrain.sinks.compared")


def track_comparison(
    facts: Mapping[str, Any],
    figures: Sequence[Path],
    tell: Callable[[str], None],
    *,
    command: Sequence[str] = _COMMAND,
    timeout_s: float = CLOSE_S,
) -> None:
    """Log `facts`, as `compare --json` prints them, and figures. Never raises: a failure costs one warning."""
    _track({"kind": "comparison", "facts": facts}, figures, tell, command, timeout_s)


def track_search(
    facts: Mapping[str, Any], figures: Sequence[Path], project: str | None, tell: Callable[[str], None]
) -> None:
    """The same of a search, whose last line holds `facts`."""
    _track({"kind": "search", "facts": facts, "project": project}, figures, tell, _COMMAND, CLOSE_S)


def _track(
    what: Mapping[str, Any],
    figures: Sequence[Path],
    tell: Callable[[str], None],
    command: Sequence[str],
    timeout_s: float,
) -> None:
    asked = json.dumps({**what, "figures": [str(figure.resolve()) for figure in figures]})
    spared = f"(the {what['kind']} is not affected)"
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        try:
            done = subprocess.run(
                command, input=asked, stdout=subprocess.PIPE, stderr=log, text=True, timeout=timeout_s, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            tell(f"warning: wandb: {redacted(str(error))} {spared}")
            return
        said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        for kind, text in (item for line in said for item in line.items()):
            tell(f"warning: wandb: {text} {spared}" if kind == "warning" else f"wandb: {text}")
        if done.returncode and not any("warning" in line for line in said):
            log.seek(0)
            last = redacted((log.read().splitlines() or ["no word"])[-1])
            tell(f"warning: wandb: {last} {spared}")


def main() -> int:
    """In the process of its own: what stdin asks for."""
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked = json.load(sys.stdin)

    def say(kind: str, text: str) -> None:
        said.write(json.dumps({kind: redacted(text)}) + "\n")
        said.flush()

    from cctrain.sinks.wandb import log_comparison, log_search

    log = log_search if asked["kind"] == "search" else log_comparison
    try:
        log(
            asked["facts"], [Path(figure) for figure in asked["figures"]], Path.cwd(), say, project=asked.get("project")
        )
    except Exception as error:  # noqa: BLE001 - whatever W&B runs into
        say("warning", in_words(error))
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    os._exit(code)  # no exit handler of W&B waits once more for a server that has not answered
