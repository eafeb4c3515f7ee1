"""What makes a trial the same trial: its settings as they compose, its repeat, and the machine that it is of.

Neither the driver nor the host's name is in it, which change with the reboot between CC off and on; what `compare`
wants alike is: GPUs and package versions. After an upgrade of these the trials are others, and are run anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from enum import Enum
from typing import Any

from cctrain.campaign.plan import Trial
from cctrain.config import Config, DataConfig, Engine, LaunchKind
from cctrain.errors import RequestError
from cctrain.platform import versions
from cctrain.platform.gpu import Gpus
from cctrain.request.checks import check_gpus
from cctrain.request.compose import compose_config
from cctrain.request.data_files import check_jsonl
from cctrain.request.recipe import is_cpu_recipe
from cctrain.request.startable import check_request, ranks_per_node

_NOT_OF_THE_RUN = ("track", "tune", "run_root", "dry_run")


def platform_identity(gpus: Gpus) -> dict[str, Any]:
    """Of this machine, the part that runs must share to be compared: GPUs, and package versions by engine."""
    by_engine = {engine: versions.package_versions(engine) for engine in Engine.__members__}
    return {"gpu": sorted(set(gpus.names)), "num_gpus": len(gpus.names), "versions": by_engine}


class Keys:
    """Composes each different trial once: that takes half a second, and repeats differ in nothing."""

    def __init__(self, platform: dict[str, Any]) -> None:
        self._platform = platform
        self._configs: dict[tuple[str, ...], Config] = {}
        self._read: list[DataConfig] = []
        """Whose files were read through."""

    def key(self, trial: Trial) -> str:
        """A name of 16 hexadecimal digits. Raises RequestError where the trial could not be started anywhere."""
        config = self._config(trial)
        platform = {**self._platform, "versions": self._platform["versions"][config.engine.name.value]}
        what = {"config": _of_the_run(config), "platform": platform, "repeat": trial.repeat}
        text = json.dumps(what, sort_keys=True, default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def check_here(self, trial: Trial) -> None:
        """Raises RequestError where the trial cannot be run by the GPUs of this machine, or its data cannot be read."""
        config, num_gpus = self._config(trial), self._platform["num_gpus"]
        try:
            if config.data not in self._read:
                check_jsonl(config.data)
                self._read.append(config.data)
            if config.launch.kind is LaunchKind.torchrun and not is_cpu_recipe(config.train):
                ranks = ranks_per_node(config, num_gpus)
                check_gpus(ranks, num_gpus, config.recipe.name)
                check_request(config, ranks * config.launch.num_nodes)
        except RequestError as error:
            raise RequestError(f"{trial.label}: {error}") from error

    def _config(self, trial: Trial) -> Config:
        if trial.settings not in self._configs:
            self._configs[trial.settings] = _composed(trial)
        return self._configs[trial.settings]


def _composed(trial: Trial) -> Config:
    try:
        config = compose_config(list(trial.settings))
        check_request(config, ranks_per_node(config) * config.launch.num_nodes)
    except RequestError as error:
        raise RequestError(f"{trial.label}: {error}") from error
    return config


def _of_the_run(config: Config) -> dict[str, Any]:
    content = dataclasses.asdict(config)
    content["recipe"].pop("file")  # its content is in `train`; where it lies may change
    return {key: value for key, value in content.items() if key not in _NOT_OF_THE_RUN}


def _plain(node: Any) -> Any:
    return node.value if isinstance(node, Enum) else str(node)
