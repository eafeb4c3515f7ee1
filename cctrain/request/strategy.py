"""What AutoModel's section `distributed` refuses once the ranks run, refused before they start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cctrain.config import Config, Engine
from cctrain.errors import RequestError
from cctrain.nearest import did_you_mean

_SIZES = ("tp_size", "pp_size", "cp_size", "ep_size", "dp_replicate_size")
_STRATEGIES = ("ddp", "fsdp2", "megatron_fsdp", "megatron-fsdp", "mfsdp")
"""AutoModel 0.7's names, which it reads in lower case."""
_ONE = (1, "none", "None")
_DDP = (
    *("strategy", "activation_checkpointing", "activation_checkpointing_scope", "autocast_dtype", "broadcast_buffers"),
    *("bucket_cap_mb", "find_unused_parameters", "gradient_as_bucket_view", "static_graph"),
    *("dp_size", "pipeline", "moe", "_target_", "_recursive_", "_convert_"),
)
"""Keys that AutoModel 0.7 takes with strategy=ddp, beside sizes of 1."""


def strategy_of(recipe: Mapping[str, Any]) -> str:
    """In small letters; AutoModel's default is fsdp2."""
    return str((recipe.get("distributed") or {}).get("strategy", "fsdp2")).lower()


def is_ddp(recipe: Mapping[str, Any]) -> bool:
    """Whether each rank is to hold the whole model."""
    return strategy_of(recipe) == "ddp"


def not_of_ddp(distributed: Mapping[str, Any]) -> list[str]:
    """Keys of the section that do not go with strategy=ddp."""
    return [key for key in distributed if key not in (*_SIZES, *_DDP)]


def check_strategy(config: Config) -> None:
    """Raises RequestError for settings that do not go with the strategy, with the overrides that mend it."""
    if config.engine.name is not Engine.automodel:
        return
    distributed = config.train.get("distributed") or {}
    strategy = strategy_of(config.train)
    if strategy not in _STRATEGIES:
        raise RequestError(
            f"train.distributed.strategy={distributed['strategy']}: allowed is {', '.join(_STRATEGIES)}."
            f"{did_you_mean(strategy, _STRATEGIES)}"
        )
    pipeline = distributed.get("pp_size") or 1
    if pipeline not in _ONE and distributed.get("pipeline") is None:
        raise RequestError(
            f"train.distributed.pp_size={pipeline} needs the section distributed.pipeline, which says how "
            "micro-batches are scheduled: add +train.distributed.pipeline={}, which takes AutoModel's defaults"
        )
    if not is_ddp(config.train):
        return
    for key in _SIZES:
        if (distributed.get(key) or 1) not in _ONE:
            raise RequestError(
                f"train.distributed.{key}={distributed[key]}: with strategy=ddp, where each rank holds the whole "
                "model, allowed is 1"
            )
    others = not_of_ddp(distributed)
    if others:
        removals = " ".join(f"'~train.distributed.{key}'" for key in others)
        raise RequestError(
            f"train.distributed.strategy=ddp does not take {', '.join(others)}, which the recipe sets for another "
            f"strategy: leave {'it' if len(others) == 1 else 'them'} out with {removals}"
        )
