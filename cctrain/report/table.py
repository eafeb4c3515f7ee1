"""The summary of a run as a table for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cctrain.console import Stdout
from cctrain.records import summed_up
from cctrain.redaction import redacted
from cctrain.report.emulated import crossings_rows, emulated_rows, print_emulated

_LOG_LINES = 15
_CAPTION = "± is the 95 % interval of the mean, from the noise within this run"


def print_summary(run_dir: Path, record: dict[str, Any], console: Console | None = None) -> None:
    """Print what the run reached, from its record; to stdout where no console is given."""
    tolls = f", tolls {record['tolls']['name']}" if record["tolls"] else ""
    title = f"{record['recipe']}  ·  CC {record['mode']}{tolls}  ·  {record['status']}"
    table = Table(title=title, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    rows = _rows(record)
    table.caption = _CAPTION if any("±" in value for _, value in rows) else None
    for name, value in rows:
        table.add_row(name, value)
    console = console or Stdout(soft_wrap=True, markup=False)
    console.print(table)
    if record["tolls"]:
        print_emulated(record, console)
    here = Path.cwd()
    shown = run_dir.relative_to(here) if run_dir.is_relative_to(here) else run_dir
    console.print(f"record: {shown / 'run.json'}", soft_wrap=True, markup=False, highlight=False)


def _rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    summary, identity = record["summary"], record["identity"]
    layout, batch = identity["layout"], identity["batch"]
    axes = ("data", "tensor", "pipeline", "context")
    split = ", ".join(f"{name} {layout[name]}" for name in axes if layout[name] > 1)
    rows = [
        ("ranks", f"{layout['world']} x {', '.join(identity['gpu']) or 'no GPU'}" + (f" ({split})" if split else "")),
        ("batch", f"global {batch['global_batch_size']}, micro {batch['local_batch_size']}"),
    ]
    rows += _step(record["engine"], record["step_kind"], record.get("graphs"))
    if summary is None:
        steps = ("steps", f"{len(record['steps'])}, none of them measured")
        return [*rows, steps, *(("note", note) for note in record["notes"])]
    time, tokens, steady = summary["step_time_s"], summary["tokens_per_s_per_gpu"], summary["steady_state"]
    if steady["is_steady"]:
        rows += [
            ("step time", f"{_seconds(time['median'])} median, mean {_with_interval(time, _seconds)}"),
            ("tokens/s/GPU, padded", _with_interval(tokens, lambda value: f"{value:,.0f}")),
            ("tokens/s/GPU, real", f"{summary['real_tokens_per_s_per_gpu']:,.0f}"),
            *_utilization(summary),
        ]
    if record["tolls"]:
        rows += emulated_rows(record)
    rows += [
        ("steady state", steady["why"]),
        ("phases, share of a step", _phases(summed_up(record))),
        *crossings_rows(record["crossings"]),
        *_straggler(summary.get("straggler"), time["mean"]),
        ("loss, first to last step", _losses(summary) + ", tolled steps" * bool(record["tolls"])),
        *_gpus(summary, record.get("gpu_state")),
        *_seed(summary.get("seed")),
    ]
    return rows + [("note", note) for note in record["notes"]]


def _step(engine: str, step_kind: str, graphs: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Which engine and step it was, where it was not AutoModel's own or that was a question."""
    rows = [("engine", engine)] if engine != "automodel" else []
    if not graphs:
        return rows
    if not graphs.get("num_graphs"):
        return [*rows, ("step", f"{step_kind}, {graphs['why']}")]
    num, eager = graphs["num_graphs"], graphs["eager_micro_batches"]
    said = f"{num} CUDA graph{'s' * (num != 1)}, {graphs['replayed_micro_batches']} micro-batches replayed from them"
    said += f", {eager} run without" + (", layers compiled" if graphs["compiled"] else "")
    return [*rows, ("step", f"{step_kind}: {said}")]


def _utilization(summary: dict[str, Any]) -> list[tuple[str, str]]:
    if summary["mfu"] is None:
        return []
    peak = f"{summary['peak_flops_per_s'] / 1e12:,.0f} TFLOP/s"
    shares = f"MFU {summary['mfu']:.1%}, HFU {summary['hfu']:.1%}"
    return [("FLOPs utilization", f"{shares} (padding and recomputation included), of {peak}, dense BF16")]


def _straggler(straggler: dict[str, Any] | None, step_time_s: float) -> list[tuple[str, str]]:
    if not straggler:
        return []
    cost = f"{_seconds(straggler['cost_s'])} ({straggler['cost_s'] / step_time_s:.1%}) a step"
    return [
        (
            "straggler",
            f"rank {straggler['rank']}, last in {straggler['share']:.0%} of the steps, mostly in {straggler['phase']}; "
            f"the others wait {cost} for it",
        )
    ]


def _gpus(summary: dict[str, Any], state: dict[str, Any] | None) -> list[tuple[str, str]]:
    rows = []
    memory = summary.get("rank_peak_memory_gib")
    if summary["peak_memory_gib"] is not None:
        reserved = f", {max(memory['reserved']):.1f} reserved" if memory else ""
        rows.append(("peak memory", f"{summary['peak_memory_gib']:.1f} GiB allocated{reserved}, largest of the ranks"))
    if not state:
        return rows
    total = state["total"]
    parts = []
    if total["energy_j"] is not None:
        parts.append(f"{total['energy_j'] / state['seconds']:,.0f} W together")
    if summary["joules_per_token"] is not None:
        parts.append(f"{summary['joules_per_token']:.3g} J a real token")
    if total["sm_clock_mhz"]:
        clock = total["sm_clock_mhz"]
        parts.append(f"SM clock {clock['median']:,.0f} MHz ({clock['min']:,.0f} to {clock['max']:,.0f})")
    if total["max_temperature_c"] is not None:
        parts.append(f"at most {total['max_temperature_c']:.0f} °C")
    reasons = [f"{name} {share:.0%}" for name, share in (total["throttle_share"] or {}).items()]
    return [
        *rows,
        ("GPUs while measured", ", ".join([*parts, *(["held back by " + ", ".join(reasons)] * bool(reasons))])),
    ]


def _seed(seed: dict[str, Any] | None) -> list[tuple[str, str]]:
    if not seed:
        return []
    figure = f"{seed['tokens_per_s_per_gpu']:,.0f}, median of what AutoModel {seed['engine_version']} prints from "
    figure += f"its step {seed['first_step'] - 1} on: {seed['over_ours']:.3f} of ours"
    return [("tokens/s/GPU, the seed's way", figure), ("why it differs", seed["why"])]


def _with_interval(estimate: dict[str, Any], show: Any) -> str:
    low, high = estimate["ci95"]
    if low <= 0:  # no time and no rate is
        return f"{show(estimate['mean'])}, ± more than that: the steps are too few for how much they vary"
    return f"{show(estimate['mean'])} ± {show((high - low) / 2)}"


def _seconds(value: float) -> str:
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.3f} s"


def _losses(summary: dict[str, Any]) -> str:
    ends = (summary["first_loss"], summary["last_loss"])
    return " -> ".join("not a number" if loss is None else f"{loss:.3f}" for loss in ends)


def _phases(steady: list[dict[str, Any]]) -> str:
    """Share of each phase of the steady steps' time."""
    steady = [step for step in steady if step["phases_s"]]
    total = sum(sum(step["phases_s"].values()) for step in steady)
    names = list(dict.fromkeys(name for step in steady for name in step["phases_s"]))
    if not total:
        return "unknown"
    shares = {name: sum(step["phases_s"].get(name, 0.0) for step in steady) / total for name in names}
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


def print_failure(run_dir: Path, record: dict[str, Any]) -> None:
    """Print the last lines of the log that says why, to stderr."""
    console = Console(stderr=True, soft_wrap=True, markup=False)
    log = _log_of_failure(run_dir, str(record["failure"]))
    if log is None:
        return
    console.print(f"last lines of {log}:", style="bold")
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    console.print(redacted("\n".join(lines)), markup=False, highlight=False)


def _log_of_failure(run_dir: Path, failure: str) -> Path | None:
    words = failure.split()
    named = run_dir / "logs" / f"rank{words[1].rstrip(':')}.log" if words[:1] == ["rank"] else None
    for log in (named, run_dir / "logs" / "torchrun.log"):
        if log and log.is_file() and log.stat().st_size:
            return log
    return None
