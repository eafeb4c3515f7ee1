"""The verb train: compose, check, launch, follow, record, print."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cctrain import in_job, launcher, nodes, rundir
from cctrain.config import CcMode, Config, LaunchKind
from cctrain.emulation.arms import CUPTI, OPERATORS, unpaid_note
from cctrain.emulation.injector import check_not_inside, process_environment
from cctrain.emulation.profile import emulated_note, parse_profile
from cctrain.errors import RequestError, RunError
from cctrain.follow import Follower, Rank
from cctrain.platform import cc, gpu, machine, versions
from cctrain.platform.telemetry import Telemetry
from cctrain.processes import ignore_stops, stops_held, take_stops_as_ctrl_c
from cctrain.records import RunRecord, finite
from cctrain.redaction import redacted
from cctrain.request.checks import Layout, check_gpus, check_hub
from cctrain.request.compose import compose_config
from cctrain.request.data_files import check_jsonl, prepare_data
from cctrain.request.graphed import recipe_run, step_chosen
from cctrain.request.identity import identity
from cctrain.request.lost_gradient import lost_gradient
from cctrain.request.recipe import VLM, is_cpu_recipe, located
from cctrain.request.sections import unread
from cctrain.request.startable import check_request, ranks_per_node
from cctrain.sinks.tracking import Tracking, check_sinks

if TYPE_CHECKING:
    from cctrain.reduce import Reduction


@dataclass(frozen=True, slots=True)
class _Request:
    """A run that may start: composed and checked."""

    config: Config
    num_ranks: int
    layout: Layout
    gpus: gpu.Gpus
    mode: str
    nproc_per_node: int
    rendezvous: launcher.Rendezvous | None = None

    @property
    def across_nodes(self) -> dict[str, Any]:
        """What the machines of one run must agree on."""
        return {"mode": self.mode, "gpu": self.gpu_models, "nproc_per_node": self.nproc_per_node}

    @property
    def gpu_models(self) -> list[str]:
        return gpu.models(self.gpus, is_cpu=self.is_cpu)

    @property
    def is_cpu(self) -> bool:
        return is_cpu_recipe(self.config.train)

    @property
    def environment(self) -> dict[str, str]:
        return launcher.rank_environment(is_cpu=self.is_cpu)


def run(arguments: list[str]) -> int:
    """Train as `arguments` (overrides) say. Returns the exit code; raises CctrainError for what the user must mend."""
    job = in_job.detect(os.environ)
    if job:
        if not any(map(_asks_for_dry_run, arguments)):
            return in_job.run_rank(job, arguments)
        if job.rank:
            return 0
    return _run(arguments)


def _asks_for_dry_run(argument: str) -> bool:
    """In the words that OmegaConf takes for true."""
    key, _, value = argument.lstrip("+").partition("=")
    return key == "dry_run" and value.lower() in ("true", "yes", "y", "on", "1")


def _run(arguments: list[str]) -> int:
    with stops_held():
        config = compose_config(arguments)
    check_jsonl(config.data)
    if config.launch.kind is not LaunchKind.torchrun:
        return _submit(config, arguments)
    if config.dry_run:
        return _dry_run(config)
    run_root = Path(config.run_root).expanduser()
    _finish_abandoned(run_root)
    starter = in_job.first_rank(os.environ)
    if starter:
        _check_world(starter.world, config, arguments)
    request = _check(config, world=starter.world if starter else None)
    # A scheduler's SIGTERM and a closed terminal end the run like a Ctrl-C: as a partial record.
    take_stops_as_ctrl_c()
    if request.rendezvous and not request.rendezvous.is_host:
        return nodes.join(run_root, request.rendezvous, request.across_nodes, request.environment)
    expected = {"warmup": config.measure.warmup, "steps": config.measure.most_steps, "ranks": request.num_ranks}
    with stops_held() as let_go:
        run_dir = rundir.create(run_root, config.recipe.name, request.mode, expected)
        follower = Follower(run_dir, config.measure.setup_timeout_s, config.measure.step_timeout_s)
        tracking = Tracking(run_dir, lambda text: print(text, file=sys.stderr))
        try:
            _write_run_dir(request, run_dir, arguments)
            failure = _train(request, follower, starter, tracking, let_go)
        except KeyboardInterrupt:
            failure = "stopped by Ctrl-C, SIGTERM or SIGHUP"
        except OSError as error:
            failure = f"the run directory cannot be written ({error})"
        except Exception as error:  # noqa: BLE001 - whatever it is, the record must not stay "still running"
            traceback.print_exc()
            failure = f"{type(error).__name__}: {error}"
        ignore_stops()
    try:
        return _finish(run_dir, failure, follower.reduction)
    finally:
        tracking.close()


def _check_world(world: int, config: Config, arguments: list[str]) -> None:
    """Ranks that somebody else has started are as many as they are; a recipe's own number does not count."""
    asked = (config.launch.nproc_per_node or 1) * config.launch.num_nodes
    if any(argument.startswith("launch.nproc_per_node=") for argument in arguments) and asked != world:
        raise RequestError(
            f"launch.nproc_per_node={config.launch.nproc_per_node}: srun or torchrun has started {world} "
            f"rank{'s' * (world > 1)} of this job; start as many there, or leave the setting out"
        )


def _finish_abandoned(run_root: Path) -> None:
    """A run whose parent was killed left a record to finish; whoever comes next does it."""
    if not any(run_root.glob("*/running.json")):
        return
    from cctrain import finish

    for run_dir in finish.finish_abandoned(run_root):
        print(f"note: {run_dir} was left by a killed run; its record is finished, as partial", file=sys.stderr)


def _check(config: Config, world: int | None) -> _Request:
    """Everything that can be known to fail before the wait."""
    check_not_inside(os.environ, "with cc=emulated tolls=NAME")
    gpus = gpu.observe()
    is_cpu = is_cpu_recipe(config.train)
    nproc_per_node = ranks_per_node(config, 0 if is_cpu else len(gpus.names))
    num_ranks = world or nproc_per_node * config.launch.num_nodes
    layout = check_request(config, num_ranks)
    if not is_cpu and world is None:
        check_gpus(nproc_per_node, len(gpus.names), config.recipe.name)
    mode = cc.observed_mode(config.cc.mode, gpus.cc)
    if config.measure.crossings:
        cc.check_countable(gpus.cc)
    if (config.tolls or config.measure.crossings) and not is_cpu:
        process_environment(None)  # built here, once, before the wait
    check_hub(config.train, config.weights.path)
    check_sinks(config.track.sinks)
    meeting = None if world else nodes.rendezvous(config.launch)
    return _Request(config, num_ranks, layout, gpus, mode, nproc_per_node, meeting)


def _submit(config: Config, arguments: list[str]) -> int:
    from cctrain.submit import job

    check_request(config, ranks_per_node(config) * config.launch.num_nodes)
    return job.submit(config.launch, arguments, is_cpu=is_cpu_recipe(config.train), dry_run=config.dry_run)


def _dry_run(config: Config) -> int:
    num_gpus = 0 if is_cpu_recipe(config.train) else len(gpu.observe().names)
    nproc_per_node = ranks_per_node(config, num_gpus)
    layout = check_request(config, nproc_per_node * config.launch.num_nodes)
    run_dir = Path(config.run_root).expanduser() / "RUN_DIR"
    recipe = located(recipe_run(config, layout), run_dir)
    try:
        meeting = nodes.rendezvous(config.launch)
    except RequestError:  # where it is only looked at the machines need not be known: as on the one that is named
        endpoint = str(config.launch.rdzv_endpoint)
        is_host = not config.launch.node_rank
        meeting = launcher.Rendezvous(config.launch.num_nodes, endpoint, is_host, endpoint.rpartition(":")[0])
    command = launcher.worker_command(nproc_per_node, run_dir, meeting)
    step, why = step_chosen(config, layout)
    print(f"# {shlex.join(command)}", *([f"# step={step.value}; {why}"] if why else ()), sep="\n")
    print(yaml.safe_dump(recipe, sort_keys=False))
    seen = {"command": command, "layout": dataclasses.asdict(layout), "step": step.value, "recipe": recipe}
    print(json.dumps({"dry_run": True, **seen}))
    return 0


def _write_run_dir(request: _Request, run_dir: Path, arguments: list[str]) -> None:
    """Everything the ranks and a reader of the record need, before anything starts."""
    config = request.config
    recipe = located(recipe_run(config, request.layout), run_dir)
    step, why = step_chosen(config, request.layout)
    record = RunRecord(
        run_id=run_dir.name,
        recipe=config.recipe.name,
        engine=config.engine.name.value,
        step_kind=step.value,
        mode=request.mode,
        status="partial",
        failure="still running",
        identity=identity(
            config,
            request.layout,
            versions=versions.package_versions(config.engine.name.value),
            gpus=request.gpu_models,
            num_gpus=request.num_ranks,
        ),
        platform=machine.observe(request.gpus, request.environment),
        command=redacted(("python", "-m", "cctrain", *arguments)),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        ended_at=None,
        notes=_notes(request),
        steps=(),
        summary=None,
        tolls=_tolls(config.tolls),
        graphs={"why": why} if why else None,
    )
    rundir.begin_record(run_dir, record)
    prepare_data(config.data, run_dir, is_vlm=config.train["recipe"] == VLM)
    rundir.write_text(run_dir / "automodel.yaml", yaml.safe_dump(recipe, sort_keys=False))
    # Last, because ranks started by somebody else wait for it.
    plain = _plain(dataclasses.asdict(config))
    plain["step"]["kind"] = step.value
    rundir.write_json(run_dir / "config.json", {**plain, "train": recipe})


def _notes(request: _Request) -> tuple[str, ...]:
    """What is known before the wait, and said then too."""
    tolls = request.config.tolls
    unpaid = unpaid_note(parse_profile(tolls), OPERATORS if request.is_cpu else CUPTI) if tolls else None
    of_recipe = (unread(request.config.train), lost_gradient(request.config, request.layout))
    notes = tuple(note for note in (unpaid, *of_recipe) if note)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return notes


def _tolls(content: dict[str, Any] | None) -> dict[str, Any] | None:
    if content is None:
        return None
    profile = parse_profile(content)
    return {"name": profile.name, "sha256": profile.sha256, "content": content}


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    return node.value if isinstance(node, Enum) else node


def _train(
    request: _Request,
    follower: Follower,
    starter: in_job.FirstRank | None,
    tracking: Tracking,
    let_go: Callable[[], None],
) -> str | None:
    """Start the ranks, follow them to the end, leave none behind; `let_go` of stops once there is what that takes.
    Returns why the run failed, or None."""
    from cctrain.report.progress import Progress

    measure, run_dir = request.config.measure, follower.run_dir
    process = None
    try:
        if starter:
            starter.announce(run_dir)
        else:
            command = launcher.worker_command(request.nproc_per_node, run_dir, request.rendezvous)
            process = launcher.launch(command, run_dir / "logs" / "torchrun.log", request.environment)
        tracking.start(request.config.track.sinks)
        from cctrain import finish

        follower.reduction = finish.reduction_of(run_dir)
        let_go()
        is_emulated = request.mode == CcMode.emulated.value
        num_gpus = 0 if request.is_cpu else min(request.num_ranks, request.nproc_per_node, len(request.gpus.names))
        with (
            nodes.announcing(run_dir, request.rendezvous, request.across_nodes),
            Progress(measure.warmup + measure.most_steps, request.num_ranks, is_emulated=is_emulated) as progress,
            Telemetry(run_dir, num_gpus),
        ):
            if measure.is_auto:
                from cctrain.enough import Enough

                enough = Enough(run_dir, measure)

            def on_step(ranks: Mapping[int, Rank]) -> None:
                progress.update(ranks)
                tracking.relay()
                if measure.is_auto and follower.reduction:
                    enough.judge(follower.reduction.steps)

            if process:
                return follower.follow(process.poll, on_step)
            assert starter
            # With the first rank gone before it trains, nothing will come.
            return follower.follow(lambda: 1 if starter.is_gone() else None, on_step, is_ours=False)
    finally:
        ignore_stops()
        follower.end_ranks(process)


def _finish(run_dir: Path, failure: str | None, reduction: Reduction | None) -> int:
    """Write the record, print it, and fail where the run did."""
    from cctrain import finish
    from cctrain.report import table

    try:
        record = finish.finish_record(run_dir, failure, reduction)
    except OSError as error:
        has_record = (run_dir / "run.json").exists()
        later = "The samples are whole: the next cctrain finishes the record once there is room" if has_record else ""
        why = f"{failure or 'the run is over'}, but its record cannot be written ({error}). {later}".strip()
        print(json.dumps({"error": why, "exit_code": RunError.exit_code, "run_dir": str(run_dir)}))
        raise RunError(why) from error
    if record["failure"]:
        table.print_failure(run_dir, record)
    table.print_summary(run_dir, record)
    print(json.dumps(finite(_last_line(run_dir, record))))
    if record["failure"]:
        why = record["failure"].rstrip(".")
        raise RunError(f"{why}. Record (partial): {run_dir / 'run.json'}; logs: {run_dir / 'logs'}")
    return 0


def _last_line(run_dir: Path, record: dict[str, Any]) -> dict[str, Any]:
    summary, off = record["summary"], record["summary_off"]
    is_steady = all(one and one["steady_state"]["is_steady"] for one in (summary, *([off] if record["tolls"] else [])))
    return {
        "run_dir": str(run_dir),
        "mode": record["mode"],
        "tokens_per_s_per_gpu": summary and summary["tokens_per_s_per_gpu"]["mean"],
        "step_time_s": summary and summary["step_time_s"]["median"],
        "steady": is_steady,
        "real_tokens_per_s_per_gpu": summary and summary["real_tokens_per_s_per_gpu"],
        **({"keep_ratio": record["keep_ratio"], "tolls": record["tolls"]["name"]} if record["tolls"] else {}),
        **({"explain": record["explain"]} if record["explain"] else {}),
        **({"emulated": emulated_note(is_cpu=record["identity"]["gpu"] == ["cpu"])} if record["tolls"] else {}),
        "status": record["status"],
        "exit_code": RunError.exit_code if record["failure"] else 0,
        **({"error": record["failure"]} if record["failure"] else {}),
    }
