"""AutoModel's learning rate for `hf.py`: transformers has none that warms up from a tenth and ends at a minimum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def learning_rate(num_steps: int, recipe: Mapping[str, Any], base: float, total: int) -> float:
    """After `num_steps` of `total` optimizer steps: the schedule and the defaults of AutoModel's LRSchedulerConfig."""
    highest = recipe.get("max_lr") or base
    lowest = recipe["min_lr"] if recipe.get("min_lr") is not None else 0.01 * base
    begin = recipe["init_lr"] if recipe.get("init_lr") is not None else 0.1 * base
    warmup = recipe["lr_warmup_steps"] if recipe.get("lr_warmup_steps") is not None else min(1000, total // 10)
    decay, style = recipe.get("lr_decay_steps") or total, recipe.get("lr_decay_style", "cosine")
    if warmup and num_steps <= warmup:
        return float(begin + (highest - begin) * num_steps / warmup)
    if style == "constant":
        return float(highest)
    if num_steps > decay:
        return float(lowest)
    done = (num_steps - warmup) / (decay - warmup)
    left = 1 - done if style == "linear" else (math.cos(math.pi * done) + 1) / 2
    return float(lowest + left * (highest - lowest))
