"""What `step=graphed` and `step=auto` ask of a recipe, before anything starts, and change in it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from cctrain.config import Config, MeasureKind, StepKind
from cctrain.errors import RequestError
from cctrain.request.checks import Layout
from cctrain.request.strategy import strategy_of


def check_step(config: Config, layout: Layout) -> None:
    """Raises RequestError where the step asked for does not go with the rest of the request."""
    kind = config.step.kind
    if kind is StepKind.stock:
        return
    if config.measure.kind is MeasureKind.seed:
        raise RequestError(
            f"measure=seed is of what AutoModel prints by its own step: allowed is step=stock, got step={kind.value}"
        )
    for reason in reasons(config.train, layout) if kind is StepKind.graphed else ():
        raise RequestError(f"step=graphed: {reason}, which no graph can hold; allowed is step=stock, or step=auto")


def reasons(recipe: Mapping[str, Any], layout: Layout) -> Iterator[str]:
    """Why a recipe's step cannot be recorded into CUDA graphs, as far as the recipe tells."""
    if layout.pipeline > 1:
        yield f"a pipeline (train.distributed.pp_size={layout.pipeline}) sends each stage's work by the host"
    distributed = recipe.get("distributed") or {}
    if layout.world > 1 and strategy_of(recipe) not in _STRATEGIES:
        yield (
            f"train.distributed.strategy={distributed['strategy']} (graphed are {' and '.join(_STRATEGIES)}) keeps "
            "gradients in buffers of its own, which it empties from Python"
        )
    for key in _OF_DDPS_REDUCER if layout.world > 1 else ():
        if distributed.get(key):
            yield f"DDP's reducer has work of its own with train.distributed.{key}=true, and does it from Python"
    dropout = (recipe.get("peft") or {}).get("dropout")
    if dropout and distributed.get("activation_checkpointing"):
        yield (
            "activation checkpointing (train.distributed.activation_checkpointing) draws the numbers of "
            f"train.peft.dropout={dropout} again, from a state that the host keeps"
        )
    if (recipe.get("fp8") or {}).get("enabled"):
        yield "FP8 scales (train.fp8.enabled=true) are computed between the steps"
    qat = recipe.get("qat") or {}
    if qat.get("enabled") and qat.get("fake_quant_after_n_steps"):
        yield (
            "weights are quantized from a later step on (train.qat.fake_quant_after_n_steps="
            f"{qat['fake_quant_after_n_steps']}) by a switch on the host"
        )
    if recipe.get("domain_mixture"):
        yield "a domain mixture (train.domain_mixture) counts its labels on the host"


_COMPILING_MINUTES = 10
"""How long a collective may wait for a rank that compiles."""
_STRATEGIES = ("fsdp2", "ddp")
_OF_DDPS_REDUCER = ("static_graph", "find_unused_parameters")


def step_chosen(config: Config, layout: Layout) -> tuple[StepKind, str]:
    """The step that the ranks are to run and, where the recipe tells already what `auto` comes to, why."""
    kind = config.step.kind
    for reason in reasons(config.train, layout) if kind is StepKind.auto else ():
        return StepKind.stock, f"step=auto: {reason}, which no graph can hold"
    return kind, ""


def recipe_run(config: Config, layout: Layout) -> dict[str, Any]:
    """The AutoModel recipe that is run: with a graphed step, no pinned loader, because a batch goes to the GPU in one
    pageable copy, which CC slows less, and where layers are compiled no LoRA kernels that the compiler cannot fuse, and
    ranks that wait for each other while one compiles longer."""
    recipe = copy.deepcopy(config.train)
    if step_chosen(config, layout)[0] is StepKind.stock:
        return recipe
    if recipe.get("dataloader"):
        recipe["dataloader"].pop("pin_memory", None)
    if config.step.compile and recipe.get("peft"):
        recipe["peft"]["use_triton"] = False
    if config.step.compile and layout.world > 1:
        waits = recipe.setdefault("dist_env", {})
        waits["timeout_minutes"] = max(float(waits.get("timeout_minutes") or 1), _COMPILING_MINUTES)
    return recipe
