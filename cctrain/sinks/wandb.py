"""Weights & Biases: one W&B run per repeat, grouped by comparison, the mode as its job type; and a run of a comparison.

Live where there is a login, else offline in the run directory, from where `wandb sync` sends it; WANDB_MODE decides
where it is set. W&B's own host and GPU readings are off, so as not to disturb what is measured, and so are its copies
of the code, of the git remote and of the terminal, which may hold secrets.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cctrain.errors import one_line
from cctrain.redaction import redacted
from cctrain.sinks.sink import DEFAULT_PROJECT, LOG, End, Say, Sink, SinkError, Start, Values

PACKAGE = "wandb"
INSTALL = "pip install wandb"

_INIT_S, _FINISH_S = 20, 30
"""How long W&B's server may take to answer at the start, before the run goes on offline; and to take the rest at the
end, before it stays on this disk. Both together are less than `tracking.CLOSE_S`."""
_SETTINGS = {
    "quiet": True,  # else it asks the server for the login's name first, and waits for that too
    "console": "off",
    "x_disable_stats": True,
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "symlink": False,
    "init_timeout": _INIT_S,
    "finish_timeout": _FINISH_S,
    "finish_timeout_raises": True,
}
VERDICTS, EMULATED_VERDICTS, TOLLS = "verdicts", "verdicts_emulated", "tolls"
"""Names of the tables. Emulated figures never stand in one chart with measured ones."""
TRIALS = "trials"
TRIAL_COLUMNS = ("outcome", "rate", "keep_ratio", "step_time_s", "real_tokens", "peak_gib", "is_steady", "run", "why")
"""What the table of a search holds beside the settings of each trial."""
_NOT_SENT = re.compile(r"wandb: (?:WARNING|ERROR) (Fatal error while uploading data|.*\b[Ff]ailed to upload\b.*)")
VERDICT_COLUMNS = (
    "compared",
    "recipe",
    "keep_ratio",
    "ci95_low",
    "ci95_high",
    "loss",
    "verdict",
    "num_runs",
    "tokens_per_step",
    "why",
)


def is_wanted(environment: Mapping[str, str]) -> bool:
    """False where W&B itself is told to do nothing."""
    return environment.get("WANDB_MODE") != "disabled"


def open_sink(say: Say) -> Sink:
    """A W&B run that has not begun."""
    return _Run(say)


class _Run:
    def __init__(self, say: Say) -> None:
        self._say = say
        self._run: Any = None
        self._log = Path()

    def begin(self, start: Start) -> None:
        """Open the run. Where the server does not answer it goes on offline."""
        self._log = start.run_dir / LOG.format(name="wandb")
        self._run = _opened(
            self._say,
            start.run_dir,
            project=start.project,
            name=start.name,
            group=start.group,
            job_type=start.job_type,
            tags=list(start.tags),
            config=dict(start.config),
        )
        for keys in ("train/*", "phases/*"):
            self._run.define_metric(keys, step_metric="train/step")
        if start.tolls:
            self._run.log({TOLLS: _table(("toll", "value", "source"), start.tolls)})

    def step(self, step: int, values: Values) -> None:
        """Log one step, on the axis train/step."""
        self._run.log({"train/step": step, **values})

    def end(self, end: End) -> None:
        """Put the results into W&B's summary and the files into an Artifact."""
        self._run.summary.update(dict(end.results))
        try:
            if end.files:
                self._log_files(end.files)
        finally:
            _finish(self._run, exit_code=0 if end.is_complete else 1)
        lost = _NOT_SENT.search(self._log.read_text(encoding="utf-8", errors="replace")) if self._log.exists() else None
        if lost:  # W&B raises nothing where its server refuses data for good
            self._say("warning", f"{lost[1]} (`{_sync_command(self._run)}` sends it again)")

    def _log_files(self, files: Sequence[Path]) -> None:
        import wandb

        artifact = wandb.Artifact(f"run-{self._run.id}", type="cctrain-run", metadata={"run": self._run.name})
        for file in files:
            artifact.add_file(str(file), name=file.name, policy="immutable")  # no copy: nobody writes them any more
        self._run.log_artifact(artifact)


def log_comparison(
    facts: Mapping[str, Any], figures: Sequence[Path], out: Path, say: Say, *, project: str | None = None
) -> None:
    """A W&B run of job type `compare`: `facts`, as `compare --json` prints them, as a table of verdicts, and figures.

    An offline run is written under `out`. Raises whatever W&B does.
    """
    import wandb

    clean: dict[str, Any] = redacted(dict(facts))
    comparisons = clean["comparisons"]
    recipes = sorted({one["recipe"] for one in comparisons})
    emulated = [one for one in comparisons if one["is_emulated"]]
    measured = [one for one in comparisons if not one["is_emulated"]]
    kinds = [kind for kind, some in (("measured", measured), ("emulated", emulated)) if some]
    run = _opened(
        say,
        out,
        project=project,
        name=f"compare {', '.join(recipes)} ({' and '.join(kinds)})",
        group="compare",
        job_type="compare",
        tags=[tag[:64] for tag in ("compare", *recipes, *kinds)],
        config={key: clean[key] for key in ("margin", "allowed", "notes")} | {"comparisons": comparisons},
    )
    for name, rows in ((VERDICTS, measured), (EMULATED_VERDICTS, emulated)):
        if rows:
            run.log({name: _table(VERDICT_COLUMNS, [_verdict_row(one) for one in rows])})
    if figures:
        run.log({f"figures/{figure.stem}": wandb.Image(str(figure)) for figure in figures})
    worst = {key: clean[key] for key in ("keep_ratio", "verdict", "is_emulated", "num_runs", "why")}
    low, high = clean["ci95"] or (None, None)
    results = {**worst, "ci95_low": low, "ci95_high": high, "loss": 1 - clean["keep_ratio"]}
    run.summary.update({f"compare/{key}": value for key, value in results.items() if value is not None})
    _finish(run, exit_code=0)


def log_search(
    facts: Mapping[str, Any], figures: Sequence[Path], out: Path, say: Say, *, project: str | None = None
) -> None:
    """A W&B run of job type `tune`: `facts`, as `tune` prints them, as a table of trials, and figures.

    An offline run is written under `out`. Raises whatever W&B does.
    """
    import wandb

    clean: dict[str, Any] = redacted(dict(facts))
    trials = clean.pop("trials")
    run = _opened(
        say,
        out,
        project=project,
        name=f"tune {clean['recipe']} ({clean['mode']})",
        group="tune",
        job_type="tune",
        tags=["tune", clean["recipe"][:64], clean["mode"]],
        config={key: clean[key] for key in ("recipe", "mode", "chosen", "command", "why")},
    )
    rows = [[*one["point"].values(), *(one[name] for name in TRIAL_COLUMNS)] for one in trials]
    run.log({TRIALS: _table((*trials[0]["point"], *TRIAL_COLUMNS), rows)})
    if figures:
        run.log({f"figures/{figure.stem}": wandb.Image(str(figure)) for figure in figures})
    names = ("real_tokens_per_s_per_gpu", "keep_ratio", "gain", "num_trials")
    run.summary.update({f"tune/{name}": clean[name] for name in names if clean[name] is not None})
    _finish(run, exit_code=0)


def _verdict_row(one: Mapping[str, Any]) -> list[Any]:
    low, high = one["ci95"] or (None, None)
    recipe = ", ".join(part for part in (one["recipe"], one["setting"]) if part)
    numbers = [one["keep_ratio"], low, high, one["loss"], one["verdict"], one["num_runs"], one["tokens_per_step"]]
    return [f"{recipe}: {one['other']} / {one['base']}", recipe, *numbers, one["why"]]


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    import wandb

    return wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)


def _opened(say: Say, folder: Path, *, project: str | None, **about: Any) -> Any:
    """A W&B run, live if possible. An offline one lies under `folder` whole, with all that `wandb sync` needs."""
    base = Path(os.environ.setdefault("WANDB_DIR", str(folder))) / "wandb"
    for name in ("DATA", "CACHE"):
        os.environ.setdefault(f"WANDB_{name}_DIR", str(base / name.lower()))
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # an offline run sends nothing to anybody
    os.environ.pop("WANDB_SERVICE", None)  # of a program that started us; it may be gone before we are done
    import wandb

    about |= {
        "project": project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
        "settings": wandb.Settings(**_SETTINGS | _own_patience()),
    }
    mode: Any = wandb.setup().settings.mode
    kind, why = "note", f"{mode}, as it is set to be"
    if mode in ("online", "shared", "run") and not wandb.login(prompt=False, verify=False):
        mode, why = "offline", "no login here (`wandb login`, or WANDB_API_KEY), so the run is kept offline"
    try:
        run = wandb.init(mode=mode, **about)
    except Exception as error:  # noqa: BLE001 - no answer, a wrong key, a full quota: what is known is kept here
        text = f"{one_line(error)[:200]} ({type(error).__name__})"
        kind, why = "warning", f"W&B did not take the run, so it is kept offline: {text}"
        run = wandb.init(mode="offline", **about)
    say(kind, f"{why}; `{_sync_command(run)}` sends it" if run.offline else run.url or why)
    return run


def _own_patience() -> dict[str, float]:
    """Waits that the user has set."""
    names = {key: f"WANDB_{key.upper()}" for key in ("init_timeout", "finish_timeout")}
    return {key: float(os.environ[name]) for key, name in names.items() if os.environ.get(name)}


def _sync_command(run: Any) -> str:
    place, here = Path(run.dir).parent, Path.cwd()
    return f"wandb sync {place.relative_to(here) if place.is_relative_to(here) else place}"


def _finish(run: Any, *, exit_code: int) -> None:
    try:
        run.finish(exit_code=exit_code)
    except Exception as error:
        what = "in the time given" if isinstance(error, TimeoutError) else f"({type(error).__name__} {error})"
        raise SinkError(f"not all was sent {what}; `{_sync_command(run)}` sends the rest") from error
