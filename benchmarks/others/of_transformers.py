"""What libraries that are built on transformers have in common: a model on disk, samples, and the Trainer's steps."""

from __future__ import annotations

import argparse
import gc
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rows import Rows, packs
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


def samples(steps: Sequence[Rows], *columns: str) -> list[dict[str, Any]]:
    """One a row, in their order, with what its library takes of: `input_ids`, `labels`, `attention_mask`,
    `position_ids` that start anew with each document, `seq_lengths` of these, padding being one, `length` of them all.
    A mask of the whole row would hide from transformers that it has several."""
    found = []
    for pack in (pack for rows in steps for pack in packs(rows)):
        length = len(pack["tokens"])
        sample = {"input_ids": pack["tokens"].tolist(), "labels": pack["labels"].tolist()}
        sample |= {"position_ids": pack["input_pos"].tolist(), "seq_lengths": pack["seq_lens"].tolist()}
        sample |= {"attention_mask": [1] * length, "length": length}
        found.append({column: sample[column] for column in columns})
    return found


def follow(trainer: Any, steps: Steps) -> None:
    """Have a step end whenever one of transformers' Trainer does."""
    import transformers

    class Begin(transformers.TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            steps.begin()

    timed(trainer, "_maybe_log_save_evaluate", steps)  # called at the end of each step, and of the epoch
    trainer.add_callback(Begin())
