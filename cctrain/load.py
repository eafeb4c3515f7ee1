"""Reads run.json of every format so far, whoever wrote it, into what a comparison needs.

A record may come from another machine, an older cctrain, or somebody who means harm: nothing in it is run, names must
be one printable line, numbers must be numbers, sizes are bounded, and whatever is wrong is said with the file's name.
Only what a comparison needs is looked at, column by column, so that a thousand runs of a thousand steps take seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing

from cctrain.errors import RequestError
from cctrain.records import SCHEMA_VERSION
from cctrain.redaction import redacted
from cctrain.untrusted import LARGEST, check_run, cleaned, expect, json_of, line, printable, shown, strict

MODES = ("off", "on", "emulated", "unknown")
_MOST_BYTES, _MOST_STEPS, _MOST_RANKS, _MOST_PHASES, _MOST_RUNS, _MOST_WORDS = (
    64 << 20,
    100_000,
    16_384,
    50,
    10_000,
    500,
)

Floats = np.typing.NDArray[np.float64]
Ints = np.typing.NDArray[np.int64]
Flags = np.typing.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The steps of a run as columns, in the recipe's order. Times are seconds."""

    step: Ints
    step_time_s: Floats
    """Of the slowest rank."""
    rank_step_time_s: Floats
    """A row a step, a column a rank."""
    padded_tokens: Floats
    real_tokens: Floats
    model_flops: Floats
    """NaN in the steps that do not say."""
    is_warmup: Flags
    arm: Ints
    """1 where an emulated run paid all tolls, 0 where none, -1 where a part, and in other runs."""
    round: Ints
    """The round of an emulated run, in which each arm has one block with measured steps; -1 where there is none, or the
    run ended within it."""
    phases_s: Mapping[str, Floats]
    """By phase; NaN in the steps that do not say."""

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a comparison needs of a record. See `records.RunRecord` for the fields."""

    path: Path
    run_id: str
    recipe: str
    engine: str
    step_kind: str
    mode: str
    status: str
    failure: str | None
    num_gpus: int
    """Ranks that the rates are per."""
    identity: Mapping[str, Any]
    platform: Mapping[str, Any]
    command: tuple[str, ...]
    notes: tuple[str, ...]
    started_at: datetime | None
    steps: Steps
    tolls: Mapping[str, Any] | None = None
    explain: Mapping[str, Any] | None = None

    @property
    def profile(self) -> str:
        """The name of the tolls that an emulated run paid; "none" in others."""
        return str((self.tolls or {}).get("name") or "unnamed") if self.mode == "emulated" else "none"


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs at `paths`: files, run directories, or directories of either. A file named twice is read once.

    Raises RequestError for a path without a run, a record that cannot be read, and one run given as two files.
    """
    files = {file.resolve(): file for path in paths for file in _files_at(path)}
    if len(files) > _MOST_RUNS:
        raise RequestError(f"{len(files)} runs are more than {_MOST_RUNS}: give fewer")
    by_id: dict[str, Run] = {}
    for file in files.values():
        run = read_run(file)
        if run.run_id in by_id:
            first = by_id[run.run_id].path
            raise RequestError(f"{shown(file)} and {shown(first)} are the same run {run.run_id}: give one of them")
        by_id[run.run_id] = run
    return list(by_id.values())


def _files_at(path: Path) -> list[Path]:
    try:
        if not path.exists():
            raise RequestError(
                f"{shown(path)}: no such file or directory. Allowed is a run directory, its run.json, or the directory "
                "that runs are in (run_root=, runs where nothing is said)"
            )
        if not path.is_dir():
            return [path]
        if (path / "run.json").exists():
            return [path / "run.json"]
        found = sorted(path.glob("*/run.json")) or sorted(path.glob("*.json"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{shown(path)} cannot be read: {_reason(error)}") from error
    if not found:
        raise RequestError(f"{shown(path)} holds no run: neither run.json, nor */run.json, nor *.json")
    return found


def read_run(path: Path) -> Run:
    """The run in a file `run.json`. Raises RequestError, in one printable line, for anything else."""
    try:
        return _parse(path, _redacted(json_of(path, _MOST_BYTES)))
    except (OSError, MemoryError) as error:
        raise RequestError(f"{shown(path)} cannot be read: {_reason(error)}") from error
    except RecursionError as error:
        raise RequestError(f"{shown(path)} is not a run.json: it is nested too deeply") from error
    except ValueError as error:
        raise RequestError(f"{shown(path)} is not a run.json that this cctrain reads: {_reason(error)}") from error


def _redacted(node: Any) -> Any:
    """Whoever wrote the record may have left secrets in it; its steps, most of it, hold numbers."""
    if not isinstance(node, dict):
        return node
    rest: dict[str, Any] = redacted({key: value for key, value in node.items() if key != "steps"})
    return rest | {key: node[key] for key in ("steps",) if key in node}


def _parse(path: Path, node: Any) -> Run:
    expect(node, dict, "the file")
    check_run(node, SCHEMA_VERSION)
    names = {key: line(node.get(key), key) for key in ("run_id", "recipe", "engine", "step_kind", "mode", "status")}
    if names["mode"] not in MODES:
        raise ValueError(f"mode is {shown(names['mode'])}, allowed is {', '.join(MODES)}")
    command = _texts(node.get("command"))
    identity = _with_layers(strict(expect(node.get("identity"), dict, "identity"), "identity"), command)
    steps = _steps(expect(node.get("steps"), list, "steps"), is_emulated=names["mode"] == "emulated")
    num_gpus = identity.get("num_gpus", steps.rank_step_time_s.shape[1])
    if not isinstance(num_gpus, int) or not 1 <= num_gpus <= _MOST_RANKS:
        raise ValueError(f"identity.num_gpus is {shown(num_gpus)}, not a number of GPUs")
    return Run(
        **names,
        path=path,
        failure=printable(node["failure"]) if isinstance(node.get("failure"), str) else None,
        num_gpus=num_gpus,
        identity=identity,
        platform=cleaned(node.get("platform")),
        command=command,
        notes=_texts(node.get("notes")),
        started_at=_time(node.get("started_at")),
        steps=steps,
        tolls=cleaned(node.get("tolls")) or None,
        explain=cleaned(node.get("explain")) or None,
    )


def _with_layers(identity: dict[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """`identity` with fewer layers in the model's name, which the first records have in their command only."""
    settings = (setting.lstrip("+").partition("=") for setting in command)
    layers = next((value for key, _, value in settings if key == "train.model.config.num_hidden_layers"), None)
    model = identity.get("model")
    if layers is None or not isinstance(model, str) or "num_hidden_layers" in model:
        return identity
    return identity | {"model": f"{model}, num_hidden_layers {layers}"}


def _texts(node: Any) -> tuple[str, ...]:
    words = node if isinstance(node, list) else []
    return tuple(printable(word) for word in words[:_MOST_WORDS] if isinstance(word, str))


def _steps(rows: list[Any], *, is_emulated: bool) -> Steps:
    if len(rows) > _MOST_STEPS:
        raise ValueError(f"it has {len(rows):,} steps, allowed are {_MOST_STEPS:,}")
    if not set(map(type, rows)) <= {dict}:
        raise ValueError("one of its steps is no object")
    steps = _numbers(rows, "step").astype(np.int64)
    if np.any(np.diff(steps) <= 0):
        raise ValueError("its steps are not in order")
    arm, rounds = _arms(rows) if is_emulated else (np.full(len(rows), -1), np.full(len(rows), -1))
    return Steps(
        step=steps,
        step_time_s=_numbers(rows, "step_time_s"),
        rank_step_time_s=_rank_times(rows),
        padded_tokens=_numbers(rows, "padded_tokens"),
        real_tokens=_numbers(rows, "real_tokens"),
        model_flops=_known(rows, "model_flops"),
        is_warmup=np.array(_column(rows, "is_warmup", (bool,)), dtype=bool),
        arm=arm,
        round=rounds,
        phases_s=_phases(rows),
    )


def _arms(rows: Sequence[dict[str, Any]]) -> tuple[Ints, Ints]:
    tolled = [row.get("is_tolled") for row in rows]
    _check_types(tolled, (bool, type(None)), "is_tolled")
    blocks = [-1 if row.get("block") is None else row["block"] for row in rows]
    _check_types(blocks, (int,), "block")
    names = [row.get("arm") for row in rows if row.get("block") is not None]
    _check_types(names, (str, type(None)), "arm")
    num_arms = max(2, len(set(names)))
    arm = np.array([-1 if value is None else int(value) for value in tolled])
    rounds = _finite(blocks, "block").astype(np.int64) // num_arms  # -1 stays what it is
    measured = {block for block, row in zip(blocks, rows, strict=True) if not row.get("is_warmup")}
    num_blocks = Counter(block // num_arms for block in measured if block >= 0)
    return arm, np.array([one if num_blocks[one] == num_arms else -1 for one in rounds.tolist()], dtype=np.int64)


def _column(rows: Sequence[dict[str, Any]], name: str, kinds: tuple[type, ...]) -> list[Any]:
    try:
        column = [row[name] for row in rows]
    except KeyError:
        raise ValueError(f"a step has no {name}") from None
    _check_types(column, kinds, name)
    return column


def _check_types(column: Iterable[Any], kinds: tuple[type, ...], name: str) -> None:
    unlike = set(map(type, column)) - set(kinds)
    if unlike:
        kind = sorted("null" if one is type(None) else one.__name__ for one in unlike)[0]
        raise ValueError(f"{name} of a step is a {kind}")


def _numbers(rows: Sequence[dict[str, Any]], name: str) -> Floats:
    return _finite(_column(rows, name, (int, float)), name)


def _known(rows: Sequence[dict[str, Any]], name: str) -> Floats:
    values = [row.get(name) for row in rows]
    _check_types(values, (int, float, type(None)), name)
    return _finite(values, name)


def _finite(column: Any, name: str) -> Floats:
    try:
        values = np.array(column, dtype=np.float64)
    except OverflowError:
        raise ValueError(f"{name} of a step is too large a number") from None
    if np.any(np.abs(values) >= LARGEST):  # infinities, as 1e999 is read, included; null became NaN
        raise ValueError(f"{name} of a step is too large a number")
    return values


def _rank_times(rows: Sequence[dict[str, Any]]) -> Floats:
    column = _column(rows, "rank_step_time_s", (list,))
    widths = set(map(len, column))
    if not widths:
        return np.zeros((0, 1))
    if len(widths) > 1 or not 1 <= next(iter(widths)) <= _MOST_RANKS:
        raise ValueError("rank_step_time_s is not of the same ranks in every step")
    flat = [value for row in column for value in row]
    _check_types(flat, (int, float), "rank_step_time_s")
    return _finite(flat, "rank_step_time_s").reshape(len(rows), -1)


def _phases(rows: Sequence[dict[str, Any]]) -> dict[str, Floats]:
    column = [row.get("phases_s") for row in rows]
    _check_types(column, (dict, type(None)), "phases_s")
    names = list(dict.fromkeys(name for phases in column if phases for name in phases))
    if len(names) > _MOST_PHASES:
        raise ValueError(f"it has {len(names)} phases, allowed are {_MOST_PHASES}")
    found = {}
    for name in names:
        line(name, "the name of a phase")
        values = [phases.get(name) if phases else None for phases in column]
        _check_types(values, (int, float, type(None)), f"phase {name}")
        found[name] = _finite(values, f"phase {name}")
    return found


def _time(node: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(node)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _reason(error: BaseException) -> str:
    return printable(getattr(error, "strerror", None) or str(error) or type(error).__name__)
