"""The points of a search: every combination of what may be changed that the ranks and the global batch divide into.

The global batch stays as it is unless `tune.global_batch` names a range, because it is part of the training; so do the
length of samples and packing unless `tune.seq_len` and `tune.packing` name some.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cctrain.config import Config, StepKind, TuneConfig
from cctrain.doctor.overrides import changed, overrides
from cctrain.request.checks import Layout
from cctrain.request.data import DEFAULT_SEQ_LEN
from cctrain.tune.point import Point

MICRO_BATCH, CHECKPOINTING, LAYOUT, STEP = "micro_batch", "activation_checkpointing", "layout", "step"


def base_point(config: Config, layout: Layout) -> Point:
    """The recipe as it stands."""
    scheduler = config.train["step_scheduler"]
    distributed = config.train.get("distributed") or {}
    return Point(
        global_batch=scheduler.get("global_batch_size", 1),
        micro_batch=scheduler.get("local_batch_size", 1),
        data_ranks=layout.data,
        tensor=layout.tensor,
        seq_len=config.data.seq_len,
        packing=(config.train.get("packed_sequence") or {}).get("packed_sequence_size") or 0,
        is_checkpointing=bool(distributed.get("activation_checkpointing")),
        step=config.step.kind.value,
    )


def points(config: Config, base: Point, layout: Layout, model: Mapping[str, Any]) -> list[Point]:
    """All that may be chosen; `model` is the model's config.json, or empty."""
    tune = config.tune
    seq_lens: list[int | None] = [*tune.seq_len] or [base.seq_len]
    axes = (
        _tensors(config, layout, model) if LAYOUT in tune.over else [base.tensor],
        _global_batches(tune, base),
        seq_lens,
        tune.packing or [base.packing],
        [False, True] if CHECKPOINTING in tune.over else [base.is_checkpointing],
        step_kinds() if STEP in tune.over else [base.step],
    )
    found = []
    for tensor, global_batch, seq_len, packing, is_checkpointing, step in itertools.product(*axes):
        data_ranks = layout.data * layout.tensor // tensor
        for micro_batch in _micro_batches(tune, base, global_batch, data_ranks):
            found.append(
                Point(
                    global_batch=global_batch,
                    micro_batch=micro_batch,
                    data_ranks=data_ranks,
                    tensor=tensor,
                    seq_len=seq_len,
                    packing=packing,
                    is_checkpointing=is_checkpointing,
                    step=step,
                )
            )
    return found


def step_kinds() -> list[str]:
    """What a step can be; auto only picks one of the others."""
    return [kind for kind in StepKind.__members__ if kind != "auto"]


def _micro_batches(tune: TuneConfig, base: Point, global_batch: int, data_ranks: int) -> Iterator[int]:
    rows, rest = divmod(global_batch, data_ranks)
    if rest:
        return
    sizes = range(1, rows + 1) if MICRO_BATCH in tune.over else [base.micro_batch]
    yield from (size for size in sizes if rows % size == 0)


def _global_batches(tune: TuneConfig, base: Point) -> list[int]:
    """The recipe's where it is in the range, the range's ends, and doublings from the lower to the upper one."""
    if not tune.global_batch:
        return [base.global_batch]
    low, high = tune.global_batch
    sizes = {low, high} | ({base.global_batch} if low <= base.global_batch <= high else set())
    size = low
    while size <= high:
        sizes.add(size)
        size *= 2
    return sorted(sizes)


def _tensors(config: Config, layout: Layout, model: Mapping[str, Any]) -> list[int]:
    """Widths of tensor parallelism: powers of two that divide the ranks and the model's heads. One alone where the
    recipe says how many ranks are to see different samples."""
    if (config.train.get("distributed") or {}).get("dp_size") not in (None, "none", "None"):
        return [layout.tensor]
    text = model.get("text_config", model)
    heads = [text[key] for key in ("num_attention_heads", "num_key_value_heads") if text.get(key)]
    ranks = layout.data * layout.tensor
    widths = [2**power for power in range(ranks.bit_length())]
    fitting = [width for width in widths if ranks % width == 0 and all(head % width == 0 for head in heads)]
    return sorted({layout.tensor, *fitting})


def changes(recipe: Mapping[str, Any], base: Point, point: Point) -> dict[str, Any]:
    """Keys of the AutoModel recipe, with what they become."""
    wanted = {
        "step_scheduler.local_batch_size": (base.micro_batch, point.micro_batch),
        "step_scheduler.global_batch_size": (base.global_batch, point.global_batch),
        "distributed.activation_checkpointing": (base.is_checkpointing, point.is_checkpointing),
        "distributed.tp_size": (base.tensor, point.tensor),
        "packed_sequence.packed_sequence_size": (base.packing, point.packing),
    }
    found: dict[str, Any] = {key: new for key, (old, new) in wanted.items() if old != new}
    if point.micro_batch != base.micro_batch and (recipe.get("dataset") or {}).get("batch_size") == base.micro_batch:
        found["dataset.batch_size"] = point.micro_batch  # AutoModel's mock data come in whole micro-batches
    return found


def settings(recipe: Mapping[str, Any], base: Point, point: Point) -> tuple[str, ...]:
    """The arguments of `python -m cctrain` that make the recipe as it stands this point."""
    lines = overrides(recipe, changes(recipe, base, point))
    if point.seq_len != base.seq_len:
        lines += (f"data.seq_len={point.seq_len}",)
    if point.step != base.step:
        lines += (f"step={point.step}",)
    return lines


def joined(arguments: Sequence[str], lines: Sequence[str]) -> tuple[str, ...]:
    """The arguments with a point's settings in place of their own of the same key."""
    keys = {line.partition("=")[0] for line in lines}
    keys |= {"step.kind"} if "step" in keys else set()  # what the group's choice stands for
    return (*(one for one in arguments if one.partition("=")[0] not in keys), *lines)


def recipe_of(recipe: Mapping[str, Any], base: Point, point: Point) -> dict[str, Any]:
    """The AutoModel recipe of a point, but for the length of samples."""
    return changed(recipe, changes(recipe, base, point))


def row_tokens(recipe: Mapping[str, Any], point: Point) -> int:
    """The longest that a row can be, as far as the settings say."""
    dataset = recipe.get("dataset") or {}
    of_recipe = dataset.get("seq_len") or dataset.get("seq_length")
    return point.packing or point.seq_len or (of_recipe if isinstance(of_recipe, int) else DEFAULT_SEQ_LEN)
