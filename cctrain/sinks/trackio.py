"""trackio: an SQLite file on this machine and a dashboard in the browser (`trackio show`), no account.

Files go to TRACKIO_DIR, else below the Hugging Face cache. trackio's own host and GPU readings are off, so as not to
disturb what is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cctrain.sinks.sink import DEFAULT_PROJECT, End, Say, Sink, Start, Values

PACKAGE = "trackio"
INSTALL = "pip install 'cctrain[trackio]'"

_RESULTS = {
    "step_time_s": "summary/step_time_s/median",
    "tokens_per_s_per_gpu": "summary/tokens_per_s_per_gpu/mean",
    "mfu": "summary/mfu",
    "keep_ratio": "keep_ratio/value",
    "keep_ratio_ci95_low": "keep_ratio/ci95_low",
    "keep_ratio_ci95_high": "keep_ratio/ci95_high",
}
"""Each is a figure of the dashboard there: the few that runs are compared by."""


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Always: trackio has no switch of its own."""
    return True


def open_sink(say: Say) -> Sink:
    """A trackio run that has not begun."""
    return _Run(say)


class _Run:
    def __init__(self, say: Say) -> None:
        self._say = say
        self._run: Any = None

    def begin(self, start: Start) -> None:
        """Open the run."""
        import trackio

        project = start.project or DEFAULT_PROJECT
        self._run = trackio.init(
            project,
            name=start.name,
            group=start.group,
            config={
                "job_type": start.job_type,
                "tags": list(start.tags),
                **start.config,
                "tolls_paid": {name: value for name, value, _ in start.tolls} or None,
            },
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self._say("note", f"`trackio show --project {project}` opens the dashboard in the browser")

    def step(self, step: int, values: Values) -> None:
        """Log one step."""
        self._run.log(dict(values), step=step)

    def end(self, end: End) -> None:
        """Log what the run came to at its last step; trackio has no place of its own for that, nor for files."""
        self._run.log({f"result/{name}": end.results[key] for name, key in _RESULTS.items() if key in end.results})
        self._run.finish()
