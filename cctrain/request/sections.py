"""Sections of a recipe file that nothing reads: AutoModel takes any, so that `lora:` for `peft:` trains all weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cctrain.nearest import did_you_mean

SECTIONS = (
    *("recipe", "seed", "step_scheduler", "dist_env", "model", "processor", "checkpoint", "peft", "distributed"),
    *("loss_fn", "dataset", "data", "packed_sequence", "dataloader", "clip_grad_norm", "optimizer", "lr_scheduler"),
    *("validation_dataset", "validation_dataloader", "freeze_config", "compile", "sdpa_method", "fp8", "qat"),
    *("quantization", "domain_mixture", "embedding_row_repair", "mfu", "moe_metrics", "mtp", "neftune", "nvtx"),
    *("prewarm", "tool_call_eval", "wandb", "mlflow", "comet", "ci", "slurm"),
)
"""What the fine-tuning recipes of AutoModel 0.7 look for (train_ft.py, finetune.py and what they share), and, last, its
tests and its launcher."""


def unread(recipe: Mapping[str, Any]) -> str | None:
    """A note that names what is not looked for at the top of `recipe`, or None."""
    names = [name for name in map(str, recipe) if name not in SECTIONS and not name.startswith("validation_dataset")]
    if not names:
        return None
    meant = "".join(did_you_mean(name, SECTIONS) for name in names[:1])
    return f"AutoModel's fine-tuning reads no section {', '.join(names)} of a recipe.{meant}"
