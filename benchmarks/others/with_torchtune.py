"""torchtune's recipes for one device."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from rows import packs, unshifted
from steps import Steps, timed


def train(options: argparse.Namespace, steps: Steps) -> None:
    """On the rows of `options`."""
    from omegaconf import OmegaConf
    from torchtune import __file__ as place
    from torchtune import config as tune
    from torchtune import training
    from torchtune.data import padded_collate_packed
    from torchtune.modules import peft

    is_lora, is_tiny = options.task == "lora", options.size == "tiny"
    sizes = {"vocab_size": 128256, "num_layers": 32, "num_heads": 32, "num_kv_heads": 8, "embed_dim": 4096}
    sizes |= {"intermediate_dim": 14336, "max_seq_len": 131072}
    if is_tiny:
        sizes = {"vocab_size": 1024, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 128}
        sizes |= {"intermediate_dim": 256, "max_seq_len": 4096}
    model = {"_component_": f"torchtune.models.llama3_1.{'lora_' * is_lora}llama3_1", **sizes}
    if is_lora:
        model |= {"lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"], "apply_lora_to_mlp": True}
        model |= {"lora_rank": 8, "lora_alpha": 32}
    sys.path.append(str(Path(place).parents[1] / "recipes"))  # scripts beside the package, no package themselves
    script: Any = importlib.import_module(f"{'lora' if is_lora else 'full'}_finetune_single_device")
    kind: Any = script.LoRAFinetuneRecipeSingleDevice if is_lora else script.FullFinetuneRecipeSingleDevice

    class OfRows(kind):  # type: ignore[misc]
        def load_checkpoint(self, *_: Any, **__: Any) -> dict[str, Any]:
            return {training.MODEL_KEY: None}

        def _setup_model(self, cfg_model: Any, compile_model: bool, **_: Any) -> Any:
            self.activations_handling_ctx = contextlib.nullcontext()
            with training.set_default_dtype(self._dtype), self._device:
                built = tune.instantiate(cfg_model)
            if is_lora:
                peft.set_trainable_params(built, peft.get_adapter_params(built))
            if compile_model:
                training.compile_model(built, verbose=False)
            return built

        def _setup_data(self, **_: Any) -> Any:
            data: list[Any]
            if options.is_packed:  # which is masked as it is taken
                data, collate = [packs(rows) for rows in options.rows], padded_collate_packed
            else:
                data, collate = [{"tokens": rows.ids, "labels": unshifted(rows.labels)} for rows in options.rows], None
            sampler = torch.utils.data.DistributedSampler(data, num_replicas=1, rank=0, shuffle=False)
            return torch.utils.data.DataLoader(data, batch_size=None, sampler=sampler, collate_fn=collate)

        def save_checkpoint(self, *_: Any, **__: Any) -> None:
            pass

    folder = str(options.folder)
    settings = {
        "model": model,
        "tokenizer": {"_component_": "builtins.dict"},
        "checkpointer": {},
        "dataset": {"packed": False},
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-5, "fused": torch.cuda.is_available()},
        "lr_scheduler": {"_component_": "torchtune.training.get_cosine_schedule_with_warmup", "num_warmup_steps": 10},
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "metric_logger": {"_component_": "torchtune.training.metric_logging.DiskLogger", "log_dir": folder},
        **{"output_dir": folder, "device": "cuda" if torch.cuda.is_available() else "cpu", "dtype": "bf16"},
        **{"epochs": 1, "max_steps_per_epoch": None, "batch_size": options.micro_batch, "seed": 1, "shuffle": False},
        **{"gradient_accumulation_steps": 1, "clip_grad_norm": 1.0, "compile": options.compile},
        **{"enable_activation_checkpointing": False, "enable_activation_offloading": False},
        **{"resume_from_checkpoint": False, "save_adapter_weights_only": True, "log_every_n_steps": 1},
        **{"log_peak_memory_stats": False, "optimizer_in_bwd": False},
    }
    cfg = OmegaConf.create(settings)
    recipe = OfRows(cfg=cfg)
    recipe.setup(cfg=cfg)
    timed(recipe._metric_logger, "log_dict", steps)  # noqa: SLF001 - called at the end of each step
    steps.begin()
    recipe.train()
