"""The comparisons of an answer by recipe, and each one's sides by name, as figures and tables show them."""

from __future__ import annotations

from dataclasses import dataclass

from cctrain.comparison.arms import Arm
from cctrain.comparison.compare import Answer, Comparison
from cctrain.report import words


@dataclass(frozen=True, slots=True)
class Side:
    """Runs that stand together."""

    name: str
    colour: str
    """Of `plots.canvas.LIGHT`."""
    arms: tuple[Arm, ...]

    @property
    def is_emulated(self) -> bool:
        """Whether its steps are tolled ones."""
        return self.arms[0].mode == "emulated"


def by_title(answer: Answer) -> dict[str, list[Comparison]]:
    """The comparisons under the recipe and setting that they are of."""
    groups: dict[str, list[Comparison]] = {}
    for one in answer.comparisons:
        groups.setdefault(words.title(one), []).append(one)
    return groups


def sides(group: list[Comparison]) -> list[Side]:
    """Every side once; the plain steps of emulated runs are one, whatever their profiles."""
    found: dict[str, dict[tuple[str, str], Arm]] = {}
    for one in group:
        for name, arms in ((_base_name(one), one.base_arms), (_other_name(one), one.other_arms)):
            found.setdefault(name, {}).update({(arm.run.run_id, arm.label): arm for arm in arms})
    colours = iter(["emulated1", "emulated2", "emulated3"] * len(found))
    return [Side(name, _colour(name) or next(colours), tuple(arms.values())) for name, arms in found.items()]


def _base_name(one: Comparison) -> str:
    if one.pairing == "same run":
        return "plain steps"
    return one.base if one.is_of_settings else f"CC {one.base}"


def _other_name(one: Comparison) -> str:
    return one.other if one.is_of_settings or one.other.startswith("emulated") else f"CC {one.other}"


def _colour(name: str) -> str | None:
    return {"plain steps": "off", "CC off": "off", "stock": "off", "automodel": "off", "CC on": "on"}.get(name)
