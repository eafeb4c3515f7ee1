"""The end of a run: samples into run.json, by the process that followed it, or by the next if that was killed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cctrain.config import MeasureKind
from cctrain.platform.telemetry import TELEMETRY_FILE
from cctrain.processes import is_alive, is_here
from cctrain.readings import GpusUse, reduce_readings
from cctrain.records import Seed, StepRecord, Summary, finite
from cctrain.reduce import RankSamples, is_sound, of_the_ranks, read_samples, step_records, summarize
from cctrain.rundir import write_text
from cctrain.samples import STOP_FILE
from cctrain.seed import seed_figure


def finish_record(run_dir: Path, failure: str | None) -> dict[str, Any]:
    """Put the samples into run.json and end the run: complete, or partial where `failure` says why or steps lack.

    Returns the record. Raises OSError where it cannot be written.
    """
    record: dict[str, Any] = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    expected = json.loads((run_dir / "running.json").read_text(encoding="utf-8"))
    config = _read(run_dir / "config.json")
    ranks = read_samples(run_dir)
    steps = step_records(ranks, int(expected["warmup"]), config.get("train"))
    wanted = int(expected["warmup"]) + int(expected["steps"])
    enough = _read(run_dir / STOP_FILE).get("why")
    if not failure and not enough and len(steps) < wanted:
        failure = f"the data ended after {len(steps)} of {wanted} steps; lower measure.steps or give more data"
    record |= {
        "status": "partial" if failure else "complete",
        "failure": failure,
        "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "notes": [*record["notes"], *([enough] if enough else []), *notes(ranks, steps)],
        "steps": [dataclasses.asdict(step) for step in steps],
        **_summary(run_dir, record["identity"], config, steps, ranks),
    }
    (run_dir / ".reserve").unlink(missing_ok=True)
    write_text(run_dir / "run.json", json.dumps(finite(record), allow_nan=False, separators=(",", ":")) + "\n")
    (run_dir / "running.json").unlink(missing_ok=True)
    return record


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of the run directory; empty where the run ended before it was written."""
    parsed = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return parsed if isinstance(parsed, dict) else {}


def _summary(
    run_dir: Path,
    identity: dict[str, Any],
    config: dict[str, Any],
    steps: Sequence[StepRecord],
    ranks: dict[int, RankSamples],
) -> dict[str, Any]:
    """The record's `summary` and `gpu_state`, both None where nothing was measured."""
    gpus = identity.get("gpu") or []
    summary = summarize(steps, len(ranks), gpus[0] if len(gpus) == 1 else None)
    if summary is None:
        return {"summary": None, "gpu_state": None}
    summary = of_the_ranks(summary, steps, ranks)
    steady = [step for step in steps if step.step >= summary.steady_state.first_step]
    use = _gpu_use(run_dir, steady)
    real_tokens = sum(step.real_tokens for step in steady)
    if use and use.total.energy_j is not None and real_tokens and len(use.gpus) == len(ranks):
        summary = dataclasses.replace(summary, joules_per_token=use.total.energy_j / real_tokens)
    if config.get("measure", {}).get("kind") == MeasureKind.seed.value:
        summary = dataclasses.replace(summary, seed=_seed(identity, steps, summary, ranks))
    return {"summary": dataclasses.asdict(summary), "gpu_state": dataclasses.asdict(use) if use else None}


def _gpu_use(run_dir: Path, steady: Sequence[StepRecord]) -> GpusUse | None:
    """What this machine's GPUs drew while the steady steps ran."""
    path = run_dir / TELEMETRY_FILE
    if not path.exists():
        return None
    begins = [(min(step.rank_begin_s), step) for step in steady if step.rank_begin_s]
    with path.open(encoding="utf-8", errors="replace") as lines:
        return reduce_readings(lines, [(begin, begin + step.step_time_s) for begin, step in begins])


def _seed(
    identity: dict[str, Any], steps: Sequence[StepRecord], summary: Summary, ranks: dict[int, RankSamples]
) -> Seed | None:
    ours = summary.tokens_per_s_per_gpu.mean or 0.0
    data_ranks = next(iter(ranks.values())).start["data_ranks"]
    return seed_figure(steps, ours, len(ranks), data_ranks, identity["versions"].get("nemo-automodel"))


def notes(ranks: dict[int, RankSamples], steps: Sequence[StepRecord]) -> list[str]:
    """What a reader of the numbers has to know, in sentences."""
    found = []
    counts = {rank: len(samples.steps) for rank, samples in ranks.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"rank {rank}: {count}" for rank, count in counts.items())
        found.append(f"ranks finished unequal numbers of steps ({listed}); the {len(steps)} that all finished are kept")
    unsound = [step.step for step in steps if not is_sound(step)]
    if unsound:
        found.append(f"the clock stood still or went backwards at step {unsound[0]}; no summary is made of such times")
    empty = [step.step for step in steps if not step.real_tokens]
    if empty:
        found.append(
            f"{len(empty)} steps have no real token, step {empty[0]} first: by its mask a batch there is all padding; "
            "look at the data"
        )
    retries = {rank: samples.end.get("num_alloc_retries") for rank, samples in ranks.items() if samples.end}
    worst = max((count or 0 for count in retries.values()), default=0)
    if worst:
        found.append(
            f"GPU memory was full: torch freed its cache and allocated anew up to {worst} times on a rank, which costs "
            "time; lower the micro-batch"
        )
    return found


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
    finish_record(run_dir, why)
