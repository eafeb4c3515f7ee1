"""torchtitan's Trainer, which replays forward and backward as a CUDA graph by default."""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from steps import Steps, timed

RANK_OF_ONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
"""It asks for them. The others would take themselves for ranks, and set up what a plain start does without."""


def train(options: argparse.Namespace, steps: Steps) -> None:
    """On the rows of `options`."""
    os.environ |= RANK_OF_ONE
    from torchtitan.tools import utils

    if not torch.cuda.is_available():
        utils.device_type, utils.device_module = "cpu", _NoGpu()

    from torchtitan.components.checkpoint import CheckpointManager
    from torchtitan.components.lora import LoRAConverter
    from torchtitan.components.validate import Validator
    from torchtitan.models.llama3 import model_registry
    from torchtitan.models.llama3.config_registry import llama3_8b

    is_tiny = options.size == "tiny"
    lora = LoRAConverter.Config(rank=8, alpha=32, target_modules=["wqkv", "wo", "w1", "w2", "w3"])
    config = llama3_8b()
    config.model_spec = model_registry(
        "debugmodel" if is_tiny else "8B", converters=[lora] if options.task == "lora" else None
    )
    config.loss.loss_fn.global_vocab_size = config.model_spec.model.vocab_size
    config.training.local_batch_size, config.training.seq_len = options.micro_batch, options.seq_len
    config.training.steps, config.training.dtype = options.warmup + options.steps, "bfloat16"
    config.training.disable_cuda_graphs = not torch.cuda.is_available()
    config.compile.enable = options.compile
    config.activation_checkpoint = None
    config.checkpoint = CheckpointManager.Config(enable=False)
    config.validator = Validator.Config(enable=False)
    config.profiler.enable_profiling = config.metrics.enable_tensorboard = False
    config.debug.enable_structured_logging = False
    config.dump_folder, config.hf_assets_path = str(options.folder), str(options.models / "tokenizer-llama")
    config.dataloader.dataset, config.dataloader.infinite = "", True

    class Batches:
        def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
            for ids, labels, _ in options.rows:
                positions = torch.arange(options.seq_len).expand(options.micro_batch, -1).contiguous()
                yield {"input": ids, "positions": positions}, labels

    config.dataloader = _Ready(Batches())
    trainer = config.build()
    timed(trainer, "train_step", steps)
    steps.begin()
    trainer.train()


class _NoGpu:
    """In place of torch.cuda, whose memory and device torchtitan asks for without looking."""

    def __getattr__(self, name: str) -> Any:
        answers = {"get_device_name": "CPU", "memory_stats": defaultdict(int), "is_available": False}
        answers["get_device_properties"] = SimpleNamespace(total_memory=1)
        return lambda *_, **__: answers.get(name)


class _Ready:
    """Stands where a configuration is expected, and builds what it is given."""

    def __init__(self, built: Any) -> None:
        self._built = built

    def build(self, **_: Any) -> Any:
        return self._built

    def to_dict(self) -> dict[str, Any]:
        return {}
