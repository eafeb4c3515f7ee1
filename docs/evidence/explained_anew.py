"""Where the loss of an explained run comes from, by this version's estimate: `python docs/evidence/explained_anew.py`.

The record holds what the version that made it said; its steps have not changed.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from cctrain.emulation.arms import only, without
from cctrain.emulation.blocks import ALL, OFF
from cctrain.emulation.explain import explain
from cctrain.emulation.rounds import whole_rounds
from cctrain.records import StepRecord

RECORD = Path(__file__).parent / "emulated" / "explain_b300.json"


def shown(middle_s: float, ci95_s: list[float]) -> str:
    """Milliseconds with their interval."""
    low, high = (1e3 * end for end in ci95_s)
    return f"{1e3 * middle_s:6.1f} ms ({low:.1f} to {high:.1f})"


def main() -> None:
    """Print a line for each class, for what is unexplained and for all together."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    injected_s = {row["name"]: row["injected_s"] for row in record["explain"]["classes"]}
    arms = (OFF, ALL, *map(only, injected_s), *map(without, injected_s))
    steps = cast("list[StepRecord]", [SimpleNamespace(**step) for step in record["steps"]])
    found = explain(whole_rounds(steps, arms, {}), tuple(injected_s), injected_s)
    assert found
    for row in found["classes"]:
        print(f"{row['name']:14}{shown(row['cost_s'], row['ci95'])}, {1e3 * row['injected_s']:.1f} ms injected")
    print(f"{'unexplained':14}{shown(found['unexplained_s'], found['unexplained_ci95'])}")
    print(f"{'all together':14}{shown(found['total_s'], found['total_ci95'])}, of {found['num_rounds']} rounds")


if __name__ == "__main__":
    main()
