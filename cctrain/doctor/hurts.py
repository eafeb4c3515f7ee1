"""What in a recipe CC makes slow, and the override that mends it. The figures are the seed post's, unless said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cctrain.doctor.fit import sharing
from cctrain.doctor.overrides import changed, overrides
from cctrain.request.checks import Layout, layout_of
from cctrain.request.graphed import reasons as graphed_reasons
from cctrain.request.strategy import strategy_of

_PYTORCH_OPTIMIZERS = ("torch.optim.Adam", "torch.optim.AdamW")

Holds = Callable[[Mapping[str, Any], Layout], bool]
"""Whether a recipe in a layout fits the GPUs."""


@dataclass(frozen=True, slots=True)
class Hurt:
    """One thing that costs more with CC on."""

    what: str
    why: str
    overrides: tuple[str, ...] = ()


def hurts(recipe: Mapping[str, Any], layout: Layout, holds: Holds) -> list[Hurt]:
    """What will hurt under CC, of a recipe that trains on GPUs, in `layout`."""
    found = [
        _pinned_loader(recipe),
        *_eager(recipe, layout),
        _optimizer(recipe, layout),
        _tensor_width(recipe, layout, holds),
        _fsdp2(recipe, layout),
        _multicast(recipe, layout),
    ]
    return [hurt for hurt in found if hurt]


def _pinned_loader(recipe: Mapping[str, Any]) -> Hurt | None:
    if not (recipe.get("dataloader") or {}).get("pin_memory"):
        return None
    why = "pinned copies to the GPU keep about a fifth of their bandwidth, less than pageable ones, and block the host"
    return Hurt("pinned loader", why, overrides(recipe, {"dataloader.pin_memory": False}))


def _eager(recipe: Mapping[str, Any], layout: Layout) -> Iterator[Hurt]:
    is_compiled = (recipe.get("compile") or {}).get("enabled") or _distributed(recipe, "enable_compile")
    costs = "a launch costs 2 (Hopper) to 3.5 times (Blackwell) as much"
    if not is_compiled and any(graphed_reasons(recipe, layout)):
        changes = overrides(recipe, {"distributed.enable_compile": True})
        yield Hurt("eager mode", f"{costs}: compiled layers make fewer", changes)
    elif not is_compiled:
        yield Hurt("eager mode", f"{costs}: a step replayed from CUDA graphs makes hardly any", ("step=graphed",))
    if recipe["model"].get("attn_implementation") == "eager":
        why = "attention in single operations launches several kernels for each that sdpa does"
        yield Hurt("eager attention", why, overrides(recipe, {"model.attn_implementation": "sdpa"}))


def _optimizer(recipe: Mapping[str, Any], layout: Layout) -> Hurt | None:
    optimizer = recipe.get("optimizer") or {}
    if layout.tensor == 1 or optimizer.get("_target_") not in _PYTORCH_OPTIMIZERS or optimizer.get("fused"):
        return None
    why = "under tensor parallelism AutoModel makes Adam launch kernels for each tensor by itself"
    return Hurt("per-tensor optimizer", why, overrides(recipe, {"optimizer.fused": True}))


def _tensor_width(recipe: Mapping[str, Any], layout: Layout, holds: Holds) -> Hurt | None:
    for width in (width for width in range(1, layout.tensor) if layout.tensor % width == 0):
        changes = {"distributed.tp_size": width}
        narrower = layout_of(changed(recipe, changes), layout.world)
        if narrower and holds(changed(recipe, changes), narrower):
            why = (
                "each exchange costs 9 to 15 us more, and AutoModel's tensor parallelism makes seven a layer, 23 with "
                "LoRA (Llama's four under step=graphed); of graphed steps measure both, as a narrower one gathers more "
                "weights"
            )
            return Hurt("TP width", why, overrides(recipe, changes | sharing(recipe, narrower)))
    return None


def _fsdp2(recipe: Mapping[str, Any], layout: Layout) -> Hurt | None:
    if strategy_of(recipe) != "fsdp2" or layout.data * layout.context == 1:
        return None
    # Llama 70B on two H200s, emulated: each rank waits some 340 ms a step for them (docs/evidence/README.md).
    why = "its kernels get tables by copies from pinned memory, three a layer and micro-batch, that wait for a stream"
    return Hurt("FSDP2", why, () if any(graphed_reasons(recipe, layout)) else ("step=graphed",))


def _multicast(recipe: Mapping[str, Any], layout: Layout) -> Hurt | None:
    if layout.tensor == 1 or not _distributed(recipe, "enable_async_tensor_parallel"):
        return None
    why = "CC turns NVLink multicast off: what relies on it falls back or fails"
    return Hurt("multicast", why, overrides(recipe, {"distributed.enable_async_tensor_parallel": False}))


def _distributed(recipe: Mapping[str, Any], key: str) -> bool:
    return bool((recipe.get("distributed") or {}).get(key))
