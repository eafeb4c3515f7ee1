"""A run directory in the words of the sinks: names, keys and values, without secrets."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cctrain.emulation.profile import emulated_note
from cctrain.peaks import peak_flops
from cctrain.records import StepRecord, summed_up
from cctrain.redaction import redacted
from cctrain.reduce import Samples
from cctrain.samples import SamplesTail
from cctrain.sinks.sink import End, Start, Values

_FILES = ("run.json", "automodel.yaml", "config.json", "logs/rank*.log", "logs/torchrun.log")
_RESULTS = ("summary", "summary_off", "keep_ratio", "crossings", "explain")


def read_json(path: Path) -> dict[str, Any]:
    """An object of the run directory."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def start_of(run_dir: Path) -> Start:
    """What is known of a run before its first step."""
    config, record = redacted(read_json(run_dir / "config.json")), redacted(read_json(run_dir / "run.json"))
    track, tolls = config["track"], record["tolls"] or {}
    is_emulated = record["mode"] == "emulated"
    profile = [str(tolls.get("name"))] if is_emulated else []
    settings = {key: value for key, value in config.items() if key not in ("train", "tolls")}
    facts = ("run_id", "recipe", "engine", "mode", "identity", "platform", "command", "started_at", "schema_version")
    return Start(
        run_dir=run_dir,
        name=f"{' '.join(['emulated CC', *profile]) if is_emulated else 'CC ' + record['mode']} {record['run_id']}",
        project=track["project"],
        group=track["group"] or _group(record),
        job_type=f"cc-{record['mode']}",
        tags=tuple(tag[:64] for tag in (record["recipe"], f"cc-{record['mode']}", record["step_kind"], *profile)),
        config={
            **{key: record[key] for key in facts},
            "step": record["step_kind"],
            "alike": _group(record),
            "tolls": {key: tolls[key] for key in ("name", "sha256") if key in tolls} or None,
            "emulated": emulated_note(is_cpu=record["identity"]["gpu"] == ["cpu"]) if is_emulated else None,
            "settings": settings,
            "automodel": config["train"],
        },
        tolls=tuple(
            (name, json.dumps(toll["value"]), str(toll["source"]))
            for name, toll in (tolls.get("content") or {}).get("tolls", {}).items()
        ),
    )


def _group(record: Mapping[str, Any]) -> str:
    """The same of runs that are alike in all but the mode, as `compare` wants them."""
    what = {key: record[key] for key in ("recipe", "engine", "step_kind", "identity")}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return f"{record['recipe']}-{record['engine']}-{record['step_kind']}-{digest[:8]}"


class Steps:
    """The steps of a run, each once all ranks have finished it."""

    def __init__(self, run_dir: Path) -> None:
        config, identity = read_json(run_dir / "config.json"), read_json(run_dir / "run.json")["identity"]
        self._samples = Samples(config["measure"]["warmup"])
        self._world = identity["num_gpus"]
        gpus = identity["gpu"]
        self._peak = peak_flops(gpus[0]) if len(gpus) == 1 else None
        self._tail = SamplesTail(run_dir)

    def new(self) -> Iterator[tuple[int, Values]]:
        """Number and values of the steps that were finished since the last call."""
        while read := list(self._tail.read()):
            for number, lines in read:
                self._samples.take(number, lines)
            for step, _, _ in self._samples.finished():
                yield step.step, values_of(step, self._world, self._peak)


def values_of(step: StepRecord, world: int, peak_flops_per_s: float | None) -> Values:
    """One step by key. A value that is not known is left out, never 0."""
    seconds = step.step_time_s
    rates: dict[str, float | None] = {}
    if seconds > 0:
        rates = {
            "train/tokens_per_s_per_gpu": step.padded_tokens / seconds / world,
            "train/real_tokens_per_s_per_gpu": step.real_tokens / seconds / world,
            "train/mfu": step.model_flops / seconds / world / peak_flops_per_s
            if step.model_flops and peak_flops_per_s
            else None,
        }
    values = {
        "train/step_time_s": seconds,
        **rates,
        "train/loss": step.loss,
        "train/padded_tokens": step.padded_tokens,
        "train/is_warmup": int(step.is_warmup),
        "train/is_tolled": None if step.is_tolled is None else int(step.is_tolled),
        **{f"phases/{name}_s": span for name, span in (step.phases_s or {}).items()},
    }
    return {key: value for key, value in values.items() if value is not None and math.isfinite(value)}


def end_of(run_dir: Path) -> End:
    """What a run came to. One whose record is still open was killed with what followed it."""
    record = redacted(read_json(run_dir / "run.json"))
    is_over = not (run_dir / "running.json").exists()
    failure = record["failure"] if is_over else "the process that followed the run was killed"
    files = [path for pattern in _FILES for path in sorted(run_dir.glob(pattern))] if is_over else []
    results = {name: value for part in _RESULTS for name, value in _flat(part, record.get(part))}
    if record["summary"]:
        tokens = [step["padded_tokens"] for step in summed_up(record)]
        results["summary/tokens_per_step"] = statistics.median(tokens)
    if record.get("keep_ratio"):
        results["keep_ratio/loss"] = 1 - record["keep_ratio"]["value"]
    return End(
        results={"status": record["status"], **({"failure": failure} if failure else {}), **results},
        files=files,
        is_complete=record["status"] == "complete",
    )


def _flat(name: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Leaves by their path. An interval has low and high; other lists but those of named parts are left out."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flat(f"{name}/{key}", value)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        if name.endswith("ci95"):
            yield from zip((f"{name}_low", f"{name}_high"), node, strict=True)
        for part in node:
            if isinstance(part, Mapping) and "name" in part:
                rest = {key: value for key, value in part.items() if key != "name"}
                yield from _flat(f"{name.removesuffix('/classes')}/{part['name']}", rest)
    elif node is not None:
        yield name, node
