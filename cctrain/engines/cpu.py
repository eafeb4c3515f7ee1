"""AutoModel 0.7 on a machine without a GPU: around each call it makes to torch.cuda without asking.

Tiny recipes on gloo ranks then take the same code path as on GPUs. Where a GPU is used nothing here is installed.
"""

from __future__ import annotations

import importlib
import types
from typing import Any

import torch

_RECIPES = ("nemo_automodel.recipes.llm.train_ft", "nemo_automodel.recipes.vlm.finetune")


def install() -> None:
    """Put stand-ins in place of what needs a GPU. Call before a recipe is built."""
    cuda: Any = torch.cuda
    cuda.reset_peak_memory_stats = cuda.synchronize = lambda *_, **__: None
    cuda.current_device = lambda: torch.device("cpu")
    cuda.max_memory_allocated = lambda *_, **__: 0
    _devices_are_cpus()
    _process_groups_are_gloo()


def _devices_are_cpus() -> None:
    """`torch.device("cuda", ...)` in AutoModel's model builder is written out; give that module a torch of its own."""
    auto_model = importlib.import_module("nemo_automodel._transformers.auto_model")

    class TorchOnCpu(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        @staticmethod
        def device(*_: Any) -> torch.device:
            return torch.device("cpu")

    auto_model.torch = TorchOnCpu("torch")  # type: ignore[attr-defined]


def _process_groups_are_gloo() -> None:
    barrier = torch.distributed.barrier

    def barrier_of_any_device(group: Any = None, async_op: bool = False, device_ids: Any = None) -> Any:
        return barrier(group=group, async_op=async_op)  # gloo refuses device_ids

    torch.distributed.barrier = barrier_of_any_device
    for name in _RECIPES:
        recipe: Any = importlib.import_module(name)
        recipe.initialize_distributed = _with_cpu_device(recipe.initialize_distributed)


def _with_cpu_device(initialize_distributed: Any) -> Any:
    def initialize(backend: str, timeout_minutes: int = 1) -> Any:
        info = initialize_distributed(backend, timeout_minutes)
        info.device = torch.device("cpu")  # None without a GPU
        return info

    return initialize
