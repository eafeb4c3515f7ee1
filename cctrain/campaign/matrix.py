"""A campaign's command line: settings as for a run, of which any may be a list with commas, an axis of the matrix.

recipe=llama8b_peft,llama8b_sft cc=off,on campaign.repeats=3      2 x 2 x 3 trials
campaign=seed run_root=/shared/runs                               a file of conf/campaign/; settings override its own
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cctrain.comparison.comparable import JUDGED
from cctrain.errors import RequestError
from cctrain.nearest import did_you_mean
from cctrain.packaged import CONF
from cctrain.request.run_root import plain_path

_CAMPAIGN_KEYS = ("campaign", "campaign.repeats", "campaign.ledger", "campaign.retry_failed", "campaign.allow")
OWN_KEYS = (*_CAMPAIGN_KEYS, "dry_run", "run_root")
MODES = ("off", "on", "emulated", "auto", "unverified")
_DEFAULT_REPEATS = 3
_MOST_REPEATS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """What is to be run, before it has an order."""

    name: str | None
    """The preset's; None for a campaign of one's own."""
    axes: dict[str, tuple[str, ...]]
    """Every setting with its values, most often one; an argument that is no `key=value` has none."""
    repeats: int
    run_root: Path
    ledger: Path
    retry_failed: bool
    """Try those again that were given up."""
    allow: tuple[str, ...]
    """What the comparison lets pass, as `compare --allow` does."""
    is_dry: bool

    @property
    def modes(self) -> tuple[str, ...]:
        """The values of cc=."""
        return self.axes.get("cc", ("auto",))


def presets() -> list[str]:
    """The files of conf/campaign/."""
    return sorted(path.stem for path in (CONF / "campaign").glob("*.yaml"))


def parse(arguments: list[str]) -> Matrix:
    """Raises RequestError where `arguments` are no matrix."""
    given: dict[str, tuple[str, ...]] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if argument.startswith("-") or not (equals or argument.startswith("~")):
            raise RequestError(f"campaign: got {argument}: settings are written key=value, lists as key=one,two")
        if key in given:
            raise RequestError(f"{key} is given twice: write its values as one list, {key}=one,two")
        if key.startswith("campaign") and key not in OWN_KEYS:
            meant = did_you_mean(key, _CAMPAIGN_KEYS)
            raise RequestError(f"unknown key {key}: allowed is {', '.join(_CAMPAIGN_KEYS)}.{meant}")
        if f"campaign.{key}" in _CAMPAIGN_KEYS:
            raise RequestError(f"unknown key {key}. Did you mean campaign.{key}?")
        given[key] = _values(argument, value) if equals else ()
    name = _single(given, "campaign", "")
    preset = _preset(name) if name else {}
    axes = {**preset.get("settings", {}), **{key: values for key, values in given.items() if key not in OWN_KEYS}}
    if not axes.get("recipe"):
        raise RequestError(f"no recipe given: add recipe=ONE,TWO or campaign=NAME, one of {', '.join(presets())}")
    _check_modes(axes.get("cc", ("auto",)))
    if len(blocks := axes.get("cc.blocks", ())) > 1:
        raise RequestError(
            f"cc.blocks={','.join(blocks)}: allowed is one number, as runs of other blocks measure the same thing and "
            "would count as its repeats"
        )
    run_root = plain_path(_single(given, "run_root", "runs"), "for the verb campaign")
    file = f"campaign-{name}.jsonl" if name else "campaign.jsonl"
    return Matrix(
        name=name or None,
        axes=axes,
        repeats=_repeats(_single(given, "campaign.repeats", str(preset.get("repeats", _DEFAULT_REPEATS)))),
        run_root=run_root,
        ledger=Path(_single(given, "campaign.ledger", str(run_root / file))).expanduser(),
        retry_failed=_flag(given, "campaign.retry_failed"),
        allow=_allow(given.get("campaign.allow", tuple(preset.get("allow", ())))),
        is_dry=_flag(given, "dry_run"),
    )


def split(value: str) -> list[str]:
    """At the commas that stand in no bracket and no quote."""
    parts, depth, quote = [""], 0, ""
    for letter in value:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _values(argument: str, value: str) -> tuple[str, ...]:
    values = tuple(split(value))
    if len(values) > 1 and not all(values):
        raise RequestError(f"{argument}: a list has a value between any two commas, and no spaces")
    if len(set(values)) < len(values):
        raise RequestError(f"{argument}: a value is named twice; campaign.repeats=N repeats every trial")
    return values


def _single(given: dict[str, tuple[str, ...]], key: str, default: str) -> str:
    values = given.get(key, (default,))
    if len(values) != 1 or (key in given and not values[0]):
        raise RequestError(f"{key}={','.join(values)}: allowed is one value")
    return values[0]


def _repeats(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _MOST_REPEATS:
        raise RequestError(f"campaign.repeats={text}: allowed is a whole number from 1 to {_MOST_REPEATS}")
    return int(text)


def _flag(given: dict[str, tuple[str, ...]], key: str) -> bool:
    text = _single(given, key, "false").lower()
    if text not in ("true", "false"):
        raise RequestError(f"{key}={text}: allowed is true or false")
    return text == "true"


def _allow(names: tuple[str, ...]) -> tuple[str, ...]:
    """Known before hours of trials, but for fields of `identity`, which the runs bring. A list may have brackets."""
    if len(names) == 1 and names[0].startswith("[") and names[0].endswith("]"):
        names = tuple(name.strip(" '\"") for name in split(names[0][1:-1]) if name.strip())
    for name in names:
        first, *rest = name.split(".")
        if name not in JUDGED and not (first == "identity" and rest and all(rest)):
            allowed = (*JUDGED, "identity.FIELD")
            raise RequestError(f"campaign.allow={name}: allowed is {', '.join(allowed)}.{did_you_mean(name, allowed)}")
    return names


def _check_modes(modes: tuple[str, ...]) -> None:
    for mode in modes:
        if mode not in MODES:
            raise RequestError(f"cc={mode}: allowed is {', '.join(MODES)}.{did_you_mean(mode, MODES)}")
    loose = [mode for mode in modes if mode in ("auto", "unverified")]
    if loose and len(modes) > 1:
        raise RequestError(f"cc={','.join(modes)}: {loose[0]} takes any mode and stands alone; name off, on, emulated")


def _preset(name: str) -> dict[str, Any]:
    """A file of conf/campaign/: `settings` with a value or a list of them each, `repeats`, `allow`."""
    if name not in presets():
        raise RequestError(f"campaign={name}: allowed is {', '.join(presets())}.{did_you_mean(name, presets())}")
    content = yaml.safe_load((CONF / "campaign" / f"{name}.yaml").read_text(encoding="utf-8"))
    settings = {
        key: tuple(str(each) for each in (value if isinstance(value, list) else [value]))
        for key, value in content["settings"].items()
    }
    return {**content, "settings": settings}
