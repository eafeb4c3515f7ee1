"""Unsloth's model, with its kernels, under transformers' Trainer, which it patches."""

from __future__ import annotations

import argparse
import os

import torch
from of_transformers import LINEARS, follow, random_model, samples
from steps import Steps


def train(options: argparse.Namespace, steps: Steps) -> None:
    """On the rows of `options`."""
    os.environ |= {"UNSLOTH_DISABLE_STATISTICS": "1", "UNSLOTH_COMPILE_LOCATION": str(options.folder / "compiled")}
    import unsloth  # isort: skip - before transformers, which it patches
    import transformers
    from datasets import Dataset

    is_lora = options.task == "lora"
    model, _ = unsloth.FastLanguageModel.from_pretrained(
        str(random_model(options)),
        max_seq_length=options.seq_len,
        dtype=torch.bfloat16,
        load_in_4bit=False,
        full_finetuning=not is_lora,
        use_gradient_checkpointing=False,
    )
    if is_lora:
        model = unsloth.FastLanguageModel.get_peft_model(
            model, r=8, lora_alpha=32, target_modules=list(LINEARS), use_gradient_checkpointing=False
        )
    arguments = transformers.TrainingArguments(
        output_dir=str(options.folder),
        per_device_train_batch_size=options.micro_batch,
        max_steps=options.warmup + options.steps,
        train_sampling_strategy="sequential",
        optim="adamw_torch_fused",
        learning_rate=1e-5,
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        bf16=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    columns, collate = ("input_ids", "labels", "attention_mask"), transformers.default_data_collator
    if options.is_packed:  # as its SFTTrainer has it, whose collator turns lengths into positions and no mask
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling  # type: ignore[import-not-found]

        columns, collate = ("input_ids", "labels", "seq_lengths"), DataCollatorForLanguageModeling(0, padding_free=True)
        arguments.remove_unused_columns = False
    rows = Dataset.from_list(samples(options.rows, *columns))
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, data_collator=collate)
    if options.is_packed and torch.cuda.is_available():  # on a CPU it has no such kernels, and transformers masks
        unsloth.utils.enable_sample_packing(model, trainer)
    follow(trainer, steps)
    trainer.train()
