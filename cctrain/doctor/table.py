"""What doctor found, as one table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from cctrain.console import console_of
from cctrain.doctor.fit import Fit
from cctrain.doctor.hurts import Hurt
from cctrain.doctor.judge import Finding

_CAPTION = (
    "memory is an estimate, for micro-batches of the recipe's size and samples of so many tokens. Overrides go behind "
    "`python -m cctrain recipe=NAME`"
)


def print_findings(
    seen: dict[str, Any], mode: str, problem: str | None, findings: Sequence[Finding], console: Console | None = None
) -> None:
    """`seen` is platform.machine's, `problem` why no figure should be taken here."""
    table = Table(title=f"doctor  ·  CC {mode}", caption=_CAPTION, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    num_gpus = len(seen["gpus"]["names"])
    recipes = [(finding.recipe, _fit(finding, num_gpus)) for finding in findings]
    all_the_same = "cc=unverified runs all the same and marks the record"
    problems = [("not fit to measure", f"{problem}. {all_the_same}")] if problem else []
    for section in ([*problems, *_machine(seen)], recipes, _engines(findings), _hurts(findings)):
        for name, text in section:
            table.add_row(name, text)
        table.add_section()
    console_of(console).print(table)


def _machine(seen: dict[str, Any]) -> list[tuple[str, str]]:
    gpus, guest, swiotlb = seen["gpus"], seen["guest"], seen["swiotlb"]
    seen_by = f" ({', '.join(guest['seen'])})" if guest["seen"] else ""
    sizes = [(name, swiotlb[f"{key}_bytes"]) for name, key in (("", "size"), ("used ", "used"), ("peak ", "peak_used"))]
    known = [f"{name}{size / 2**20:,.0f} MiB" for name, size in sizes if size is not None]
    unknown = "size unknown: debugfs is not mounted, or only root may read it"
    parameter = f"swiotlb={swiotlb['parameter']}" if swiotlb["parameter"] else "no kernel parameter"
    offers = seen["multicast"]
    return [
        ("GPUs", _names(gpus)),
        ("driver", f"{gpus['driver']}, CUDA up to {gpus['cuda'] or 'unknown'}" if gpus["driver"] else "none"),
        ("CC of the GPUs", _cc(gpus["cc"], seen["cc"])),
        ("guest", f"{guest['kind'] or 'unknown'}{seen_by}"),
        ("SWIOTLB", f"{', '.join(known) or unknown}; {parameter}"),
        ("TDISP", seen["tdisp"]["state"]),
        ("topology", _topology(gpus["topology"].get("matrix", []))),
        ("multicast", f"offered by {sum(offers)} of {len(offers)} GPUs; never used" if offers else "unknown"),
    ]


def _names(gpus: dict[str, Any]) -> str:
    if not gpus["names"]:
        return "none"
    kinds = list(zip(gpus["names"], gpus["memory_gib"], strict=True))
    return ", ".join(f"{kinds.count(kind)} x {kind[0]}, {kind[1]} GiB" for kind in dict.fromkeys(kinds))


def _cc(settings: dict[str, Any], facts: dict[str, bool | None]) -> str:
    if "missing" in settings:
        return f"{'none' if settings['is_absent'] else 'unknown'} ({settings['missing']})"
    words = {"bounce_buffer": "bounce buffer", "ppcie": "PPCIE", "nvle": "encrypted NVLink"}
    states = {None: "unknown", True: "on", False: "off"}
    said = [f"{words[name]} {states[is_so]}" for name, is_so in facts.items()]
    said.append(f"devtools {states[bool(settings['devtools'])]}")
    if facts["bounce_buffer"] or facts["ppcie"]:
        said.append({None: "ready unknown", 0: "not ready"}.get(settings["ready"], "ready"))
    return f"{', '.join(said)} ({settings['source']})"


def _topology(matrix: list[list[str | None]]) -> str:
    ways = {way or "unknown" for row in matrix for way in row} - {"X"}
    if len(ways) <= 1:
        return f"{ways.pop()} between all GPUs" if ways else "nothing to connect"
    return "; ".join(f"GPU {index}: {' '.join(way or 'unknown' for way in row)}" for index, row in enumerate(matrix))


def _fit(finding: Finding, num_gpus: int) -> str:
    fit = finding.fit
    if fit is None:
        return "runs on the CPU"
    if fit.estimate_gib is None:
        return f"unknown: nothing here says how large the model is, on {_gpus(fit)}"
    too_few = f" ({num_gpus} here)" if 0 < num_gpus < fit.num_ranks else ""
    needed = f"about {fit.estimate_gib:,.0f} GiB a GPU on {_gpus(fit)}{too_few}, {finding.seq_len} tokens"
    return f"{fit.verdict}: {needed}" + (f"\n{' '.join(fit.overrides)}" if fit.overrides else "")


def _gpus(fit: Fit) -> str:
    return f"{fit.num_ranks} GPU{'s' * (fit.num_ranks > 1)}"


def _engines(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    runs = ", ".join(finding.recipe for finding in findings if not finding.not_hf) or "none of these"
    cannot = [f"hf not {finding.recipe}: {'; '.join(finding.not_hf)}" for finding in findings if finding.not_hf]
    everything = ", ".join(finding.recipe for finding in findings)
    return [("engines", "\n".join([f"automodel runs {everything}", f"hf runs {runs}", *cannot]))]


def _hurts(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    recipes: dict[Hurt, list[str]] = {}
    for finding in findings:
        for hurt in finding.hurts:
            recipes.setdefault(hurt, []).append(finding.recipe)
    rows = []
    for hurt, names in sorted(recipes.items(), key=lambda item: item[0].what):
        lines = (f"hurts under CC: {hurt.why}", " ".join(hurt.overrides), f"in {', '.join(names)}")
        rows.append((hurt.what, "\n".join(filter(None, lines))))
    return rows
