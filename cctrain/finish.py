"""The end of a run: samples into run.json, by the process that followed it, or by the next if that was killed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cctrain.processes import is_alive, is_here
from cctrain.records import StepRecord, finite
from cctrain.reduce import RankSamples, read_samples, step_records, summarize
from cctrain.rundir import write_text


def finish_record(run_dir: Path, failure: str | None, warmup: int, num_measured: int) -> dict[str, Any]:
    """Put the samples into run.json and end the run: complete, or partial where `failure` says why or steps lack.

    Returns the record. Raises OSError where it cannot be written.
    """
    record: dict[str, Any] = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    ranks = read_samples(run_dir)
    steps = step_records(ranks, warmup)
    summary = summarize(steps, ranks)
    wanted = warmup + num_measured
    if not failure and len(steps) < wanted:
        failure = f"the data ended after {len(steps)} of {wanted} steps; lower measure.steps or give more data"
    record |= {
        "status": "partial" if failure else "complete",
        "failure": failure,
        "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "notes": [*record["notes"], *_notes(ranks, steps)],
        "steps": [dataclasses.asdict(step) for step in steps],
        "summary": dataclasses.asdict(summary) if summary else None,
    }
    (run_dir / ".reserve").unlink(missing_ok=True)
    write_text(run_dir / "run.json", json.dumps(finite(record), allow_nan=False, separators=(",", ":")) + "\n")
    (run_dir / "running.json").unlink(missing_ok=True)
    return record


def _notes(ranks: dict[int, RankSamples], steps: Sequence[StepRecord]) -> list[str]:
    notes = []
    counts = {rank: len(samples.steps) for rank, samples in ranks.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"rank {rank}: {count}" for rank, count in counts.items())
        notes.append(f"ranks finished unequal numbers of steps ({listed}); the {len(steps)} that all finished are kept")
    stopped = [step.step for step in steps if step.step_time_s <= 0]
    if stopped:
        notes.append(f"the clock stood still or went backwards at step {stopped[0]}; no summary is made of such times")
    return notes


def finish_abandoned(run_root: Path) -> list[Path]:
    """Finish the records under `run_root` whose process died on this machine. Returns their directories."""
    finished = []
    for marker in sorted(run_root.glob("*/running.json")):
        try:
            owner = json.loads(marker.read_text(encoding="utf-8"))
            if not isinstance(owner, dict) or not is_here(owner) or is_alive(owner):
                continue
            _finish_killed(marker.parent, owner)
            finished.append(marker.parent)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not ours to mend: no record, or one that cannot be read
    return finished


def _finish_killed(run_dir: Path, owner: dict[str, Any]) -> None:
    if not (run_dir / "run.json").exists():  # killed before anything was started: there is nothing to record
        for name in ("running.json", ".reserve"):
            (run_dir / name).unlink(missing_ok=True)
        return
    ranks = read_samples(run_dir).values()
    is_over = len(ranks) == owner["ranks"] and all(rank.end and rank.end["event"] == "end" for rank in ranks)
    why = None if is_over else "the process that followed the run was killed"
    finish_record(run_dir, why, int(owner["warmup"]), int(owner["steps"]))
