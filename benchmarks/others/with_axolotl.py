"""Axolotl's trainer, which is transformers' with changes of its own."""

from __future__ import annotations

import argparse
import json
import sys
from types import SimpleNamespace
from typing import Any

import torch
from of_transformers import follow, random_model, samples
from steps import Steps


def train(options: argparse.Namespace, steps: Steps) -> None:
    """On the rows of `options`, from its kind of configuration."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.integrations.base import BasePlugin
    from axolotl.train import train as train_by

    folder, model = options.folder, random_model(options)
    num_steps = options.warmup + options.steps
    columns = ("input_ids", "labels", *(("position_ids", "length") if options.is_packed else ("attention_mask",)))
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(sample) + "\n" for sample in samples(options.rows, *columns))

    class Stamps(BasePlugin):  # type: ignore[misc]
        def post_trainer_create(self, _: Any, trainer: Any) -> None:
            follow(trainer, steps)

    sys.modules["stamps"] = SimpleNamespace(Stamps=Stamps)  # type: ignore[assignment]
    settings: dict[str, Any] = {
        "base_model": str(model),
        "datasets": [{"path": str(folder / "rows.jsonl"), "ds_type": "json", "type": None}],
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(folder / "out"),
        "plugins": ["stamps.Stamps"],
        **{"sequence_len": options.seq_len, "micro_batch_size": options.micro_batch, "max_steps": num_steps},
        **{
            "gradient_accumulation_steps": 1,
            "num_epochs": 1,
            "optimizer": "adamw_torch_fused",
            "lr_scheduler": "cosine",
        },
        **{
            "learning_rate": 1e-5,
            "max_grad_norm": 1.0,
            "bf16": torch.cuda.is_available(),
            "attn_implementation": "sdpa",
        },
        **{"gradient_checkpointing": False, "logging_steps": 1, "save_strategy": "no", "val_set_size": 0},
        **{
            "sample_packing": options.is_packed,
            "curriculum_sampling": True,
            "torch_compile": options.compile,
            "pad_to_sequence_len": True,
        },
        "special_tokens": {"pad_token": "<pad>"},
    }
    if options.is_packed:
        # Its rows are packed already: each fills a bin, in their order, and its own positions are not written over.
        settings |= {"sample_packing_sequentially": True, "skip_prepare_dataset": True}
    if options.task == "lora":
        settings |= {"adapter": "lora", "lora_r": 8, "lora_alpha": 32, "lora_dropout": 0.0, "lora_target_linear": True}
    if not torch.cuda.is_available():  # its kernels for LoRA, on by default, are Triton's
        settings |= dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False)
    (folder / "config.yml").write_text(json.dumps(settings), encoding="utf-8")
    cfg = load_cfg(str(folder / "config.yml"))
    train_by(cfg=cfg, dataset_meta=load_datasets(cfg=cfg))
