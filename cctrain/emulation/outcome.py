"""What an emulated run came to: the parts of its record that others do not have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cctrain.emulation.arms import CUPTI, arms, explained_classes, only
from cctrain.emulation.blocks import ALL, OFF
from cctrain.emulation.crossings import mean_crossings
from cctrain.emulation.explain import explain
from cctrain.emulation.keep import keep_ratio
from cctrain.emulation.profile import Profile
from cctrain.emulation.rounds import whole_rounds
from cctrain.records import StepRecord, Summary

Crossings = Sequence[Mapping[int, Mapping[str, Any]]]
"""Each rank's by step."""


def of_arm(steps: Sequence[StepRecord], arm: str) -> list[StepRecord]:
    """The steps under one arm."""
    return [step for step in steps if step.arm == arm]


def outcome(
    profile: Profile,
    steps: Sequence[StepRecord],
    tolled: Summary,
    plain: Summary,
    crossings: Crossings,
    *,
    is_explained: bool,
) -> dict[str, Any]:
    """The record's `tolls`, `summary_off`, `keep_ratio`, `crossings` and `explain`, from the summaries of both arms."""
    first_steps = {ALL: tolled.steady_state.first_step, OFF: plain.steady_state.first_step}
    paid = mean_crossings(crossings, [step.step for step in tolled.steady_state.of(of_arm(steps, ALL))])
    counted_by = paid["counted_by"] if paid else CUPTI
    has_graphs = any(step.arm == only("graph_launch") for step in steps)
    every_arm = arms(
        profile, is_explained=is_explained, num_ranks=len(crossings), counted_by=counted_by, has_graphs=has_graphs
    )
    rounds = whole_rounds(steps, every_arm, first_steps)
    kept = keep_ratio(rounds)
    classes = explained_classes(profile, len(crossings), counted_by, has_graphs=has_graphs)
    crossed = mean_crossings(crossings, [step.step for step in plain.steady_state.of(of_arm(steps, OFF))])
    return {
        "summary_off": dataclasses.asdict(plain),
        "keep_ratio": dataclasses.asdict(kept) if kept else None,
        # A plain step's, but for what was injected, which only a tolled one has.
        "crossings": {**crossed, "injected_s": paid["injected_s"]} if crossed and paid else crossed,
        "explain": explain(rounds, classes, paid["injected_s"]) if is_explained and paid else None,
    }
