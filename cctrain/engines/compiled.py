"""The decoder layers of a model, compiled once for all that are alike.

torch compiles a layer anew wherever something that it read while tracing differs: the class of a submodule, a tensor
that an earlier layer left behind, whether the input needs a gradient. Past a limit it goes on uncompiled, with no more
than a warning. What differs between AutoModel's layers without reason is made alike here.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

_MOST_COMPILATIONS = 32
"""Of one layer class: kinds of attention, the first layer, whose input needs no gradient under LoRA, lengths that
differ, and evaluation multiply; torch's own limit is 8."""


def compile_layers(model: torch.nn.Module) -> None:
    """Have torch fuse the operations within each decoder layer, in place."""
    _keep_no_state(model)
    _share_classes(model)
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, _MOST_COMPILATIONS)
    names = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if names & {one.__name__ for one in type(module).__mro__}:  # FSDP derives a class of its own
            module.compile()


def compiler_facts() -> dict[str, int]:
    """For the record, of this process: layers compiled, and how often the compiler gave up and left Python to run."""
    counters = torch._dynamo.utils.counters
    return {
        "compilations": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
    }


def _keep_no_state(model: torch.nn.Module) -> None:
    """Have no layer leave keys and values for later ones, where none reads them: generating text needs the cache, and
    training copies all keys and values into it in vain. AutoModel turns it off itself for activation checkpointing."""
    checkpointing: Any = importlib.import_module("nemo_automodel.components.distributed.activation_checkpointing")
    if checkpointing.detect_kv_sharing_and_maybe_disable_cache(model):
        return
    for module in model.modules():
        layer: Any = module
        if getattr(layer, "store_full_length_kv", False):
            layer.store_full_length_kv = False


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
