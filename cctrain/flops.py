"""FLOPs of a training step, counted from a model's config.json: for MFU and HFU.

Every matrix product of the model is listed under the name of its weights and walked in the order of the forward pass,
because what it costs depends on what trains: 2 x rows x in x out FLOPs forward, as much again for the gradient of its
weights where they train, and as much again for the gradient of its input where anything before it trains. Attention
costs 4 x heads x head size FLOPs for each (query, key) pair that may see each other, three times that with backward.
So full fine-tuning comes to 6P + 3A a token and LoRA to 4P + 3A + 6 P_lora (P, P_lora: weights in matrix products, A:
attention forward), less the gradients that nobody needs before the first adapter. Norms, activations, rotary embeddings
and the loss are no matrix products and left out. tests/cpu/test_torch_flops.py holds this against torch's own counter.

A count is of the whole model: ranks of tensor and pipeline parallelism, which share a micro-batch, count it once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache, lru_cache
from typing import Any

# Where activation checkpointing stops: torch computes again what the backward pass saved, not what a region ends with.
# AutoModel wraps attention and MLP of its own classes, the layer of Hugging Face's. Gemma 4's layers end with a norm.
_REGION_ENDS = {
    "llama": ("o_proj", "down_proj"),
    "mistral": ("down_proj",),
    "qwen2": ("o_proj", "down_proj"),
    "qwen3": ("o_proj", "down_proj"),
}


class Unit(Enum):
    """What FLOPs are counted for: tokens, patches of images, what a square of patches becomes in the text, and the
    (query, key) pairs of attention: in the text's layers, in those with a sliding window, and in the vision tower."""

    TOKEN, PATCH, SOFT_TOKEN, PAIR, WINDOW_PAIR, PATCH_PAIR = range(6)


@dataclass(frozen=True, slots=True)
class Linear:
    """Weights that rows are multiplied with, under the name of their module."""

    name: str
    num_in: int
    num_out: int


@dataclass(frozen=True, slots=True)
class Step:
    """Linears that read the same input, or attention: scores, and their product with the values."""

    unit: Unit
    linears: tuple[Linear, ...] = ()
    width: float = 0.0
    """Of attention: heads x head size."""
    layer: int | None = None
    """Of the text's layers, those that activation checkpointing is for."""


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """The matrix products of a model, in the order of its forward pass. Equal to itself only: what it costs is looked
    up by it, and its hundreds of steps would take longer to compare than to count."""

    steps: tuple[Step, ...]
    region_ends: tuple[str, ...]
    window: int | None = None
    """Keys that a query sees in a layer with a sliding window, itself included."""
    patches_per_soft_token: int = 1
    is_image_bidirectional: bool = False
    """Tokens of one image all see each other in layers with a sliding window."""


@dataclass(frozen=True, slots=True)
class Training:
    """Which weights train, and what is computed twice."""

    lora_dim: int | None = None
    """None: no LoRA, all weights train but those of a frozen vision tower."""
    targets: tuple[str, ...] = ()
    """AutoModel's patterns of names that get an adapter. Without any, all linears do but those of `excludes`."""
    excludes: tuple[str, ...] = ()
    is_vision_frozen: bool = False
    is_checkpointing: bool = False
    is_hf_class: bool = False
    """Hugging Face's class of the model where AutoModel has one of its own."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """Lengths in one micro-batch or several, plain lists as JSON has them."""

    padded: Sequence[int]
    """Tokens of each row, padding included."""
    documents: Sequence[Sequence[int]]
    """Tokens of each document of each row: one, the row without its padding, or those of a packed row."""
    padded_patches: Sequence[int] = ()
    """Patches of each image, padding included."""
    real_patches: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Savings:
    """What attention leaves out. All off: each token sees its whole row, as eager attention computes it."""

    causal: bool = True
    window: bool = True
    """Without effect unless `causal`."""
    packing: bool = True


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The matrix products of the model of a config.json; None for one not known here, or where a size is missing."""
    try:
        if config["model_type"] in _REGION_ENDS:
            return _dense(config)
        return _gemma(config) if config["model_type"] in ("gemma4", "gemma4_text") else None
    except (KeyError, TypeError):
        return None


def _dense(config: Mapping[str, Any]) -> Shape | None:
    """Llama and the models with its layer: LlamaDecoderLayer of transformers and of AutoModel."""
    if config.get("use_sliding_window"):  # Qwen, with a window in some of its layers
        return None
    kind, hidden, heads = config["model_type"], config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    kv = dict.fromkeys(("k_proj", "v_proj"), config["num_key_value_heads"] * head_dim)
    window = config["sliding_window"] if kind == "mistral" else None
    pair = Unit.WINDOW_PAIR if window else Unit.PAIR
    steps: list[Step] = []
    for i in range(config["num_hidden_layers"]):
        attention = Step(pair, width=heads * head_dim, layer=i)
        steps += _layer(f"model.layers.{i}.", attention, kv, hidden, config["intermediate_size"])
    return Shape((*steps, _linear("lm_head", hidden, config["vocab_size"])), _REGION_ENDS[kind], window)


def _gemma(config: Mapping[str, Any]) -> Shape | None:
    """Gemma 4, its vision tower included: modeling_gemma4.py of transformers, which AutoModel's class wraps."""
    text, vision = config.get("text_config", config), config.get("vision_config")
    if text["enable_moe_block"] or config.get("audio_config") or text["use_bidirectional_attention"] == "all":
        return None
    prefix = "model.language_model." if "text_config" in config else "model."
    hidden, per_layer = text["hidden_size"], text["hidden_size_per_layer_input"]
    steps = _gemma_vision(vision, hidden) if vision else []
    if per_layer:
        steps.append(_linear(f"{prefix}per_layer_model_projection", hidden, text["num_hidden_layers"] * per_layer))
    for i in range(text["num_hidden_layers"]):
        steps += _gemma_layer(text, f"{prefix}layers.{i}.", i)
    return Shape(
        steps=(*steps, _linear("lm_head", hidden, text["vocab_size"])),
        region_ends=(),
        window=text["sliding_window"],
        patches_per_soft_token=vision["pooling_kernel_size"] ** 2 if vision else 1,
        is_image_bidirectional=text["use_bidirectional_attention"] == "vision",
    )


def _gemma_layer(text: Mapping[str, Any], prefix: str, index: int) -> list[Step]:
    hidden, per_layer = text["hidden_size"], text["hidden_size_per_layer_input"]
    is_full = text["layer_types"][index] == "full_attention"
    is_shared = index >= text["num_hidden_layers"] - text["num_kv_shared_layers"] > 0
    head_dim, kv_heads = text["head_dim"], text["num_key_value_heads"]
    if "per_layer_config" in text:  # as transformers 5.18 writes it, layers numbered "05"
        own = {int(layer): sizes for layer, sizes in text["per_layer_config"].items()}.get(index, {})
        head_dim, kv_heads = own.get("head_dim", head_dim), own.get("num_key_value_heads", kv_heads)
    elif is_full:
        head_dim = text["global_head_dim"]
        kv_heads = (text["attention_k_eq_v"] and text["num_global_key_value_heads"]) or kv_heads
    is_key_value = is_full and text["attention_k_eq_v"]
    names = () if is_shared else ("k_proj",) if is_key_value else ("k_proj", "v_proj")
    inner = text["intermediate_size"] * (2 if is_shared and text["use_double_wide_mlp"] else 1)
    pair = Unit.PAIR if is_full else Unit.WINDOW_PAIR
    attention = Step(pair, width=text["num_attention_heads"] * head_dim, layer=index)
    steps = _layer(prefix, attention, dict.fromkeys(names, kv_heads * head_dim), hidden, inner)
    if per_layer:
        steps.append(_linear(f"{prefix}per_layer_input_gate", hidden, per_layer, layer=index))
        steps.append(_linear(f"{prefix}per_layer_projection", per_layer, hidden, layer=index))
    return steps


def _gemma_vision(vision: Mapping[str, Any], text_hidden: int) -> list[Step]:
    hidden, num_pooled, prefix = vision["hidden_size"], vision["pooling_kernel_size"] ** 2, "model.vision_tower."
    attention = Step(Unit.PATCH_PAIR, width=vision["num_attention_heads"] * vision["head_dim"])
    kv = dict.fromkeys(("k_proj", "v_proj"), vision["num_key_value_heads"] * vision["head_dim"])
    num_pixels = 3 * vision["patch_size"] ** 2
    steps = [_linear(f"{prefix}patch_embedder.input_proj", num_pixels, hidden, unit=Unit.PATCH)]
    for i in range(vision["num_hidden_layers"]):
        steps += _layer(f"{prefix}encoder.layers.{i}.", attention, kv, hidden, vision["intermediate_size"])
    # The pooler averages by a product with one-hot weights: 2 x hidden FLOPs for each patch and soft token.
    pooler = Step(Unit.PATCH_PAIR, width=hidden / (2 * num_pooled))
    projection = _linear("model.embed_vision.embedding_projection", hidden, text_hidden, unit=Unit.SOFT_TOKEN)
    return [*steps, pooler, projection]


def _layer(prefix: str, attention: Step, kv: Mapping[str, int], hidden: int, inner: int) -> list[Step]:
    """Attention and gated MLP. `kv`: the linears beside that of the queries, and their widths."""
    is_vision = attention.unit is Unit.PATCH_PAIR
    unit, suffix = (Unit.PATCH, ".linear") if is_vision else (Unit.TOKEN, "")
    width = int(attention.width)

    def step(num_in: int, widths: Mapping[str, int]) -> Step:
        linears = (Linear(f"{prefix}{name}{suffix}", num_in, num_out) for name, num_out in widths.items())
        return Step(unit, tuple(linears), layer=attention.layer)

    return [
        step(hidden, {f"self_attn.{name}": num_out for name, num_out in {"q_proj": width, **kv}.items()}),
        attention,
        step(width, {"self_attn.o_proj": hidden}),
        step(hidden, {"mlp.gate_proj": inner, "mlp.up_proj": inner}),
        step(inner, {"mlp.down_proj": hidden}),
    ]


def _linear(name: str, num_in: int, num_out: int, *, unit: Unit = Unit.TOKEN, layer: int | None = None) -> Step:
    return Step(unit, (Linear(name, num_in, num_out),), layer=layer)


def training_of(recipe: Mapping[str, Any], *, is_estimate: bool = False) -> Training | None:
    """What an AutoModel recipe trains; None where it asks for something that is not counted here. For an estimate, what
    replicas (DDP) compute again under activation checkpointing is taken to be what FSDP2 does."""
    peft, freeze = recipe.get("peft") or {}, recipe.get("freeze_config")
    distributed = recipe.get("distributed") or {}
    checkpointing = distributed.get("activation_checkpointing") or False
    strategy = str(distributed.get("strategy", "fsdp2")).lower()
    is_known = (
        str(peft.get("_target_", "lora.PeftConfig")).endswith("lora.PeftConfig")
        and not peft.get("use_dora")
        and not {key for key, value in (freeze or {}).items() if value} - {"freeze_vision_tower", "freeze_audio_tower"}
        and checkpointing in (False, True, "full")
        and distributed.get("activation_checkpointing_scope", "all") == "all"
        # DDP leaves what is computed as it is, but checkpoints other regions of Hugging Face's classes.
        and (strategy == "fsdp2" or (strategy == "ddp" and (is_estimate or not checkpointing)))
    )
    if not is_known:
        return None
    targets, excludes = _strings(peft.get("target_modules")), _strings(peft.get("exclude_modules"))
    if peft.get("match_all_linear"):
        targets = ("*",)
    elif peft and not targets and not excludes:
        targets = ("*_proj",)  # ModuleMatcher's default
    return Training(
        lora_dim=peft.get("dim", 8) if peft else None,
        targets=targets,
        excludes=excludes,
        is_vision_frozen=freeze is not None and freeze.get("freeze_vision_tower") is not False,
        is_checkpointing=bool(checkpointing),
        is_hf_class=bool(recipe["model"].get("force_hf")),
    )


def _strings(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


Counter = Callable[[Sequence[Sequence[Any]], Sequence[Sequence[int]]], dict[str, float]]
"""FLOPs by name of rows and patches as metrics.count_tokens has them; empty where model or training is not known."""


def counter_of(config: Mapping[str, Any] | None, recipe: Mapping[str, Any]) -> Counter:
    """What counts `model_flops` and `hardware_flops` of steps in which `recipe` trains the model of a config.json."""
    shape, training = shape_of(config) if config else None, training_of(recipe)
    of_eager = Savings(causal=False, window=False, packing=False)
    computed = of_eager if recipe["model"].get("attn_implementation") == "eager" else Savings()

    def count(rows: Sequence[Sequence[Any]], patches: Sequence[Sequence[int]]) -> dict[str, float]:
        if not shape or not training:
            return {}
        sequences = Sequences(
            padded=[padded for padded, _ in rows],
            documents=[documents for _, documents in rows],
            padded_patches=[padded for padded, _ in patches],
            real_patches=[real for _, real in patches],
        )
        return {
            "model_flops": model_flops(shape, training, sequences),
            "hardware_flops": hardware_flops(shape, training, sequences, computed),
        }

    return count


def model_flops(shape: Shape, training: Training, sequences: Sequences, savings: Savings = Savings()) -> float:
    """FLOPs that a micro-batch's real tokens and patches need, forward and backward: the numerator of MFU."""
    needed, _ = _flops_per_unit(shape, training)
    rows = sequences.documents if savings.packing else [[sum(documents)] for documents in sequences.documents]
    lengths = [length for row in rows for length in row]
    counts = _counts(shape, lengths, sequences.real_patches, sequences, savings)
    return sum(flops * counts[unit] for unit, flops in needed.items())


def hardware_flops(shape: Shape, training: Training, sequences: Sequences, savings: Savings = Savings()) -> float:
    """FLOPs that are computed for a micro-batch, padding and activation checkpointing included: the numerator of HFU.

    A row's padding is a part of its one document, or a document of its own where the row is packed. Not counted is
    what fused attention computes again in its backward pass, as usual, and what sdpa masks after computing it.
    """
    needed, repeated = _flops_per_unit(shape, training)
    computed: list[int] = []
    for padded, documents in zip(sequences.padded, sequences.documents, strict=True):
        is_one = len(documents) == 1 or not savings.packing
        computed += [padded] if is_one else [*documents, padded - sum(documents)]
    counts = _counts(shape, computed, sequences.padded_patches, sequences, savings)
    return sum((flops + repeated[unit]) * counts[unit] for unit, flops in needed.items())


def _counts(
    shape: Shape, lengths: Sequence[int], patches: Sequence[int], sequences: Sequences, savings: Savings
) -> dict[Unit, int]:
    soft_tokens = [real // shape.patches_per_soft_token for real in sequences.real_patches]
    window = shape.window if savings.window else None
    # Of its image a token sees also what comes after it; what comes before it, it sees in any case.
    later = sum(n * (n - 1) // 2 for n in soft_tokens) if shape.is_image_bidirectional and savings.causal else 0
    pairs = _visible_pairs(lengths, None, savings)
    return {
        Unit.TOKEN: sum(lengths),
        Unit.PATCH: sum(patches),
        Unit.SOFT_TOKEN: sum(soft_tokens),
        Unit.PAIR: pairs,
        Unit.WINDOW_PAIR: (_visible_pairs(lengths, window, savings) if window else pairs) + later,
        Unit.PATCH_PAIR: sum(n * n for n in patches),
    }


def _visible_pairs(lengths: Sequence[int], window: int | None, savings: Savings) -> int:
    if not savings.causal:
        return sum(length * length for length in lengths)
    pairs = 0
    for length in lengths:
        first = min(window, length) if window else length  # queries that see everything before them
        pairs += first * (first + 1) // 2 + (length - first) * first
    return pairs


@lru_cache(maxsize=8)
def _flops_per_unit(shape: Shape, training: Training) -> tuple[dict[Unit, float], dict[Unit, float]]:
    """FLOPs of a unit, forward and backward, and those that activation checkpointing repeats."""
    needed, repeated = (dict.fromkeys(Unit, 0.0) for _ in range(2))
    # AutoModel checkpoints the text's layers, of these the ones that train.
    layers = {step.layer for step in shape.steps if _any_trains(step, training)} - {None}
    needs_gradient = False  # of what the next step reads
    for step in shape.steps:
        if step.unit is Unit.TOKEN and training.lora_dim is None:
            needs_gradient = True  # the embedding trains
        forward = 4 * step.width
        needed[step.unit] += forward * (3 if needs_gradient else 1)
        for linear in step.linears:
            flops, again = _linear_flops(linear, shape, training, needs_gradient)
            needed[step.unit] += flops
            forward += again
        if training.is_checkpointing and step.layer in layers:
            repeated[step.unit] += forward
        # Gemma's inputs to each layer, which no layer of theirs computes, join at the end of the first.
        is_in_line = step.layer is not None or step.unit is not Unit.TOKEN
        needs_gradient = needs_gradient or (is_in_line and _any_trains(step, training))
    return needed, repeated


def _linear_flops(linear: Linear, shape: Shape, training: Training, needs_gradient: bool) -> tuple[float, float]:
    """FLOPs of one row, forward and backward, and those that activation checkpointing repeats."""
    trains = _trains(linear, training)
    weights = 2.0 * linear.num_in * linear.num_out
    if training.lora_dim is None or not _has_adapter(linear, training):
        ends = shape.region_ends[-1:] if training.is_hf_class else shape.region_ends
        return weights * (1 + trains + needs_gradient), 0.0 if linear.name.endswith(ends) else weights
    down, up = 2.0 * training.lora_dim * linear.num_in, 2.0 * training.lora_dim * linear.num_out
    adapter = down * (1 + trains + needs_gradient) + up * (1 + trains + (trains or needs_gradient))
    return weights * (1 + needs_gradient) + adapter, weights + down + up


def _any_trains(step: Step, training: Training) -> bool:
    return any(_trains(linear, training) for linear in step.linears)


def _trains(linear: Linear, training: Training) -> bool:
    """Whether the weights train, or their adapter. AutoModel freezes all that has "vision" in its name with the tower,
    the projection behind it included."""
    if training.is_vision_frozen and "vision" in linear.name:
        return False
    return training.lora_dim is None or _has_adapter(linear, training)


def _has_adapter(linear: Linear, training: Training) -> bool:
    """AutoModel's ModuleMatcher: what a target matches, or else what no exclusion does."""
    patterns = training.targets or training.excludes
    return any(_wildcards(pattern).fullmatch(linear.name) for pattern in patterns) == bool(training.targets)


@cache
def _wildcards(pattern: str) -> re.Pattern[str]:
    """`*` stands for any text. So does `.*`, unless a whole part of a dotted name or a layer's number is before it:
    then for what is below that module, or nothing."""
    regex, start = "", 0
    for star in re.finditer(r"\.?\*", pattern):
        text = pattern[start : star.start()]
        is_whole = text.startswith(".") or (text and start == 0) or re.search(r"\.\d+$", text)
        regex += text + (r"(\..*)?" if star[0] == ".*" and is_whole else ".*")
        start = star.end()
    return re.compile(regex + pattern[start:])
