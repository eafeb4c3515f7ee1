"""The table of docs/evidence/README.md from the records beside it: `python docs/evidence/main_job_table.py`.

Everything is derived anew from the records' steps, so that all rows are judged by one rule, this version's.
"""

import json
from pathlib import Path
from typing import Any

from cctrain.records import StepRecord, Summary
from cctrain.reduce import summarize

FOLDER = Path(__file__).parent / "main-job"


def summary_of(record: dict[str, Any]) -> Summary:
    """The summary of the record's steps."""
    identity = record["identity"]
    summary = summarize([StepRecord(**step) for step in record["steps"]], identity["num_gpus"], identity["gpu"][0])
    assert summary
    return summary


def row(path: Path) -> str:
    """One record as a line of the table; tokens/s only where the run was steady."""
    record = json.loads(path.read_text(encoding="utf-8"))
    summary = summary_of(record)
    tokens, steady = summary.tokens_per_s_per_gpu, summary.steady_state
    fastest = min(step["step_time_s"] for step in record["steps"])
    assert tokens.mean
    assert tokens.ci95
    assert summary.step_time_s.median
    cells = [
        f"[{path.stem}](main-job/{path.name})",
        str(record["identity"]["num_gpus"]),
        str(len(record["steps"])),
        f"{1e3 * summary.step_time_s.median:,.0f} ms ({1e3 * fastest:,.0f} ms)",
        f"{tokens.mean:,.0f} ± {(tokens.ci95[1] - tokens.ci95[0]) / 2:,.0f}" if steady.is_steady else steady.why,
        f"{record['summary']['peak_memory_gib']:.1f} GiB",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print("| record | GPUs | steps | step time, median (fastest) | tokens/s/GPU, padded | peak memory |")
    print("|---|---|---|---|---|---|")
    for record_path in sorted(FOLDER.glob("*.json")):
        print(row(record_path))
