"""Trials of points as real runs: each a `python -m cctrain` of its own, begun and ended in a campaign's ledger.

What the ledger holds already is read and not run again, so the same search after a kill takes the same path to where it
was. Running out of memory is told from other failures by what the ranks said last, whichever rank it was: the others
are ended with it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cctrain.campaign.keys import Keys, platform_identity
from cctrain.campaign.ledger import Ledger, Standing
from cctrain.campaign.plan import Trial
from cctrain.campaign.run import Campaign, Watcher, settle_killed, standing_of
from cctrain.errors import RequestError
from cctrain.request.run_root import in_hydra
from cctrain.samples import lines_of_ranks, parse_line
from cctrain.tune import space
from cctrain.tune.point import COMPLETE, FAILED, OUT_OF_MEMORY, Observation, Point
from cctrain.tune.request import Request

_RAN_OUT = re.compile(r"out of (?:GPU|host) memory")
"""Said of a recording that broke off, too."""
_KIND = "out_of_memory"
"""What a rank's own error line calls it (worker.py)."""


class Trials:
    """Runs the trial of a point, or finds it in the ledger."""

    def __init__(self, request: Request, ledger: Ledger, watcher: Watcher) -> None:
        """Raises RequestError where the ledger cannot be written. What a killed search left in it is settled."""
        self._arguments, self._recipe = request.arguments, request.config.train
        self._retries = request.config.tune.retry_failed
        self._base, self._keys = request.problem.base, Keys(platform_identity(request.gpus))
        ledger.opened(request.mode)
        settle_killed(ledger, request.run_root)
        run_root = f"run_root={in_hydra(request.run_root)}"
        self._campaign = Campaign(
            trials={},
            standing={},
            ledger=ledger,
            run_root=request.run_root,
            command=lambda trial: [sys.executable, "-m", "cctrain", *trial.settings, run_root],
            watcher=watcher,
            deadline_s=request.config.tune.trial_timeout_s,
        )

    def named(self, point: Point, repeat: int = 1) -> tuple[str, Trial]:
        """The trial of a point, and its key in the ledger."""
        trial = Trial(
            settings=space.joined(self._arguments, space.settings(self._recipe, self._base, point)),
            mode=_mode(self._arguments),
            repeat=repeat,
            phase=0,
            label=point.label + (f", repeat {repeat}" if repeat > 1 else ""),
        )
        return self._keys.key(trial), trial

    def run(self, point: Point, repeat: int = 1) -> Observation:
        """One trial. Raises KeyboardInterrupt and PlatformError as a campaign does."""
        try:
            key, trial = self.named(point, repeat)
        except RequestError as error:
            return Observation(point=point, outcome=FAILED, why=str(error))
        campaign = self._campaign
        if key not in campaign.trials:
            campaign.trials = {**campaign.trials, key: trial}
            campaign.standing |= standing_of({key: trial}, campaign.ledger.events, campaign.run_root)
        standing = campaign.standing[key]
        has_failed = bool(standing.failures) or standing.is_failed  # once has cost one trial, and is not repeated
        if has_failed and self._retries and self._observed(point, key, standing).outcome == FAILED:
            standing.try_again()
            has_failed = False
        if not standing.run and not has_failed:
            campaign.attempt(key)
        return self._observed(point, key, standing)

    def _ends(self, key: str) -> list[dict[str, Any]]:
        return [event for event in self._campaign.ledger.events if event["event"] == "end" and event["key"] == key]

    def _observed(self, point: Point, key: str, standing: Standing) -> Observation:
        run_root = self._campaign.run_root
        if standing.run:
            return observation(point, run_root / standing.run)
        failed = [event for event in self._ends(key) if event.get("outcome") == "failed"]
        run = failed[-1]["run"] if failed else None
        why = standing.why
        is_memory = bool(_RAN_OUT.search(why)) or bool(run and _any_rank_ran_out(run_root / run))
        return Observation(point=point, outcome=OUT_OF_MEMORY if is_memory else FAILED, run=run, why=why)


def observation(point: Point, run_dir: Path) -> Observation:
    """What a whole record says of a trial."""
    record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    summary, plain, kept = record["summary"], record.get("summary_off"), record.get("keep_ratio")
    if not summary or not summary["real_tokens_per_s_per_gpu"]:
        return Observation(point=point, outcome=FAILED, run=run_dir.name, why="no step was measured")
    seconds = summary["step_time_s"]["mean"]
    rank_seconds = seconds * record["identity"]["num_gpus"]
    return Observation(
        point=point,
        outcome=COMPLETE,
        rate=summary["real_tokens_per_s_per_gpu"],
        step_time_s=seconds,
        plain_step_time_s=plain and plain["step_time_s"]["mean"],
        keep_ratio=kept and kept["value"],
        real_tokens=summary["real_tokens_per_s_per_gpu"] * rank_seconds,
        padded_tokens=summary["tokens_per_s_per_gpu"]["mean"] * rank_seconds,
        crossings=_crossings(record.get("crossings")),
        peak_gib=summary["peak_memory_gib"],
        is_steady=summary["steady_state"]["is_steady"],
        run=run_dir.name,
    )


def _crossings(counted: dict[str, Any] | None) -> float | None:
    """All that the host pays for, of a plain step; on a CPU the operators that stand in for it."""
    if not counted:
        return None
    if counted["counted_by"] == "operators":
        return float(counted["operators"])
    return float(sum(counted.get(name) or 0.0 for name in ("launches", "graph_launches", "waits")))


def _any_rank_ran_out(run_dir: Path) -> bool:
    lines = (line for rank in lines_of_ranks(run_dir).values() for line in rank)
    return any(_KIND.encode() in line and (parse_line(line) or {}).get("kind") == _KIND for line in lines)


def _mode(arguments: Sequence[str]) -> str:
    return next((one.partition("=")[2] for one in arguments if one.startswith("cc=")), "auto")
