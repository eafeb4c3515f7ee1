"""The decoder layers of a model, compiled once for all that are alike.

torch compiles a layer anew wherever something that it read while tracing differs: the class of a submodule, a tensor
that an earlier layer left behind, whether the input needs a gradient. Past a limit it goes on uncompiled, with no more
than a warning. What differs between AutoModel's layers without reason is made alike here.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch._dynamo

_MOST_COMPILATIONS = 32
"""Of one layer class: kinds of attention, the first layer, whose input needs no gradient under LoRA, lengths that
differ, and evaluation multiply; torch's own limit is 8."""


def compile_layers(model: torch.nn.Module) -> int:
    """Have torch fuse the operations within each decoder layer, in place. Returns how many layers that are."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    # FSDP derives classes of its own.
    layers = [one for one in model.modules() if names & {base.__name__ for base in type(one).__mro__}]
    _leave_nothing_to_later_layers(model, layers)
    _share_classes(model)
    _recompute_within(layers)
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, _MOST_COMPILATIONS)
    dynamo.optimize_ddp = False  # it cuts layers into pieces for DDP's reducer, which rests
    for layer in layers:
        layer.compile()
    return len(layers)


def compiler_facts() -> dict[str, int]:
    """For the record, of this process: what was compiled, and how often the compiler left it to Python instead."""
    counters = torch._dynamo.utils.counters
    given_up = (*counters["graph_break"].values(), *counters["unimplemented"].values())
    return {"compilations": counters["stats"]["unique_graphs"], "left_uncompiled": sum(given_up)}


def _leave_nothing_to_later_layers(model: torch.nn.Module, layers: list[Any]) -> None:
    """Have no layer keep keys and values for later ones where none reads them: the cache for generating text, which a
    recipe may leave on. The model itself still has its cache, empty, by which it chooses the mask."""
    config = getattr(model, "config", None)
    if getattr(getattr(config, "text_config", config), "num_kv_shared_layers", 0):
        return
    for layer in layers:
        layer.register_forward_pre_hook(_without_cache, with_kwargs=True)
        for module in layer.modules():
            if getattr(module, "store_full_length_kv", False):  # transformers' Gemma 4
                module.store_full_length_kv = False


def _without_cache(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if "past_key_values" in kwargs:
        kwargs["past_key_values"] = None
    return args, kwargs


def _recompute_within(layers: list[Any]) -> None:
    """Have activation checkpointing of a layer's parts leave to the compiler what it compiles anyway: AutoModel wraps
    their recomputation in the choice of attention kernels that held in the forward pass, and the compiler, which has
    both passes before it, takes no such wrapping."""
    for layer in layers:
        for part in layer.modules():
            checkpoint = getattr(part, "checkpoint_fn", None)
            if isinstance(checkpoint, functools.partial):
                around = checkpoint.keywords.get("context_fn")
                if getattr(around, "__name__", None) == "sdpa_backend_snapshot_context_fn":
                    kept = {name: value for name, value in checkpoint.keywords.items() if name != "context_fn"}
                    part.checkpoint_fn = functools.partial(checkpoint.func, *checkpoint.args, **kept)


def _share_classes(model: torch.nn.Module) -> None:
    """One class for all linears with LoRA, of which AutoModel gives each its own; and one for its norms, which are an
    operator that the compiler would call and not fuse: spelled out."""
    shared: dict[Any, type] = {}
    for module in model.modules():
        own = type(module)
        if own.__name__ == "PatchedLinearLoRA":
            module.__class__ = shared.setdefault(own.__bases__, own)
        elif own.__name__ == "Float32RMSNorm":
            module.__class__ = shared.setdefault(own, type(f"Fusable{own.__name__}", (_FusableNorm, own), {}))


class _FusableNorm:
    """Mixed into Float32RMSNorm before it."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        """The same as one operator does, in operations."""
        wide = torch.nn.functional.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps)
        return wide.to(x.dtype)
