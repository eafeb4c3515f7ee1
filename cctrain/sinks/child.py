"""What one sink runs in: `python -m cctrain.sinks.child NAME RUN_DIR`, started by the parent beside the ranks.

It reads the samples files as they grow, hands each step to the sink, and ends when its stdin does: the run is over
then, or its parent dead. What the user has to know goes to stdout as JSON lines, {"note": ...} or {"warning": ...}; all
that the sink's library prints goes to logs/track-NAME.log. A sink that fails costs one warning.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from cctrain.errors import one_line
from cctrain.redaction import redacted
from cctrain.sinks.facts import Steps, end_of, start_of
from cctrain.sinks.sink import LOG, Say, Sink, SinkError

_POLL_S = 1.0
_NICENESS = 10
"""The ranks' threads go first where cores are few."""
_LAST_S = 90
"""After the end of stdin: later than the parent's own patience, for the case that it is dead."""


def stream(run_dir: Path, sink: Sink, is_over: Callable[[], bool], say: Say) -> None:
    """Feed `sink` until `is_over` (which waits a little), and then the end."""
    has_failed = False

    def tried(act: Callable[[], None]) -> bool:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever a tracker runs into, the run is not to know
            traceback.print_exc()
            if not has_failed:
                say("warning", in_words(error))
            return False
        return True

    def send() -> None:
        for number, values in steps.new():
            sink.step(number, values)

    if not tried(lambda: sink.begin(start_of(run_dir))):
        return
    steps, over = Steps(run_dir), False
    while not over:
        over = is_over()
        has_failed = has_failed or not tried(send)
    tried(lambda: sink.end(end_of(run_dir)))


def in_words(error: Exception) -> str:
    """An error in one line."""
    text = redacted(one_line(error))[:300]
    return text if isinstance(error, SinkError) else f"{text} ({type(error).__name__})"


def main(name: str, run_dir: Path) -> None:
    """Run the sink of that name to its end."""
    os.nice(_NICENESS)
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    log = os.open(run_dir / LOG.format(name=name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    def say(kind: str, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # the parent is dead
            said.write(json.dumps({kind: redacted(text)}) + "\n")
            said.flush()

    def is_over() -> bool:
        if not select.select([0], [], [], _POLL_S)[0]:
            return False
        signal.alarm(_LAST_S)
        return True

    sink: Sink = importlib.import_module(f"cctrain.sinks.{name}").open_sink(say)
    stream(run_dir, sink, is_over, say)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # no exit handler of a library waits once more for a server that has not answered
