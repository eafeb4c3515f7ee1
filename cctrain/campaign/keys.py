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
from cctrain.config import Engine
from cctrain.errors import RequestError
from cctrain.platform import versions
from cctrain.platform.gpu import Gpus
from cctrain.request.compose import compose_config
from cctrain.request.recipe import build_recipe, check_shape
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
        self._composed: dict[tuple[str, ...], dict[str, Any]] = {}

    def key(self, trial: Trial) -> str:
        """A name of 16 hexadecimal digits. Raises RequestError where the trial could not be started anywhere."""
        if trial.settings not in self._composed:
            self._composed[trial.settings] = _composed(trial)
        config = self._composed[trial.settings]
        platform = {**self._platform, "versions": self._platform["versions"][config["engine"]["name"].value]}
        what = {"config": config, "platform": platform, "repeat": trial.repeat}
        text = json.dumps(what, sort_keys=True, default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _composed(trial: Trial) -> dict[str, Any]:
    try:
        config = compose_config(list(trial.settings), build_recipe)
        check_shape(config.train, "the recipe with its overrides")
        check_request(config, ranks_per_node(config) * config.launch.num_nodes)
    except RequestError as error:
        raise RequestError(f"{trial.label}: {error}") from error
    content = dataclasses.asdict(config)
    content["recipe"].pop("file")  # its content is in `train`; where it lies may change
    return {key: value for key, value in content.items() if key not in _NOT_OF_THE_RUN}


def _plain(node: Any) -> Any:
    return node.value if isinstance(node, Enum) else str(node)
