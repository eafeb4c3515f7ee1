"""A search that may start: the command line composed and checked, before any trial."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cctrain import stats
from cctrain.config import DEFAULT_BLOCKS, Config, LaunchKind, StepKind
from cctrain.emulation.blocks import fewest_steps
from cctrain.errors import RequestError
from cctrain.platform import cc, gpu
from cctrain.request.checks import Layout, check_gpus, check_hub
from cctrain.request.compose import compose_config
from cctrain.request.data_files import check_jsonl
from cctrain.request.recipe import is_cpu_recipe
from cctrain.request.startable import check_request, ranks_per_node
from cctrain.tune import space
from cctrain.tune.problem import Gpu, problem_of
from cctrain.tune.search import Problem

_STEPS = 40
"""Measured in a trial, where nothing else is asked for; emulated ones measure what their blocks and a verdict on
steadiness need."""
_ARMS = 2
"""Of an emulated run: plain and tolled."""
_OWN = ("tune", "run_root", "dry_run")
"""Settings of the search, which its trials do not get."""


@dataclass(frozen=True, slots=True)
class Request:
    """A search that may start."""

    arguments: tuple[str, ...]
    """Of the recipe as it stands."""
    config: Config
    problem: Problem
    gpus: gpu.Gpus
    mode: str
    """That the machine is seen to be in, or emulated."""

    @property
    def run_root(self) -> Path:
        """Where the trials' run directories go."""
        return Path(self.config.run_root).expanduser()

    @property
    def ledger(self) -> Path:
        """What has become of every trial."""
        return Path(self.config.tune.ledger or self.run_root / "tune.jsonl").expanduser()


def checked(arguments: list[str]) -> Request:
    """Raises RequestError and PlatformError for what can be known to fail."""
    arguments = [*arguments, *_steps(arguments)]
    config = compose_config(arguments, is_tuned=True)
    check_jsonl(config.data)
    if config.launch.kind is not LaunchKind.torchrun or config.launch.num_nodes > 1:
        raise RequestError(
            f"launch={config.launch.kind.value} launch.num_nodes={config.launch.num_nodes}: tune runs its trials on "
            "this machine; allowed is launch=torchrun on one"
        )
    if config.step.kind is StepKind.auto:
        raise RequestError("step=auto: tune tries stock and graphed itself; allowed is either of them, to begin with")
    own = _of_a_trial(arguments, config)
    gpus = gpu.observe()
    is_cpu = is_cpu_recipe(config.train)
    num_ranks = ranks_per_node(config, 0 if is_cpu else len(gpus.names))

    def layout_of(settings: tuple[str, ...]) -> Layout:
        composed = compose_config([*space.joined(own, settings)])
        return check_request(composed, num_ranks)

    layout = layout_of(())
    if not config.dry_run:
        if not is_cpu:
            check_gpus(num_ranks, len(gpus.names), config.recipe.name)
        check_hub(config.train, config.weights.path)
    mode = cc.observed_mode(config.cc.mode, gpus.cc)
    names = set(gpus.names)
    seen = Gpu(name=names.pop() if len(names) == 1 else None, memory_gib=min(gpus.memory_gib, default=None))
    return Request(tuple(own), config, problem_of(config, layout, seen, layout_of), gpus, mode)


def _steps(arguments: list[str]) -> list[str]:
    """How many a trial measures, where nothing is said."""
    given = dict(one.partition("=")[::2] for one in arguments)
    if "measure.steps" in given or given.get("measure") == "seed":
        return []
    blocks = given.get("cc.blocks", "")
    rounds = int(blocks) if blocks.isdecimal() and int(blocks) else DEFAULT_BLOCKS
    emulated = fewest_steps(_ARMS, rounds, stats.MIN_STEPS)
    return [f"measure.steps={emulated if 'emulated' in (given.get('cc'), given.get('cc.mode')) else _STEPS}"]


def _of_a_trial(arguments: list[str], config: Config) -> list[str]:
    own = [one for one in arguments if one.lstrip("+~").partition("=")[0].partition(".")[0] not in _OWN]
    if config.track.sinks and not any(one.startswith("track.group=") for one in own):
        own.append("track.group=tune-" + re.sub(r"[^\w.-]+", "_", config.recipe.name)[:64])
    return own
