"""What a point asks of GPU, host, links and memory, from the recipe and the model's config.json: prior knowledge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cctrain.doctor.memory import estimate
from cctrain.flops import Sequences, Shape, Training, hardware_flops, shape_of, training_of
from cctrain.request.checks import Layout
from cctrain.tune.point import Point, Work

_CROSSINGS_A_LAYER = 5380 / 32
"""Of a micro-batch, forward and backward, as counted for Llama 8B with LoRA (docs/evidence/emulated/)."""
_LAYERS = 32
"""Of a model that is not known; what this is wrong by, the fitted cost of a crossing makes good."""
_RECOMPUTED = 4 / 3
"""Forward, backward, and forward again, over forward and backward, which is twice the work."""
_GRAPHED = 60.0
"""Crossings of a micro-batch whose forward and backward passes are one graph."""
_UNKNOWN_FLOPS = 6e9
"""A token, of a model that is not known: 6P of 1e9 weights."""
_BF16_BYTES = 2
_ALL_REDUCES_A_LAYER, _GRAPHED_ALL_REDUCES = 7, 4
"""Of tensor parallelism: the outputs of attention and of the MLP, and the gradients of what these are given, which
AutoModel's own layers sum for each projection (docs/evidence/, of Llama)."""


@dataclass(frozen=True, slots=True)
class Model:
    """What all points of a search have in common."""

    config: Mapping[str, Any]
    """The model's config.json; empty for one that would have to be downloaded."""
    pipeline: int
    context: int


def work_of(point: Point, recipe: Mapping[str, Any], model: Model, row_tokens: int) -> Work:
    """`recipe` has the settings of `point` put in; `row_tokens`: the longest that a row of it can be."""
    layout = Layout(
        world=point.data_ranks * point.tensor * model.pipeline * model.context,
        data=point.data_ranks,
        tensor=point.tensor,
        pipeline=model.pipeline,
        context=model.context,
    )
    text = model.config.get("text_config", model.config)
    layers = text.get("num_hidden_layers") or _LAYERS
    kernels = layers / model.pipeline * _CROSSINGS_A_LAYER * (_RECOMPUTED if point.is_checkpointing else 1)
    return Work(
        row_tokens=row_tokens,
        flops=_flops(point, recipe, model, row_tokens) / (point.tensor * model.pipeline * model.context),
        crossings=kernels if point.step == "stock" else _GRAPHED,
        kernels=kernels,
        link_bytes=_link_bytes(point, recipe, model, layout, row_tokens),
        memory_gib=_memory(recipe, model, layout, row_tokens),
    )


def _flops(point: Point, recipe: Mapping[str, Any], model: Model, row_tokens: int) -> float:
    shape, training = shape_of(model.config), training_of(recipe, is_estimate=True)
    if not shape or not training:
        again = _RECOMPUTED if point.is_checkpointing else 1
        return _UNKNOWN_FLOPS * again * point.micro_batch * row_tokens
    rows = [row_tokens] * point.micro_batch
    return hardware_flops(shape, training, Sequences(padded=rows, documents=[[row] for row in rows]))


def _link_bytes(point: Point, recipe: Mapping[str, Any], model: Model, layout: Layout, row_tokens: int) -> float:
    """FSDP gathers the weights for each pass, and without LoRA reduces as many gradients; tensor parallelism adds up
    what its ranks have computed of each layer. Ranks that hold the whole model add up gradients, once a step."""
    shape, training = shape_of(model.config), training_of(recipe, is_estimate=True)
    if not shape:
        return 0.0
    ranks = layout.data * layout.context
    if point.is_replicated:
        gradients = _num_trained(shape, training) if training else 0
        return _BF16_BYTES * gradients * 2 * (ranks - 1) / ranks / point.accumulation
    weights = sum(linear.num_in * linear.num_out for step in shape.steps for linear in step.linears)
    passes = (2 if recipe.get("peft") else 4) + point.is_checkpointing
    gathered = _BF16_BYTES * weights * passes * (ranks - 1) / ranks / (layout.tensor * layout.pipeline)
    text = model.config.get("text_config", model.config)
    activations = _BF16_BYTES * point.micro_batch * row_tokens * text["hidden_size"] * text["num_hidden_layers"]
    all_reduces = _ALL_REDUCES_A_LAYER if point.step == "stock" else _GRAPHED_ALL_REDUCES
    added_up = all_reduces * activations * 2 * (layout.tensor - 1) / layout.tensor / layout.pipeline
    return float(gathered + added_up)


def _num_trained(shape: Shape, training: Training) -> int:
    """Weights with a gradient, those outside of the layers left out."""
    linears = [linear for step in shape.steps if step.layer is not None for linear in step.linears]
    if training.lora_dim is None:
        return sum(linear.num_in * linear.num_out for linear in linears)
    return training.lora_dim * sum(linear.num_in + linear.num_out for linear in linears)


def _memory(recipe: Mapping[str, Any], model: Model, layout: Layout, row_tokens: int) -> tuple[float, float] | None:
    needed = estimate(model.config, recipe, layout, row_tokens) if model.config else None
    if needed is None:
        return None
    stays = needed.weights + needed.optimizer + needed.gathered
    stays += needed.gradients if needed.is_accumulating else 0.0
    grows = needed.activations if needed.is_accumulating else max(needed.activations, needed.gradients)
    return stays / 2**30, grows / 2**30
