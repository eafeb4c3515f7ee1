"""The points of a search: every combination of what may be changed that the ranks and the global batch divide into.

The global batch stays as it is unless `tune.global_batch` names a range, because it is part of the training; so do the
length of samples and packing unless `tune.seq_len` and `tune.packing` name some.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cctrain.config import Config, StepKind
from cctrain.doctor.overrides import changed, overrides
from cctrain.request.checks import NONE, Layout
from cctrain.request.strategy import is_ddp, not_of_ddp
from cctrain.tune.point import Point
from cctrain.tune_config import TuneConfig

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
        is_replicated=is_ddp(config.train),
    )


def points(config: Config, base: Point, layout: Layout, model: Mapping[str, Any]) -> list[Point]:
    """All that may be chosen; `model` is the model's config.json, or empty."""
    tune = config.tune
    seq_lens: list[int | None] = [*tune.seq_len] or [base.seq_len]
    axes = (
        _layouts(config, base, layout, model) if LAYOUT in tune.over else [(base.tensor, base.is_replicated)],
        _global_batches(tune, base),
        seq_lens,
        tune.packing or [base.packing],
        [False, True] if CHECKPOINTING in tune.over else [base.is_checkpointing],
        step_kinds() if STEP in tune.over else [base.step],
    )
    found = []
    for (tensor, is_replicated), global_batch, seq_len, packing, is_checkpointing, step in itertools.product(*axes):
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
                    is_replicated=is_replicated,
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


def _layouts(config: Config, base: Point, layout: Layout, model: Mapping[str, Any]) -> list[tuple[int, bool]]:
    """Widths of tensor parallelism, and whether each rank holds the whole model: with adapters, whose gradients are few
    to exchange. Not where that takes the recipe's `mp_policy` away, which decides the precision."""
    found = [(tensor, False) for tensor in _tensors(config, layout, model)]
    is_whole_possible = (
        layout.world == layout.data * layout.tensor > 1
        and bool(config.train.get("peft"))
        and "mp_policy" not in not_of_ddp(config.train.get("distributed") or {})
    )
    return [*found, (1, True)] if is_whole_possible or base.is_replicated else found


def _tensors(config: Config, layout: Layout, model: Mapping[str, Any]) -> list[int]:
    """Widths of tensor parallelism: powers of two that divide the ranks and the model's heads. One alone where the
    recipe says how many ranks are to see different samples."""
    if (config.train.get("distributed") or {}).get("dp_size") not in NONE:
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
    if point.is_replicated != base.is_replicated:
        found["distributed.strategy"] = "ddp" if point.is_replicated else "fsdp2"
    if point.micro_batch != base.micro_batch and (recipe.get("dataset") or {}).get("batch_size") == base.micro_batch:
        found["dataset.batch_size"] = point.micro_batch  # AutoModel's mock data come in whole micro-batches
    return found


def _left_out(recipe: Mapping[str, Any], base: Point, point: Point) -> list[str]:
    """Keys of its section `distributed` that do not go with a point's strategy."""
    is_new = point.is_replicated and not base.is_replicated
    return not_of_ddp(recipe.get("distributed") or {}) if is_new else []


def settings(recipe: Mapping[str, Any], base: Point, point: Point) -> tuple[str, ...]:
    """The arguments of `python -m cctrain` that make the recipe as it stands this point."""
    lines = overrides(recipe, changes(recipe, base, point))
    lines += tuple(f"~train.distributed.{key}" for key in _left_out(recipe, base, point))
    if point.seq_len != base.seq_len:
        lines += (f"data.seq_len={point.seq_len}",)
    if point.step != base.step:
        lines += (f"step={point.step}",)
    return lines


def joined(arguments: Sequence[str], lines: Sequence[str]) -> tuple[str, ...]:
    """The arguments with a point's settings in place of their own of the same key."""
    keys = {line.partition("=")[0] for line in lines}
    keys |= {"step.kind"} if "step" in keys else set()  # what the group's choice stands for
    keys |= {key.removeprefix("~") for key in keys}
    return (*(one for one in arguments if one.partition("=")[0] not in keys), *lines)


def recipe_of(recipe: Mapping[str, Any], base: Point, point: Point) -> dict[str, Any]:
    """The AutoModel recipe of a point, but for the length of samples."""
    new = changed(recipe, changes(recipe, base, point))
    for key in _left_out(recipe, base, point):
        del new["distributed"][key]
    return new
