"""A W&B workspace and a Report over what the runs of a project have logged, as wandb-workspaces objects.

Four questions: what is kept, how long a step takes in which mode, how the loss falls as batches grow, what the tolls
are. Figures of emulated runs stand apart from measured ones and say so. The keys are those of facts.py and wandb.py.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

from cctrain.emulation.profile import CLASSES, emulated_note
from cctrain.errors import RequestError
from cctrain.sinks.wandb import EMULATED_VERDICTS, TOLLS, VERDICTS

PACKAGE = "wandb_workspaces"
INSTALL = "pip install 'cctrain[dashboard]'"
TITLE = "What confidential computing costs"
_TEXT = (
    "The keep ratio is the throughput with CC over that without, 1 is free; the loss is what is missing to 1. "
    "Emulated: tolls injected into a machine without CC, an estimate and never a measurement of CC. "
    "What counts is run.json of each run (its Artifact) and what `cctrain compare` says; this shows copies of it."
)
_MEASURED, _EMULATED, _COMPARED = (
    "Config('mode') in ['off', 'on']",
    "Config('mode') = 'emulated'",
    "JobType = 'compare'",
)


@dataclass(frozen=True, slots=True)
class _Part:
    title: str
    text: str
    runs: tuple[tuple[str, str], ...]
    """Names and filters of the sets of runs that the Report shows it for."""
    panels: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A workspace and a Report that are not saved yet."""

    workspace: Any
    report: Any

    def to_json(self) -> dict[str, Any]:
        """What saving sends, both specs in W&B's own form."""
        # wandb-workspaces has no public way to what it would save.
        view, report = self.workspace._to_model(), self.report._to_model()  # noqa: SLF001
        return {
            "workspace": {"display_name": view.display_name, "type": "project-view", "spec": _plain(view.spec)},
            "report": {"display_name": report.display_name, "type": "runs", "spec": _plain(report.spec)},
        }

    def save(self) -> tuple[str, str]:
        """Save both to W&B. Returns their addresses. Raises whatever W&B does."""
        return self.workspace.save().url, self.report.save().url


def _plain(spec: Any) -> Any:
    return spec.model_dump(mode="json", by_alias=True, exclude_none=True)


def check_installed() -> None:
    """Raises RequestError where wandb-workspaces is missing."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise RequestError(f"dashboard: the package wandb-workspaces is not installed; {INSTALL}")


def default_entity() -> str | None:
    """The W&B account that this machine is logged in to; None where it is to none. Raises whatever W&B does."""
    import wandb

    if wandb.setup().settings.mode not in ("online", "shared", "run"):
        return None
    if not wandb.login(prompt=False, verify=False):
        return None
    return str(wandb.Api(timeout=20).default_entity)


def build(project: str, entity: str | None) -> Dashboard:
    """The dashboard of a project. Nothing is sent."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    owner = entity or "entity"
    parts = _parts()
    workspace = ws.Workspace(
        entity=owner,
        project=project,
        name=TITLE,
        sections=[ws.Section(name=part.title, panels=list(part.panels), is_open=True) for part in parts],
        settings=ws.WorkspaceSettings(x_axis="train/step", smoothing_weight=0, ignore_outliers=False),
        runset_settings=ws.RunsetSettings(groupby=[ws.Config("alike"), ws.Config("mode"), ws.Config("tolls.name")]),
    )
    blocks: list[Any] = [wr.P(_TEXT), wr.TableOfContents()]
    for part in parts:
        runsets = [_runset(name, runs) for name, runs in part.runs]
        blocks += [wr.H2(part.title), wr.P(part.text), wr.PanelGrid(runsets=runsets, panels=list(part.panels))]
    report = wr.Report(entity=owner, project=project, title=TITLE, description="Made by cctrain", blocks=blocks)
    return Dashboard(workspace, report)


def _runset(name: str, runs: str) -> Any:
    """Of the Report's own project. Bars and points are of runs that are alike, never a mean over recipes or batches."""
    import wandb_workspaces.reports.v2 as wr

    alike = [] if runs == _COMPARED else ["config.alike", "config.mode", "config.tolls.name"]
    return wr.Runset(name=name, filters=runs, groupby=alike)


def _parts() -> tuple[_Part, ...]:
    import wandb_workspaces.reports.v2 as wr

    half, full = 12, 24

    def at(x: int, y: int, w: int = half, h: int = 8) -> Any:
        return wr.Layout(x=x, y=y, w=w, h=h)

    def of_table(chart: str, title: str, layout: Any, **fields: str) -> Any:
        query = {"summaryTable": {"tableKey": VERDICTS}}
        return wr.CustomChart(
            query=query, chart_name=chart, chart_fields=fields, chart_strings={"title": title}, layout=layout
        )

    measured, emulated = ("CC off and on", _MEASURED), ("Emulated CC", _EMULATED)
    kept = _Part(
        "Keep ratio by recipe",
        "From `cctrain compare --track wandb`, with intervals over runs; below, emulated runs against their own plain "
        f"steps. {emulated_note()}.",
        (("Comparisons", _COMPARED), emulated),
        (
            of_table("wandb/bar/v0", "Kept of the throughput", at(0, 0), label="compared", value="keep_ratio"),
            wr.BarPlot(
                title="Kept under emulated CC",
                metrics=[wr.SummaryMetric("keep_ratio/value")],
                groupby_aggfunc="mean",
                groupby_rangefunc="minmax",
                layout=at(half, 0),
            ),
            wr.WeavePanelSummaryTable(table_name=VERDICTS, layout=at(0, 8, full)),
            wr.WeavePanelSummaryTable(table_name=EMULATED_VERDICTS, layout=at(0, 16, full)),
        ),
    )
    steps = _Part(
        "Step time by mode",
        "Of the slowest rank. In an emulated run plain and tolled steps take turns.",
        (measured, emulated),
        (
            wr.LinePlot(
                title="Step time",
                x="train/step",
                y=["train/step_time_s"],
                title_y="seconds",
                smoothing_factor=0,
                layout=at(0, 0),
            ),
            wr.BarPlot(
                title="Median step time, steady steps",
                metrics=[wr.SummaryMetric("summary/step_time_s/median")],
                groupby_aggfunc="median",
                groupby_rangefunc="minmax",
                title_x="seconds",
                layout=at(half, 0),
            ),
            wr.BarPlot(
                title="Tokens/s/GPU, padded, steady steps",
                metrics=[wr.SummaryMetric("summary/tokens_per_s_per_gpu/mean")],
                groupby_aggfunc="median",
                groupby_rangefunc="minmax",
                layout=at(0, 8),
            ),
            wr.LinePlot(
                title="Phases of a step",
                x="train/step",
                y=[f"phases/{name}_s" for name in ("data_wait", "forward", "backward", "optimizer", "other")],
                plot_type="stacked-area",
                title_y="seconds",
                smoothing_factor=0,
                layout=at(half, 8),
            ),
        ),
    )
    batch = _Part(
        "Loss against batch",
        "A launch costs the same however much it computes: the more tokens a step, the less is lost. "
        f"{emulated_note()}.",
        (emulated, ("Comparisons", _COMPARED)),
        (
            wr.ScatterPlot(
                title="Lost under emulated CC",
                x=wr.SummaryMetric("summary/tokens_per_step"),
                y=wr.SummaryMetric("keep_ratio/loss"),
                log_x=True,
                layout=at(0, 0),
            ),
            of_table("wandb/scatter/v0", "Lost with CC, as compared", at(half, 0), x="tokens_per_step", y="loss"),
        ),
    )
    tolls = _Part(
        "Tolls",
        "What an emulated run paid for each operation, how often it did so, and, with `explain`, what each came to. "
        f"{emulated_note()}.",
        (emulated,),
        (
            wr.WeavePanelSummaryTable(table_name=TOLLS, layout=at(0, 0, full, 8)),
            wr.BarPlot(
                title="Launches a step",
                metrics=[wr.SummaryMetric("crossings/launches")],
                groupby_aggfunc="mean",
                layout=at(0, 8),
            ),
            wr.BarPlot(
                title="Seconds a step by class of tolls",
                metrics=[wr.SummaryMetric(f"explain/{name}/cost_s") for name in CLASSES],
                groupby_aggfunc="mean",
                layout=at(half, 8),
            ),
        ),
    )
    return kept, steps, batch, tolls
