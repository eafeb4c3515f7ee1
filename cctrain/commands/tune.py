"""The verb tune: which setting of a recipe trains most real tokens/s/GPU, found in a few trials.

    python -m cctrain tune recipe=llama8b_peft cc=emulated tolls=b300
    python -m cctrain tune recipe=llama8b_peft tune.global_batch=[8,64] tune.seq_len=[512,1024] data=squad
    python -m cctrain tune recipe=llama70b_peft cc=on tune.over=[micro_batch,layout]
    python -m cctrain tune recipe=llama8b_peft dry_run=true          what would be tried, and what is done

Settings are those of a run, and are the recipe as it stands: the first trial. What is tried beside it: the micro-batch
(and with it accumulation), activation checkpointing, layout (tensor parallelism against replicas) and step. The global
batch, the length of samples and packing are part of the training and stay, unless these name others:

  tune.global_batch=[LOW,HIGH]  tune.seq_len=[A,B]  tune.packing=[0,A]     what may become of them
  tune.over=[...]          what may be changed: micro_batch, activation_checkpointing, layout, step
  tune.max_trials=         the most trials (8)
  tune.memory_margin=      fraction of a GPU's memory that stays free (0.1)
  tune.min_keep=           cc=emulated: the smallest keep ratio that is recommended
  tune.trial_timeout_s=    the longest a trial may take (1800)
  tune.repeats=            runs of the recipe and of what was found, for an interval of the gain (1: none)
  tune.ledger=             what has become of every trial (RUN_ROOT/tune.jsonl)

Each trial is a run of its own. One that runs out of memory, hangs or fails costs one trial, and the search goes on. A
model of the step, fitted to the trials, picks the next one and says when no better one is left. After a kill or a
Ctrl-C the same command goes on. Without measure.steps= a trial measures 40 steps, an emulated one what its blocks need.

Prints the trials, the settings to add to the command, and the gain; writes tune-RECIPE.html and .png into run_root. As
the last line of stdout one JSON object. Exit code: 0 found (that the recipe is best as it stands included), 1 nothing
meets the limits, 2 the request is wrong, 3 the machine is not as asked for, 4 every trial failed, 130 stopped.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cctrain import in_job
from cctrain.campaign.keys import Keys, platform_identity
from cctrain.campaign.ledger import Ledger
from cctrain.campaign.run import Campaign, settle_killed
from cctrain.config import CcMode, Config, LaunchKind
from cctrain.emulation.blocks import fewest_steps
from cctrain.errors import CctrainError, RequestError, RunError
from cctrain.platform import cc, gpu
from cctrain.records import finite
from cctrain.report import tuned
from cctrain.request.allowed import check_recipe
from cctrain.request.checks import Layout, check_gpus, check_layout
from cctrain.request.compose import compose_config
from cctrain.request.data_files import check_jsonl
from cctrain.request.recipe import build_recipe, check_shape, is_cpu_recipe
from cctrain.sinks.tracking import check_sinks
from cctrain.tune import space
from cctrain.tune.point import Observation
from cctrain.tune.problem import Gpu, problem_of
from cctrain.tune.search import Problem, Result, search
from cctrain.tune.trials import Trials

_STEPS = 40
_OWN = ("tune", "run_root", "dry_run")
"""Settings of the search, which its trials do not get."""


@dataclass(frozen=True, slots=True)
class _Request:
    """A search that may start: composed and checked."""

    arguments: tuple[str, ...]
    """Of the recipe as it stands."""
    config: Config
    problem: Problem
    gpus: gpu.Gpus
    mode: str
    """That the machine is seen to be in, or emulated."""

    @property
    def run_root(self) -> Path:
        return Path(self.config.run_root).expanduser()

    @property
    def ledger(self) -> Path:
        return Path(self.config.tune.ledger or self.run_root / "tune.jsonl").expanduser()


def run(arguments: list[str]) -> int:
    """Search, print, write. Returns the exit code; raises CctrainError for what the user must mend."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    request = _checked(arguments)
    if request.config.dry_run:
        return _dry_run(request)
    for stop in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(stop) is not signal.SIG_IGN:
            signal.signal(stop, signal.default_int_handler)
    tune, run_root = request.config.tune, request.run_root
    watcher = tuned.Progress(tune.max_trials, 2 * (tune.repeats - 1))
    with Ledger(request.ledger, verb="tune") as ledger:
        ledger.opened(cc.seen_mode(request.gpus.cc))
        settle_killed(ledger, run_root)
        campaign = Campaign(
            trials={},
            standing={},
            ledger=ledger,
            run_root=run_root,
            command=lambda trial: [sys.executable, "-m", "cctrain", *trial.settings, f"run_root={run_root}"],
            watcher=watcher,
            deadline_s=tune.trial_timeout_s,
        )
        keys = Keys(platform_identity(request.gpus))
        trials = Trials(request.arguments, request.config.train, request.problem.base, keys, campaign)
        seen: list[Observation] = []

        def trial(point: Any) -> Observation:
            seen.append(trials.run(point))
            watcher.saw(seen[-1])
            return seen[-1]

        try:
            result = search(request.problem, trial, tune.max_trials)
            pairs = _repeated(trials, result, request.problem, tune.repeats)
        except KeyboardInterrupt:
            return _halted(request, seen, "stopped; the same command goes on", 130)
        except CctrainError as error:
            return _halted(request, seen, str(error), error.exit_code)
    return _say(request, result, pairs)


def _checked(arguments: list[str]) -> _Request:
    """Everything that can be known to fail before the first trial."""
    if in_job.detect(os.environ) or in_job.first_rank(os.environ):
        raise RequestError("tune starts torchrun itself, once a trial: run it outside of torchrun or srun")
    config = compose_config(arguments, build_recipe, is_tuned=True)
    check_shape(config.train, "the recipe with its overrides")
    check_jsonl(config.data)
    if config.launch.kind is not LaunchKind.torchrun or config.launch.num_nodes > 1:
        raise RequestError(
            f"launch={config.launch.kind.value} launch.num_nodes={config.launch.num_nodes}: tune runs its trials on "
            "this machine; allowed is launch=torchrun on one"
        )
    check_sinks(config.track.sinks)
    own = [one for one in arguments if one.lstrip("+~").partition("=")[0].partition(".")[0] not in _OWN]
    if not any(one.startswith("measure.steps=") for one in own):
        is_emulated = config.cc.mode is CcMode.emulated
        own.append(f"measure.steps={fewest_steps(2, config.cc.blocks) if is_emulated else _STEPS}")
    gpus = gpu.observe()
    is_cpu = is_cpu_recipe(config.train)
    num_ranks = config.launch.nproc_per_node or max(1, 0 if is_cpu else len(gpus.names))

    def layout_of(settings: tuple[str, ...]) -> Layout:
        composed = compose_config([*space.joined(own, settings)], build_recipe)
        check_recipe(composed.train, composed.allow_targets)
        return check_layout(composed.train, composed.measure, num_ranks)

    layout = layout_of(())
    if not is_cpu and not config.dry_run:
        check_gpus(num_ranks, len(gpus.names), config.recipe.name)
    mode = cc.observed_mode(config.cc.mode, gpus.cc)
    names = set(gpus.names)
    seen = Gpu(name=names.pop() if len(names) == 1 else None, memory_gib=min(gpus.memory_gib, default=None))
    return _Request(tuple(own), config, problem_of(config, layout, seen, layout_of), gpus, mode)


def _repeated(trials: Trials, result: Result, problem: Problem, repeats: int) -> list[tuple[Observation, Observation]]:
    """Runs of the recipe as it stands and of the best, by turns; the search's own are the first pair."""
    first = next((one for one in result.seen if one.point == problem.base), None)
    if not result.best or not first or not first.is_complete or result.best.point == problem.base:
        return []
    pairs = [(first, result.best)]
    for repeat in range(2, repeats + 1):
        order = (problem.base, result.best.point)
        runs = {point: trials.run(point, repeat) for point in (order if repeat % 2 else order[::-1])}
        if all(one.is_complete for one in runs.values()):
            pairs.append((runs[problem.base], runs[result.best.point]))
    return pairs


def _dry_run(request: _Request) -> int:
    problem = request.problem
    tuned.print_plan(problem)
    settings = [list(space.settings(request.config.train, problem.base, point)) for point in problem.points]
    first = {"first": list(request.arguments), "max_trials": request.config.tune.max_trials}
    print(json.dumps({"dry_run": True, "ledger": str(request.ledger), **first, "settings": settings}))
    return 0


def _halted(request: _Request, seen: list[Observation], why: str, code: int) -> int:
    """What is known so far, and why there is no more."""
    tuned.print_trials(request.problem, seen)
    print(f"cctrain: {why}", file=sys.stderr)
    facts = {"recipe": request.config.recipe.name, "num_trials": len(seen), "why": why, "exit_code": code}
    print(json.dumps({**facts, "chosen": None, "ledger": str(request.ledger)}))
    return code


def _say(request: _Request, result: Result, pairs: list[tuple[Observation, Observation]]) -> int:
    """The table, the settings to copy, the gain and the curve. Returns the exit code."""
    config, problem = request.config, request.problem
    settings = space.settings(config.train, problem.base, result.best.point) if result.best else None
    answer = tuned.Answer(
        recipe=config.recipe.name,
        mode=request.mode,
        arguments=request.arguments,
        problem=problem,
        result=result,
        pairs=tuple(pairs),
        chosen=settings,
    )
    tuned.print_answer(answer)
    html, figures = _write(answer, request.run_root)
    has_run = any(one.is_complete for one in result.seen)
    code = 0 if result.best else 1 if has_run else RunError.exit_code
    written = {"html": str(html), "png": [str(figure) for figure in figures], "ledger": str(request.ledger)}
    facts = finite({**tuned.facts(answer), **written, "exit_code": code})
    if "wandb" in config.track.sinks and has_run:
        from cctrain.sinks.compared import track_search

        track_search(facts, figures, config.track.project, lambda text: print(text, file=sys.stderr))
    print(json.dumps(facts, allow_nan=False))
    return code


def _write(answer: tuned.Answer, run_root: Path) -> tuple[Path, list[Path]]:
    from cctrain.report.tuned_page import write

    try:
        return write(answer, run_root)
    except OSError as error:
        raise RequestError(f"run_root={run_root}: the report cannot be written ({error})") from error
