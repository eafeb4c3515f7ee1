"""The end of a run: samples into run.json, by the process that followed it, or by the next if that was killed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from cctrain import elsewhere
from cctrain.config import AUTO, MeasureKind
from cctrain.emulation.blocks import ALL, OFF
from cctrain.emulation.crossings import mean_crossings
from cctrain.emulation.outcome import of_arm, outcome
from cctrain.emulation.profile import NO_GPU, NO_GPU_COUNTED, parse_profile
from cctrain.platform.attestation import attest, nonce
from cctrain.platform.nccl import contradiction, nccl_cc_line
from cctrain.platform.telemetry import TELEMETRY_FILE
from cctrain.processes import is_alive, is_here
from cctrain.readings import GpusUse, reduce_readings
from cctrain.records import Seed, StepRecord, Summary, strict_json
from cctrain.redaction import redact_file, redacted
from cctrain.reduce import RankSamples, Reduced, Reduction, is_sound, of_the_ranks, reduce_samples, summarize
from cctrain.rundir import write_text
from cctrain.samples import STOP_FILE, lines_of_ranks, parse_line
from cctrain.seed import seed_figure


def reduction_of(run_dir: Path) -> Reduction:
    """What takes in the samples of a run that has just begun."""
    expected = json.loads((run_dir / "running.json").read_text(encoding="utf-8"))
    return Reduction(int(expected["warmup"]))


def finish_record(run_dir: Path, failure: str | None, reduction: Reduction | None = None) -> dict[str, Any]:
    """Put the samples into run.json and end the run: complete, or partial where `failure` says why or steps lack.

    `reduction` has taken in all samples; without one they are read. Returns the record. Raises OSError where it cannot
    be written.
    """
    record: dict[str, Any] = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    expected = json.loads((run_dir / "running.json").read_text(encoding="utf-8"))
    config = _read(run_dir / "config.json")
    found: list[str] = []
    steps: tuple[StepRecord, ...] = ()
    derived: dict[str, Any] = {"summary": None, "gpu_state": None}
    ranks: dict[int, RankSamples] = {}
    seen, broken = record["platform"], ""
    try:
        reduced = reduction.reduced() if reduction else reduce_samples(run_dir, reduction_of(run_dir))
        steps, ranks = reduced.steps, reduced.ranks
        found = notes(reduced)
        derived = _step(ranks)
        derived |= _summary(run_dir, record["identity"], config, reduced)
    except Exception as error:  # noqa: BLE001 - whatever a damaged sample leads to, the run must get its record
        broken = f"the samples could not be summed up ({type(error).__name__}: {error}); they are in samples/"
        found.append(broken)
    try:
        if ranks or not broken:
            seen = _platform(run_dir, record, ranks)
            found += elsewhere.notes(record, seen["other_machines"])
            found += filter(None, [contradiction(seen["nccl"], record["mode"], seen.get("cc") or {})])
    except Exception as error:  # noqa: BLE001 - the same
        found.append(f"what the run's end tells of the machine is not known ({type(error).__name__}: {error})")
    wanted = int(expected["warmup"]) + int(expected["steps"])
    if steps and (config.get("train", {}).get("checkpoint") or {}).get("restore_from"):
        wanted -= steps[0].step - 1  # AutoModel counts those before the checkpoint
    enough = _read(run_dir / STOP_FILE).get("why")
    failure = failure or broken or None
    if not failure and not enough and len(steps) < wanted:
        key = "max_steps" if config.get("measure", {}).get("steps") == AUTO else "steps"
        failure = (
            f"training ended after {len(steps)} of {wanted} steps, as its data did or a signal to a rank; lower "
            f"measure.{key} or give more data"
        )
    record |= {
        "status": "partial" if failure else "complete",
        "failure": redacted(failure),
        "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "notes": redacted([*record["notes"], *([enough] if enough else []), *found, *derived.pop("notes", [])]),
        "platform": seen,
        # Not asdict, which copies every rank's time of every step.
        "steps": [{field.name: getattr(step, field.name) for field in dataclasses.fields(step)} for step in steps],
        **derived,
    }
    for log in (run_dir / "logs").glob("*.log"):
        with contextlib.suppress(OSError):
            redact_file(log)
    (run_dir / ".reserve").unlink(missing_ok=True)
    write_text(run_dir / "run.json", strict_json(record))
    (run_dir / "running.json").unlink(missing_ok=True)
    return record


def _step(ranks: dict[int, RankSamples]) -> dict[str, Any]:
    """Which step it was, where only the ranks can tell: `step_kind`, and what was recorded into `graphs`."""
    facts = dict((ranks[0].end or {}).get("graphs") or {}) if 0 in ranks else {}
    kind = facts.pop("kind", None)
    return {"step_kind": kind, "graphs": facts} if facts else {}


def _platform(run_dir: Path, record: dict[str, Any], ranks: dict[int, RankSamples]) -> dict[str, Any]:
    """What was observed before the run, with what only its end can tell: NCCL's word, what the first rank had loaded,
    the machines that other ranks were on, and the GPUs' attestation for a nonce of the run's identity and samples."""
    log = run_dir / "logs" / "rank0.log"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    loaded = ranks[0].start.get("versions") if 0 in ranks else None
    num_gpus = 0 if record["identity"].get("gpu") == ["cpu"] else sum(is_here(rank.start) for rank in ranks.values())
    others = elsewhere.other_machines(rank.start for rank in ranks.values())
    number = nonce(record["identity"], (run_dir / "samples").glob("rank*.jsonl"))
    return {
        **record["platform"],
        "versions": {**record["platform"].get("versions", {}), "loaded": loaded},
        "nccl": nccl_cc_line(text),
        "attestation": attest(number, num_gpus, record["mode"], [other["host"] for other in others]),
        "other_machines": others,
    }


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of the run directory; empty where the run ended before it was written, or while."""
    parsed = parse_line(path.read_text(encoding="utf-8")) if path.exists() else None
    return parsed or {}


def _summary(
    run_dir: Path,
    identity: dict[str, Any],
    config: dict[str, Any],
    reduced: Reduced,
) -> dict[str, Any]:
    """The record's `summary` and `gpu_state`, both None where nothing was measured, and further `notes`."""
    gpus = identity.get("gpu") or []
    gpu_name = gpus[0] if len(gpus) == 1 else None
    ranks, profile = reduced.ranks, config.get("tolls")
    steps: Sequence[StepRecord] = of_arm(reduced.steps, ALL) if profile else reduced.steps
    summary = summarize(steps, len(ranks), gpu_name)
    if summary is None:
        return {"summary": None, "gpu_state": None}
    summary = of_the_ranks(summary, steps, reduced)
    steady = summary.steady_state.of(steps)
    found = []
    use = _gpu_use(run_dir, steady, sum(is_here(rank.start) for rank in ranks.values()))
    real_tokens = sum(step.real_tokens for step in steady)
    if use and use.total.energy_j is not None and real_tokens and len(use.gpus) == len(ranks):
        summary = dataclasses.replace(summary, joules_per_token=use.total.energy_j / real_tokens)
    if use is None and gpus not in ([], ["cpu"]):
        found.append("the driver gave no readings of this run's GPUs: clocks, energy and throttling are unknown")
    if config.get("measure", {}).get("kind") == MeasureKind.seed.value:
        summary = dataclasses.replace(summary, seed=_seed(identity, steps, summary, ranks))
        if summary.seed is None:
            found.append("measure=seed: the run ended before AutoModel's step 10; raise measure.steps")
    gpu_state = dataclasses.asdict(use) if use else None
    more: dict[str, Any] = {"crossings": mean_crossings(reduced.crossings, [step.step for step in steady])}
    plain = summarize(of_arm(reduced.steps, OFF), len(ranks), gpu_name) if profile else None
    if profile and plain:
        is_explained = config["cc"]["explain"]
        more = outcome(
            parse_profile(profile), reduced.steps, summary, plain, reduced.crossings, is_explained=is_explained
        )
    if (more["crossings"] or {}).get("counted_by") == "operators":
        found.append(NO_GPU if profile else NO_GPU_COUNTED)
    return {"summary": dataclasses.asdict(summary), "gpu_state": gpu_state, "notes": found, **more}


def _gpu_use(run_dir: Path, steady: Sequence[StepRecord], num_here: int) -> GpusUse | None:
    """What this machine's GPUs drew while the steady steps ran; None where those read are not those of the `num_here`
    ranks on it."""
    path = run_dir / TELEMETRY_FILE
    if not path.exists():
        return None
    begins = [(min(step.rank_begin_s), step) for step in steady if step.rank_begin_s]
    with path.open(encoding="utf-8", errors="replace") as lines:
        use = reduce_readings(lines, [(begin, begin + step.step_time_s) for begin, step in begins])
    return use if use and len(use.gpus) == num_here else None


def _seed(
    identity: dict[str, Any], steps: Sequence[StepRecord], summary: Summary, ranks: dict[int, RankSamples]
) -> Seed | None:
    ours = summary.tokens_per_s_per_gpu.mean or 0.0
    data_ranks = next(iter(ranks.values())).start["data_ranks"]
    return seed_figure(steps, ours, len(ranks), data_ranks, (identity.get("versions") or {}).get("nemo-automodel"))


def notes(reduced: Reduced) -> list[str]:
    """What a reader of the numbers has to know, in sentences."""
    ranks, steps, found = reduced.ranks, reduced.steps, []
    counts = {rank: len(steps) + len(samples.steps) for rank, samples in ranks.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"rank {rank}: {count}" for rank, count in counts.items())
        found.append(f"ranks finished unequal numbers of steps ({listed}); the {len(steps)} that all finished are kept")
    unsound = [step for step in steps if not is_sound(step)]
    if unsound:
        outcome = "no summary is made of such times"
        if all(step.is_warmup for step in unsound):
            outcome = "it was warm-up, and is not measured"
        found.append(f"the clock stood still or went backwards at step {unsound[0].step}; {outcome}")
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
            if _finish_killed(marker.parent, owner):
                finished.append(marker.parent)
        except Exception:  # noqa: BLE001 - not ours to mend: no record, or one that cannot be read
            continue
    return finished


def _finish_killed(run_dir: Path, owner: dict[str, Any]) -> bool:
    """Returns whether there is a record."""
    if not (run_dir / "run.json").exists():  # killed before anything was started: there is nothing to record
        for name in ("running.json", ".reserve"):
            (run_dir / name).unlink(missing_ok=True)
        return False
    lines = map(parse_line, chain.from_iterable(lines_of_ranks(run_dir).values()))
    is_over = sum((line or {}).get("event") == "end" for line in lines) == owner["ranks"]
    why = None if is_over else "the process that followed the run was killed"
    finish_record(run_dir, why)
    return True
