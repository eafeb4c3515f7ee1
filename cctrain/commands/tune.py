"""The verb tune: which setting of a recipe trains most real tokens/s/GPU, found in a few trials.

    python -m cctrain tune recipe=llama8b_peft cc=emulated tolls=b300
    python -m cctrain tune recipe=llama8b_peft tune.global_batch=[8,64] tune.seq_len=[512,1024] data=squad
    python -m cctrain tune recipe=llama70b_peft cc=on tune.over=[micro_batch,layout]
    python -m cctrain tune recipe=llama8b_peft dry_run=true          what may be tried

Settings are those of a run, and are the recipe as it stands: the first trial. What is tried beside it: the micro-batch
(and with it accumulation), activation checkpointing, layout (tensor parallelism; with adapters also whole replicas,
strategy=ddp, where a GPU holds them) and step. The global batch, the length of samples and packing are part of the
training and stay, unless these name others:

  tune.global_batch=[LOW,HIGH]  tune.seq_len=[A,B]  tune.packing=[0,A]     what may become of them
  tune.over=[...]          what may be changed: micro_batch, activation_checkpointing, layout, step
  tune.max_trials=         the most trials (8)
  tune.memory_margin=      fraction of a GPU's memory that stays free (0.1)
  tune.min_keep=           cc=emulated: the smallest keep ratio that is recommended
  tune.trial_timeout_s=    the longest a trial may take (1800)
  tune.repeats=            pairs of further runs, of the recipe and of what was found: the gain's interval, from 2 (0)
  tune.retry_failed=true   try those again that failed, but for those that ran out of memory
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
import sys
from pathlib import Path

from cctrain import in_job
from cctrain.campaign.ledger import Ledger
from cctrain.errors import CctrainError, RequestError, RunError
from cctrain.processes import take_stops_as_ctrl_c
from cctrain.records import finite
from cctrain.report import tuned
from cctrain.sinks import wandb
from cctrain.sinks.tracking import check_sinks
from cctrain.tune import space
from cctrain.tune.point import Observation, Point
from cctrain.tune.request import Request, checked
from cctrain.tune.search import Problem, Result, search
from cctrain.tune.trials import Trials

_STOPPED = 130


def run(arguments: list[str]) -> int:
    """Search, print, write. Returns the exit code; raises CctrainError for what the user must mend."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    if in_job.detect(os.environ) or in_job.first_rank(os.environ):
        raise RequestError("tune starts torchrun itself, once a trial: run it outside of torchrun and srun")
    request = checked(arguments)
    check_sinks(request.config.track.sinks)
    if request.config.dry_run:
        return _dry_run(request)
    take_stops_as_ctrl_c()
    tune, problem = request.config.tune, request.problem
    num_settings = len({problem.base, *problem.points})
    watcher = tuned.Progress(min(tune.max_trials, num_settings), 2 * tune.repeats)
    seen: list[Observation] = []
    with Ledger(request.ledger, verb="tune") as ledger:
        trials = Trials(request, ledger, watcher)

        def trial(point: Point) -> Observation:
            seen.append(trials.run(point))
            watcher.saw(seen[-1])
            return seen[-1]

        try:
            result = search(problem, trial, tune.max_trials)
            pairs = _repeated(trials, result, problem, tune.repeats)
        except KeyboardInterrupt:
            return _halted(request, seen, "stopped; the same command goes on", _STOPPED)
        except CctrainError as error:
            return _halted(request, seen, str(error), error.exit_code)
    return _say(request, result, pairs)


def _repeated(trials: Trials, result: Result, problem: Problem, repeats: int) -> list[tuple[Observation, Observation]]:
    """Pairs of runs of the recipe as it stands and of the best: further ones, by turns; where none are asked for, the
    search's own."""
    first = next((one for one in result.seen if one.point == problem.base), None)
    if not result.best or not first or not first.is_complete or result.best.point == problem.base:
        return []
    pairs = []
    for repeat in range(2, repeats + 2):
        order = (problem.base, result.best.point)
        runs = {point: trials.run(point, repeat) for point in (order if repeat % 2 else order[::-1])}
        if all(one.is_complete for one in runs.values()):
            pairs.append((runs[problem.base], runs[result.best.point]))
    return pairs if repeats else [(first, result.best)]


def _dry_run(request: Request) -> int:
    problem = request.problem
    tuned.print_plan(problem)
    settings = [list(space.settings(request.config.train, problem.base, point)) for point in problem.points]
    first = {"first": list(request.arguments), "max_trials": request.config.tune.max_trials}
    print(json.dumps({"dry_run": True, "ledger": str(request.ledger), **first, "settings": settings}))
    return 0


def _halted(request: Request, seen: list[Observation], why: str, code: int) -> int:
    """What is known so far, and why there is no more."""
    tuned.print_trials(request.problem, seen)
    print(f"cctrain: {why}", file=sys.stderr)
    facts = {"recipe": request.config.recipe.name, "num_trials": len(seen), "why": why, "exit_code": code}
    print(json.dumps({**facts, "chosen": None, "ledger": str(request.ledger)}))
    return code


def _say(request: Request, result: Result, pairs: list[tuple[Observation, Observation]]) -> int:
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
    print(f"page: {html}")
    has_run = any(one.is_complete for one in result.seen)
    code = 0 if result.best else 1 if has_run else RunError.exit_code
    written = {"html": str(html), "png": [str(figure) for figure in figures], "ledger": str(request.ledger)}
    facts = finite({**tuned.facts(answer), **written, "exit_code": code})
    if "wandb" in config.track.sinks and wandb.is_wanted(os.environ) and has_run:
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
