"""GPU memory that a recipe takes at its peak, estimated from its settings and the model's config.json.

What torch allocates on a rank: weights, optimizer state, the layers that FSDP gathers or the buckets that DDP exchanges
gradients in, and at the peak either the activations, when the backward pass begins, or the gradients they have become,
when it ends. Kept activations are the inputs and outputs of every linear and of attention; with activation
checkpointing what goes into attention and MLP, and one layer in full. Not counted: norms, images' patches, buffers of
NCCL. tests/unit/test_doctor.py holds it against the peaks measured under docs/evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cctrain.flops import Shape, Training, Unit, shape_of, training_of
from cctrain.request.checks import Layout
from cctrain.request.strategy import is_ddp

_LOGIT_BYTES = 16
"""Of a logit in the loss: bfloat16, its float32 copy, log-softmax, and the gradients of the first two."""
_SOFTCAP_BYTES = 6
_GATHERED_LAYERS = 2
"""The one in use and the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes on one rank at the peak."""

    weights: float
    optimizer: float
    gathered: float
    activations: float
    gradients: float
    """With what the optimizer needs beside them in its step."""
    is_accumulating: bool
    """Over micro-batches: then gradients are there before the backward pass."""

    @property
    def total_gib(self) -> float:
        """The peak."""
        both = (self.activations, self.gradients)
        return (self.weights + self.optimizer + self.gathered + (sum if self.is_accumulating else max)(both)) / 2**30


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Weights of the whole model: of a text layer, of all of it, and of what trains."""

    layer: int
    all: int
    trainable: int


def estimate(config: Mapping[str, Any], recipe: Mapping[str, Any], layout: Layout, seq_len: int) -> Estimate | None:
    """For micro-batches of sequences of `seq_len` tokens; None for a model or training that is not counted here."""
    shape, training = shape_of(config), training_of(recipe, is_estimate=True)
    if not shape or not training:
        return None
    text = config.get("text_config", config)
    is_tied = bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings")))
    sizes = _sizes(shape, training, text, is_tied=is_tied)
    scheduler = recipe["step_scheduler"]
    batch = scheduler.get("local_batch_size", 1)
    tokens = batch * seq_len / layout.context
    width = 4 if "32" in str(recipe["model"].get("torch_dtype")) else 2  # bytes
    ranks = layout.data * layout.context
    is_whole = is_ddp(recipe)
    share = float(width if is_whole else width / layout.world)
    gathered = 0.0
    if ranks > 1 and is_whole:
        is_view = (recipe.get("distributed") or {}).get("gradient_as_bucket_view")
        gathered = 0.0 if is_view else share * sizes.trainable  # DDP's buckets, beside the gradients
    elif ranks > 1:
        layers = _GATHERED_LAYERS * sizes.layer * (width + (0 if training.lora_dim else 4))  # gradients are float32
        gathered = (layers + width * (sizes.all - sizes.layer * text["num_hidden_layers"])) / layout.tensor
    states, temporary = _optimizer(recipe.get("optimizer") or {}, layout)
    return Estimate(
        weights=share * sizes.all,
        optimizer=share * states * sizes.trainable,
        gathered=gathered,
        activations=tokens * _activations(shape, training, text, layout, width),
        gradients=share * (1 + temporary) * sizes.trainable,
        is_accumulating=scheduler.get("global_batch_size", 1) > batch * layout.data,
    )


def _sizes(shape: Shape, training: Training, text: Mapping[str, Any], *, is_tied: bool) -> _Sizes:
    embedding = 0 if is_tied else text["vocab_size"] * text["hidden_size"]
    layers, rest, frozen, adapters = 0, embedding, 0, 0
    for step in shape.steps:
        weights = sum(linear.num_in * linear.num_out for linear in step.linears)
        if step.layer is None:
            rest += weights
            frozen += weights if training.is_vision_frozen and step.unit is not Unit.TOKEN else 0
        else:
            layers += weights
            adapters += (training.lora_dim or 0) * sum(linear.num_in + linear.num_out for linear in step.linears)
    trainable = layers + rest - frozen if training.lora_dim is None else adapters
    return _Sizes(layers // text["num_hidden_layers"], layers + rest, trainable)


def _activations(shape: Shape, training: Training, text: Mapping[str, Any], layout: Layout, width: int) -> float:
    """Bytes a token."""
    layers = 0.0
    for step in shape.steps:
        if step.layer is not None:
            inner = sum(linear.num_out for linear in step.linears) or step.width
            outer = step.linears[0].num_in if step.linears else 0
            if len(step.linears) == 1:  # what tensor parallelism splits is between the first linears and the last
                inner, outer = outer, inner
            layers += width * (inner / layout.tensor + outer)
    if training.is_checkpointing:
        num_layers = text["num_hidden_layers"]
        layers = layers / num_layers * layout.pipeline + width * 2 * text["hidden_size"] * num_layers
    logit = _LOGIT_BYTES + (_SOFTCAP_BYTES if text.get("final_logit_softcapping") else 0)
    return layers / layout.pipeline + logit * float(text["vocab_size"])


def _optimizer(optimizer: Mapping[str, Any], layout: Layout) -> tuple[float, float]:
    """Weights' sizes of state, and of temporary copies in its step."""
    name = str(optimizer.get("_target_", "")).rpartition(".")[2]
    if name == "FusedAdam":
        return 6.0, 0.0  # Transformer Engine's: float32 state and master weights
    is_by_all = name in ("Adam", "AdamW") and not optimizer.get("fused") and layout.tensor == 1
    return (0.0 if name == "SGD" else 2.0), float(is_by_all)
