"""The run directory, made and written before anything starts.

`run.json` exists from then on, marked partial, so that a crash leaves a readable record; `running.json` names the
process that will finish it (`finish.py`).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cctrain.errors import RequestError
from cctrain.processes import this_process
from cctrain.records import RunRecord, finite, to_json

_RECORD_BYTES, _STEP_BYTES, _RANK_BYTES = 1 << 20, 4096, 64
"""Size of run.json, generously: the rest, a step, and a rank's time in it."""
_MOST_BYTES = 64 << 20
TRIAL_VARIABLE = "CCTRAIN_TRIAL"
"""Environment variable with which the name of the run directory is to end."""


def create(run_root: Path, recipe: str, mode: str, expected: dict[str, int]) -> Path:
    """A new directory under `run_root`; two runs at once never share one. `expected` counts warmup steps, steps and
    ranks. Raises RequestError where it cannot be made."""
    recipe = re.sub(r"[^\w.-]+", "_", recipe)[:64]
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    run_dir = run_root / f"{stamp}-{recipe}-{mode}-{_ending()}"
    try:
        run_dir.mkdir(parents=True)
        for name in ("samples", "logs"):
            (run_dir / name).mkdir()
        _reserve(run_dir, expected)
        write_json(run_dir / "running.json", {**this_process(), **expected})
    except OSError as error:
        raise RequestError(f"run_root={run_root}: cannot make a run directory there ({error.strerror})") from error
    return run_dir.resolve()


def _ending() -> str:
    """A campaign names its trials, and finds them by it, whatever was killed."""
    return re.sub(r"\W+", "_", os.environ.get(TRIAL_VARIABLE, ""))[:32] or secrets.token_hex(2)


def _reserve(run_dir: Path, expected: dict[str, int]) -> None:
    """Keep room for the record: a disk that samples and logs filled up must still take run.json."""
    num_steps = expected["warmup"] + expected["steps"]
    record_bytes = _RECORD_BYTES + num_steps * (_STEP_BYTES + _RANK_BYTES * expected["ranks"])
    room = min(record_bytes, _MOST_BYTES, shutil.disk_usage(run_dir).free // 4)
    (run_dir / ".reserve").write_bytes(os.urandom(room))  # zeros would hold nothing where the disk compresses


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON; a reader sees the old file or the new one, never half of it."""
    write_text(path, json.dumps(finite(content), allow_nan=False, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace `path` in one step."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
    except OSError:
        part.unlink(missing_ok=True)
        raise
    part.replace(path)


def begin_record(run_dir: Path, record: RunRecord) -> None:
    """Write the record of a run that has not started yet."""
    write_text(run_dir / "run.json", to_json(record))
