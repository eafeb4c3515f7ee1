"""The table of docs/evidence/README.md from the records beside it: `python docs/evidence/main_job_table.py`."""

import json
from pathlib import Path

FOLDER = Path(__file__).parent / "main-job"


def row(path: Path) -> str:
    """One record as a line of the table; tokens/s only where the run was steady."""
    record = json.loads(path.read_text(encoding="utf-8"))
    summary = record["summary"]
    tokens, step_time, steady = summary["tokens_per_s_per_gpu"], summary["step_time_s"], summary["steady_state"]
    fastest = min(step["step_time_s"] for step in record["steps"])
    low, high = tokens["ci95"]
    cells = [
        f"[{path.stem}](main-job/{path.name})",
        str(record["identity"]["num_gpus"]),
        str(len(record["steps"])),
        f"{1e3 * step_time['median']:,.0f} ms ({1e3 * fastest:,.0f} ms)",
        f"{tokens['mean']:,.0f} ± {(high - low) / 2:,.0f}" if steady["is_steady"] else steady["why"],
        f"{summary['peak_memory_gib']:.1f} GiB",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print("| record | GPUs | steps | step time, median (fastest) | tokens/s/GPU, padded | peak memory |")
    print("|---|---|---|---|---|---|")
    for record_path in sorted(FOLDER.glob("*.json")):
        print(row(record_path))
