"""Token counts of a micro-batch, taken on the host from the batch as the data loader gives it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

IGNORED_LABEL = -100
"""Label of a token that no loss is taken on (torch's and AutoModel's default)."""


def count_tokens(batches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Tokens and images of one rank's micro-batches of a step. Tensors are on the CPU, of shape (batch, sequence).

    padded_tokens: what the device computes. real_tokens: without padding, from the batch's mask; padded where it has
    none. label_tokens: those that a loss is taken on. rows: of every row its padded length and its documents' lengths.
    patches: of every image its padded and its real number of patches, where it comes cut into patches.
    """
    counts: dict[str, Any] = {"padded_tokens": 0, "real_tokens": 0, "label_tokens": 0, "num_images": 0}
    counts |= {"rows": [], "patches": []}
    for batch in batches:
        labels = batch["labels"]
        ids = batch.get("input_ids")
        shape = (labels if ids is None else ids).shape
        padded = int(shape[-1])
        documents = _document_lengths(batch) or [[padded]] * int(shape[0] if len(shape) > 1 else 1)
        counts["padded_tokens"] += padded * len(documents)
        counts["real_tokens"] += sum(map(sum, documents))
        counts["label_tokens"] += int((labels != IGNORED_LABEL).sum())
        counts["num_images"] += _num_images(batch)
        counts["rows"] += [[padded, lengths] for lengths in documents]
        counts["patches"] += _patches(batch)
    return counts


def _document_lengths(batch: Mapping[str, Any]) -> list[list[int]] | None:
    """Of every row, how long the documents in it are; several where rows are packed. None where nothing says so."""
    lengths = batch.get("seq_lens")
    if lengths is not None:  # packed: filled up with a negative number
        return [[length for length in row if length > 0] for row in lengths.tolist()]
    ids = batch.get("_packed_seq_ids")
    if ids is None and batch.get("cu_seq_lens_q") is not None:  # packed without a mask
        return [_by_positions(row) for row in batch["position_ids"].tolist()]
    mask = batch.get("attention_mask") if ids is None else ids
    if mask is not None and mask.ndim == 4:  # who sees whom, of shape (batch, 1, sequence, sequence)
        mask = mask[:, 0].diagonal(0, 1, 2)
        mask = mask == 0 if "float" in str(mask.dtype) else mask  # 0 where it sees, minus infinity where not
    if mask is None and batch.get("padding_mask") is not None:
        mask = ~batch["padding_mask"]
    if mask is None or mask.ndim != 2:
        return None
    if mask.max() > 1:  # documents are numbered from 1 in each row, padding is 0
        return [[count for count in row.bincount().tolist()[1:] if count] for row in mask]
    return [[int(length)] for length in mask.sum(1).tolist()]


def _by_positions(positions: list[int]) -> list[int]:
    """Lengths of the documents of a row that AutoModel packed: each begins at position 0, and so does each token of the
    padding behind them."""
    end = len(positions)
    while end and positions[end - 1] == 0:
        end -= 1
    if len(positions) - end < 2:  # one token at position 0 is a document
        end = len(positions)
    end = max(end, 1)  # a row has a document
    begins = [index for index in range(end) if positions[index] == 0]
    return [after - begin for begin, after in zip(begins, [*begins[1:], end], strict=True)]


def _num_images(batch: Mapping[str, Any]) -> int:
    per_sample = batch.get("n_images_per_sample")
    if per_sample is not None:
        return int(per_sample.sum())
    grid = batch.get("image_grid_thw")
    pixels = batch.get("pixel_values") if grid is None else grid
    return 0 if pixels is None or not hasattr(pixels, "shape") else int(pixels.shape[0])


def _patches(batch: Mapping[str, Any]) -> list[list[int]]:
    """Gemma 4's pixels are of shape (image, patch, pixel); a patch at a negative position is padding."""
    pixels, positions = batch.get("pixel_values"), batch.get("image_position_ids")
    if pixels is None or positions is None or pixels.ndim != 3:
        return []
    return [[int(pixels.shape[1]), real] for real in (positions[:, :, 0] >= 0).sum(1).tolist()]
