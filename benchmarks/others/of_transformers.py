"""What libraries that are built on transformers have in common: a model on disk, samples, and the Trainer's steps."""

from __future__ import annotations

import argparse
import gc
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rows import Rows, unshifted
from steps import Steps, timed

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def random_model(options: argparse.Namespace) -> Path:
    """A directory with a Llama of random weights, and a tokenizer, in that of `options`."""
    import transformers

    path: Path = options.folder / "model"
    name = "tiny-llama" if options.size == "tiny" else "llama-3.1-8b"
    config = transformers.AutoConfig.from_pretrained(options.models / name)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # a CPU draws the large ones in minutes
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(path)
    del model  # the library reads it from the disk, and asks how much memory is free
    gc.collect()
    torch.cuda.empty_cache()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(options.models / "tokenizer-llama" / file, path)
    return path


def samples(steps: Sequence[Rows]) -> list[dict[str, list[int]]]:
    """One a row, in their order."""
    return [
        {"input_ids": row, "labels": label, "attention_mask": [1] * len(row)}
        for rows in steps
        for row, label in zip(rows.ids.tolist(), unshifted(rows.labels).tolist(), strict=True)
    ]


def follow(trainer: Any, steps: Steps) -> None:
    """Have a step end whenever one of transformers' Trainer does."""
    import transformers

    class Begin(transformers.TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            steps.begin()

    timed(trainer, "_maybe_log_save_evaluate", steps)  # called at the end of each step, and of the epoch
    trainer.add_callback(Begin())
