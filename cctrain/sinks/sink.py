"""What a sink is given, and what it has to have. All of it is free of secrets before a sink sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Values = Mapping[str, float | int]
Say = Callable[[str, str], None]
"""Tells the user: "note" or "warning", and one sentence."""
DEFAULT_PROJECT = "cctrain"
LOG = "logs/track-{name}.log"
"""In the run directory: what a sink's library prints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A run that begins."""

    run_dir: Path
    name: str
    project: str | None
    """None: the sink's own setting, or `DEFAULT_PROJECT`."""
    group: str
    """The comparison it belongs to: runs that differ in nothing but their mode, where the user says nothing else."""
    job_type: str
    """cc-off, cc-on, cc-emulated or cc-unknown."""
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    """Provenance: identity, platform, tolls, command, settings and the AutoModel recipe."""
    tolls: tuple[tuple[str, str, str], ...]
    """Name, value and source of each toll that an emulated run pays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """A run that is over."""

    results: Mapping[str, Any]
    """The record's summary by name/of/part, with `status` and `failure`."""
    files: Sequence[Path]
    """The record, the recipe and the logs; none where the run was killed before they were put in order."""
    is_complete: bool


class SinkError(Exception):
    """What a sink could not do, in words for the user."""


class Sink(Protocol):
    """Any of these may be slow or raise: it costs the run a warning, and no step."""

    def begin(self, start: Start) -> None:
        """Open the run there, and say where it is to be seen."""

    def step(self, step: int, values: Values) -> None:
        """Take one optimizer step, once every rank has finished it."""

    def end(self, end: End) -> None:
        """Take the results and files, and close."""
