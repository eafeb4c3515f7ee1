"""Token counts of a micro-batch, taken on the host from the batch as the data loader gives it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

IGNORED_LABEL = -100
"""Label of a token that no loss is taken on (torch's and AutoModel's default)."""


def count_tokens(batches: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Tokens and images of one rank's micro-batches of a step.

    padded: what the device computes. real: without padding, from the batch's mask; padded where it has none.
    label: those that a loss is taken on. Tensors are on the CPU, of shape (batch, sequence).
    """
    counts = {"padded_tokens": 0, "real_tokens": 0, "label_tokens": 0, "num_images": 0}
    for batch in batches:
        labels = batch["labels"]
        ids = batch.get("input_ids")
        padded = int((labels if ids is None else ids).numel())
        counts["padded_tokens"] += padded
        counts["real_tokens"] += _real_tokens(batch, padded)
        counts["label_tokens"] += int((labels != IGNORED_LABEL).sum())
        counts["num_images"] += _num_images(batch)
    return counts


def _real_tokens(batch: Mapping[str, Any], padded: int) -> int:
    mask = batch.get("attention_mask")
    if mask is not None and mask.ndim == 2:
        return int((mask != 0).sum())
    mask = batch.get("padding_mask")
    if mask is not None:
        return padded - int(mask.sum())
    lengths = batch.get("seq_lens")
    if lengths is not None:  # packed: lengths of the documents, filled up with a negative number
        return int(lengths[lengths > 0].sum())
    return padded


def _num_images(batch: Mapping[str, Any]) -> int:
    per_sample = batch.get("n_images_per_sample")
    if per_sample is not None:
        return int(per_sample.sum())
    pixels = batch.get("pixel_values")
    return 0 if pixels is None or not hasattr(pixels, "shape") else int(pixels.shape[0])
