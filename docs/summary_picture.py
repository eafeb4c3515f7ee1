"""The picture of a run's summary in the README: `python docs/summary_picture.py RUN_JSON OUT.svg`."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import sys
from pathlib import Path

from rich.console import Console

from cctrain.records import StepRecord
from cctrain.reduce import summarize
from cctrain.report.table import print_summary


def main(run_json: Path, out: Path) -> None:
    """Render the table of the record `run_json` as it stands in the terminal."""
    record = json.loads(run_json.read_text(encoding="utf-8"))
    identity, steps = record["identity"], [StepRecord(**step) for step in record["steps"]]
    anew = summarize(steps, identity["num_gpus"], identity["gpu"][0])  # by this version's rules
    assert anew
    record["summary"] |= {key: value for key, value in dataclasses.asdict(anew).items() if value is not None}
    record.setdefault("tolls", None)  # older records lack it, and some fields of steps
    record["steps"] = [dataclasses.asdict(step) for step in steps]
    console = Console(record=True, width=88, file=io.StringIO())
    print_summary(Path("runs") / record["run_id"], record, console)
    console.print()  # the picture cuts off what its last line has below
    command = " ".join(record["command"][:4])
    picture = console.export_svg(title=f"{command} ...")
    picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)  # no font fetched from elsewhere
    out.write_text(picture.replace("Fira Code, monospace", "monospace"), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
