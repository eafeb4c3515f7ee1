"""The order of a campaign's trials.

Drift of a machine must not look like a mode's cost. So modes that can be switched in place (off, emulated) are taken by
turns, every second round backwards; and where CC takes a reboot, the mode that the campaign began in is taken before
and after the other: off, on, off. Such a bracket is a phase, and phases are taken one after the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from cctrain.campaign.matrix import Matrix

_ONLY_EMULATED = ("tolls", "cc.blocks")
"""Settings that a run with cc=off or on refuses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of a campaign."""

    settings: tuple[str, ...]
    """Of `python -m cctrain`, all but run_root."""
    mode: str
    """The value of cc=."""
    repeat: int
    """From 1."""
    phase: int
    """From 0; trials of the next wait for all of this."""
    label: str
    """What tells it from the others, for people."""
    group: tuple[str, ...] = ()
    """Settings other than recipe, mode and tolls that were varied: what is compared stays within one such group."""

    @property
    def machine(self) -> str | None:
        """The mode that the machine must be in; None for any."""
        return {"off": "off", "emulated": "off", "on": "on"}.get(self.mode)


def planned(matrix: Matrix, first: str = "off") -> list[Trial]:
    """Every trial once, in order; `first` is the mode of the machine that the campaign began in."""
    in_place = tuple(mode for mode in matrix.modes if mode != "on")
    sides = {"off": in_place, "on": tuple(mode for mode in matrix.modes if mode == "on")}
    rounds = range(1, matrix.repeats + 1)
    if not all(sides.values()):
        return [trial for number in rounds for trial in _round(matrix, matrix.modes, number, 0)]
    first, other = ("on", "off") if first == "on" else ("off", "on")
    half = (matrix.repeats + 1) // 2
    brackets = ((first, rounds[:half]), (other, rounds), (first, rounds[half:]))
    return [
        trial
        for phase, (side, numbers) in enumerate(brackets)
        for number in numbers
        for trial in _round(matrix, sides[side], number, phase)
    ]


def _round(matrix: Matrix, modes: tuple[str, ...], number: int, phase: int) -> Iterator[Trial]:
    """One repeat of every cell; a cell's modes are neighbours in time, forwards and backwards by turns."""
    axes = {key: values for key, values in matrix.axes.items() if key != "cc" and key not in _ONLY_EMULATED}
    varied = [key for key, values in matrix.axes.items() if len(values) > 1]
    for cell in itertools.product(*(values or ("",) for values in axes.values())):
        common = dict(zip(axes, cell, strict=True))
        arms = [arm for mode in modes for arm in _arms(matrix, mode)]
        for arm in arms if number % 2 else reversed(arms):
            settings = {**common, **arm}
            lines = tuple(f"{key}={value}" if matrix.axes.get(key, True) else key for key, value in settings.items())
            named = [line for line, key in zip(lines, settings, strict=True) if key in (*varied, "recipe", "cc")]
            group = [line for line, key in zip(lines, settings, strict=True) if key in varied and key in axes]
            yield Trial(
                settings=lines,
                mode=arm["cc"],
                repeat=number,
                phase=phase,
                label=f"{' '.join(named)} repeat {number}",
                group=tuple(line for line in group if not line.startswith("recipe=")),
            )


def _arms(matrix: Matrix, mode: str) -> list[dict[str, str]]:
    """A mode's own settings: emulated has tolls, of which there may be several."""
    if mode != "emulated":
        return [{"cc": mode}]
    own = {key: matrix.axes[key] for key in _ONLY_EMULATED if key in matrix.axes}
    return [{"cc": mode, **dict(zip(own, values, strict=True))} for values in itertools.product(*own.values())]
