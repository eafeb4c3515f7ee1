"""The verb campaign: many runs as one, which goes on after a kill, a failure or a reboot where it was.

    python -m cctrain campaign recipe=llama8b_peft,llama8b_sft cc=off,emulated tolls=b300 campaign.repeats=3
    python -m cctrain campaign campaign=seed           the seed post's four rows, CC off and on, beside its losses
    python -m cctrain campaign campaign=tiny           on a CPU, some minutes
    python -m cctrain campaign campaign=seed dry_run=true      the plan, and what of it is done

Settings are those of a run; any may be a list with commas, and every combination is a trial (settings that only
emulated runs read, tolls= and cc.blocks=, go to these). Modes that can be switched in place are taken by turns. Where
CC takes a reboot the order is off, on, off: what the machine is not fit for waits, with exit code 3 and what to do,
and the same command goes on after it. So it does after a kill at any moment; a trial during which the campaign was
killed five times may be what kills it, and is given up.

  campaign=            a file of conf/campaign/; settings on the command line win over its own
  campaign.repeats=    runs of every combination (3, or the preset's)
  campaign.ledger=     what has become of every trial, for people and for the next start (RUN_ROOT/campaign.jsonl, of a
                       preset campaign-NAME.jsonl)
  campaign.retry_failed=true    try those again that were given up
  campaign.allow=      what the comparison lets pass: steady, for runs that are not
  run_root=            where the run directories go (runs/); for a reboot into another system, one that both see

Ends in the comparison of its runs, and as the last line of stdout one JSON object. Exit code: 0 all done and compared,
2 the request is wrong or the runs cannot be compared, 3 the rest waits for another mode of the machine, 4 some trials
were given up, 130 stopped.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cctrain import in_job
from cctrain.campaign.keys import Keys, platform_identity
from cctrain.campaign.ledger import Ledger, Standing, began_in, read
from cctrain.campaign.matrix import Matrix, parse
from cctrain.campaign.plan import Trial, planned
from cctrain.campaign.run import Campaign, settle_killed, standing_of
from cctrain.comparison.compare import Answer, compare
from cctrain.comparison.groups import Options
from cctrain.config import CcMode
from cctrain.errors import CctrainError, PlatformError, RequestError, RunError
from cctrain.load import Run, read_runs
from cctrain.platform import cc, gpu
from cctrain.processes import take_stops_as_ctrl_c
from cctrain.records import finite
from cctrain.report import campaign as report
from cctrain.report import ratios_table
from cctrain.request.run_root import in_hydra

_BY = {
    **{"step": "step", "engine": "engine", "data.seq_len": "sequence", "recipe.model": "model"},
    **{f"train.step_scheduler.{which}_batch_size": "batch" for which in ("local", "global")},
    **{f"train.distributed.{which}_size": "layout" for which in ("tp", "pp", "cp", "dp")},
    "launch.nproc_per_node": "layout",
}
"""Settings that a comparison tells apart in one table."""


def run(arguments: list[str]) -> int:
    """Run what is left, compare what is there. Returns the exit code; raises CctrainError."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    if in_job.detect(os.environ) or in_job.first_rank(os.environ):
        raise RequestError("campaign starts torchrun itself, once a trial: run it outside of torchrun and srun")
    matrix = parse(arguments)
    gpus = gpu.observe()
    if matrix.is_dry:
        return _dry_run(matrix, gpus)
    keys = Keys(platform_identity(gpus))
    known = _keyed(planned(matrix), keys)  # refuses what is wrong before the ledger is made
    take_stops_as_ctrl_c()
    mode = cc.seen_mode(gpus.cc)
    with Ledger(matrix.ledger) as ledger:
        trials = _keyed(planned(matrix, ledger.opened(mode, known)), keys)
        standing = _standing(matrix, ledger, trials)
        halt: CctrainError | None = None
        waits_for, is_stopped = None, False
        num_left = sum(not one.is_settled for one in standing.values())
        num_failed = sum(one.is_failed for one in standing.values())
        if num_left < len(trials):
            given_up = f", {num_failed} given up" if num_failed else ""
            _note(f"{len(trials) - num_left - num_failed} of {_counted(len(trials))} already done{given_up}")
        runnable, too_large = _runnable(trials, standing, keys)
        watcher = report.Progress(len(trials), num_left)
        its_standing = {key: standing[key] for key in runnable}
        campaign = Campaign(runnable, its_standing, ledger, matrix.run_root, lambda one: _command(matrix, one), watcher)
        try:
            waits_for = campaign.run(mode)
        except KeyboardInterrupt:
            is_stopped = True
        except PlatformError as error:
            halt = error
    if waits_for:
        halt = PlatformError(_wait(waits_for, campaign.num_left, gpus))
    halt = halt or too_large
    return _say(matrix, trials, standing, halt, is_stopped=is_stopped)


def _runnable(
    trials: Mapping[str, Trial], standing: Mapping[str, Standing], keys: Keys
) -> tuple[dict[str, Trial], RequestError | None]:
    """The trials without those to come that this machine cannot run, and what to say of these. To try one would only
    use up its tries."""
    runnable, refusals = dict(trials), []
    for key in (key for key, one in standing.items() if not one.is_settled):
        try:
            keys.check_here(trials[key])
        except RequestError as error:
            del runnable[key]
            refusals.append(error)
    if not refusals:
        return runnable, None
    more = f" (and {_counted(len(refusals) - 1)} more likewise)" if len(refusals) > 1 else ""
    return runnable, RequestError(f"{refusals[0]}{more}")


def _command(matrix: Matrix, trial: Trial) -> list[str]:
    return [sys.executable, "-m", "cctrain", *trial.settings, f"run_root={in_hydra(matrix.run_root)}"]


def _keyed(trials: list[Trial], keys: Keys) -> dict[str, Trial]:
    keyed = {keys.key(trial): trial for trial in trials}
    if len(keyed) < len(trials):
        raise RequestError("two trials are the same run: a list names one setting in two ways; leave one out")
    return keyed


def _dry_run(matrix: Matrix, gpus: gpu.Gpus) -> int:
    events, _ = read(matrix.ledger)
    keys = Keys(platform_identity(gpus))
    mode = began_in(events, _keyed(planned(matrix), keys)) or cc.seen_mode(gpus.cc)
    trials = _keyed(planned(matrix, mode), keys)
    standing = standing_of(trials, events, matrix.run_root)
    report.print_plan(trials, standing)
    plan = [
        {"key": key, "settings": trial.settings, "repeat": trial.repeat, "state": report.state(standing[key])}
        for key, trial in trials.items()
    ]
    print(json.dumps({"dry_run": True, "ledger": str(matrix.ledger), "trials": plan}))
    return 0


def _standing(matrix: Matrix, ledger: Ledger, trials: Mapping[str, Trial]) -> dict[str, Standing]:
    """What is done already, with notes on what a reader may wonder at."""
    if ledger.damaged:
        lines = ", ".join(map(str, ledger.damaged))
        _note(f"{matrix.ledger}: line {lines} cannot be read and is left out, as a crash leaves it")
    num_killed = settle_killed(ledger, matrix.run_root)
    if num_killed:
        _note(f"{_counted(num_killed)} begun and not ended by a killed campaign; run again if no record is whole")
    standing = standing_of(trials, ledger.events, matrix.run_root)
    others = {event["key"] for event in ledger.events if event["event"] != "opened"} - set(trials)
    if others:
        _note(
            f"{matrix.ledger} holds {_counted(len(others))} of other settings, or of other GPUs or versions: left out"
        )
    for one in standing.values():
        if matrix.retry_failed:
            one.try_again()
    return standing


def _counted(num: int) -> str:
    return f"{num} trial{'s' * (num != 1)}"


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _wait(wanted: str, num_left: int, gpus: gpu.Gpus) -> str:
    """What to do so that the rest can run."""
    try:
        cc.observed_mode(CcMode(wanted), gpus.cc)
    except PlatformError as error:
        return f"{_counted(num_left)} left, the next with CC {wanted}. {error}; then give the same command again"
    raise AssertionError(f"the machine is in mode {wanted}")


def _say(
    matrix: Matrix,
    trials: Mapping[str, Trial],
    standing: Mapping[str, Standing],
    halt: CctrainError | None,
    *,
    is_stopped: bool,
) -> int:
    """The comparison of what is complete, what failed, and why there is more to do. Returns the exit code."""
    compared, problems = _compare(matrix, trials, standing)
    given_up = {trials[key].label: one for key, one in standing.items() if one.is_failed}
    failed = {label: one.why for label, one in given_up.items()}
    num_left = sum(not one.is_settled for one in standing.values())
    for label, one in given_up.items():
        how = f"killed {len(one.kills)} times" if one.is_deadly else "failed twice"
        print(f"{how}: {label}: {one.why}", file=sys.stderr)
    if given_up:
        problems.append(f"{_counted(len(given_up))} given up; campaign.retry_failed=true tries again")
    if is_stopped:
        halt_text, code = "stopped; the same command goes on", 130
    elif halt:
        halt_text, code = str(halt), halt.exit_code
    else:
        halt_text, code = None, RunError.exit_code if failed else RequestError.exit_code if problems else 0
        for problem in problems:
            print(f"cctrain: {problem}", file=sys.stderr)
    if halt_text:
        for problem in problems:
            print(f"note: {problem}", file=sys.stderr)
        print(f"cctrain: {halt_text}", file=sys.stderr)
    states = [report.state(one) for one in standing.values()]
    facts = {
        "campaign": matrix.name,
        "ledger": str(matrix.ledger),
        "num_trials": len(trials),
        "num_complete": states.count("complete"),
        "num_failed": len(failed),
        "num_left": num_left,
        "failed": failed,
        "runs": [str(matrix.run_root / one.run) for one in standing.values() if one.run],
        "comparison": compared,
        "why": halt_text or ("; ".join(problems) or None),
        "exit_code": code,
    }
    print(json.dumps(finite(facts), allow_nan=False))
    return code


def _compare(
    matrix: Matrix, trials: Mapping[str, Trial], standing: Mapping[str, Standing]
) -> tuple[list[dict[str, Any]], list[str]]:
    """A table for every group of settings that were varied; what was found, and what could not be compared."""
    varied = [key.lstrip("+") for key, values in matrix.axes.items() if len(values) > 1]
    by = tuple(dict.fromkeys(_BY[key] for key in varied if key in _BY))
    groups: dict[tuple[str, ...], list[Path]] = {}
    for key, trial in trials.items():
        run_name = standing[key].run
        rest = tuple(line for line in trial.group if line.lstrip("+").partition("=")[0] not in _BY)
        if run_name:
            groups.setdefault(rest, []).append(matrix.run_root / run_name)
    compared, problems = [], []
    for rest, paths in groups.items():
        if rest:
            print(" ".join(rest))
        answers, refusals = _answers(read_runs(paths), Options(by=by, allow=matrix.allow))
        problems += [" ".join([*rest, refusal]) for refusal in refusals]
        for answer in answers:
            ratios_table.print_answer(answer)
            compared.append({"settings": rest, **ratios_table.facts(answer)})
    return compared, problems


def _answers(runs: list[Run], options: Options) -> tuple[list[Answer], list[str]]:
    """One answer of all; where something speaks against that, one of each recipe that it does not speak against."""
    try:
        return [compare(runs, options)], []
    except RequestError as error:
        recipes = list(dict.fromkeys(run.recipe for run in runs))
        if len(recipes) < 2:
            return [], [str(error)]
    answers, refusals = [], []
    for recipe in recipes:
        found, refused = _answers([run for run in runs if run.recipe == recipe], options)
        answers += found
        refusals += refused
    return answers, refusals
