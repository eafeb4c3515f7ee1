"""Micro-batches made alike, so that few graphs serve them all, without changing what is learned from them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cctrain.metrics import IGNORED_LABEL
from cctrain.steps.lengths import next_length

_FILLERS: Mapping[str, float] = {
    "input_ids": 0,
    "labels": IGNORED_LABEL,
    "attention_mask": 0,
    "padding_mask": True,
    "position_ids": 0,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "loss_mask": 0,
}
"""What a column of padding holds, in tensors (rows, sequence). A batch with any other tensor along its sequence is left
as it is: an unknown one, a mask of pairs, or masks by the kind of layer."""


def padded(batch: Mapping[str, Any], lengths: Sequence[int]) -> dict[str, Any]:
    """`batch`, of tensors (rows, sequence) on the host, padded on its right to the next of `lengths`.

    Padding comes after every token, so that a causal model's real tokens never see it, and no loss is taken on it.
    """
    length = int(batch["labels"].shape[-1])
    more = next_length(length, lengths) - length
    along = {name: value for name, value in batch.items() if _is_along(value, length)}
    if not more or not all(name in _FILLERS and _is_rows(value) for name, value in along.items()):
        return dict(batch)
    wider = {name: torch.nn.functional.pad(value, (0, more), value=_FILLERS[name]) for name, value in along.items()}
    if "attention_mask" not in batch:  # so that what is padding can still be told
        is_padding = batch.get("padding_mask", torch.zeros(batch["labels"].shape, dtype=torch.bool))
        real = (~is_padding).long()
        wider["attention_mask"] = torch.nn.functional.pad(real, (0, more))
    return {**batch, **wider}


def _is_along(value: Any, length: int) -> bool:
    if isinstance(value, dict):
        return any(_is_along(one, length) for one in value.values())
    return isinstance(value, torch.Tensor) and length in value.shape[1:]


def _is_rows(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 2


def by_documents(batch: Mapping[str, Any], *, is_uniform: bool = False) -> dict[str, Any]:
    """`batch` of packed rows with the boundaries of their documents in place of a mask of pairs, as flash attention
    takes them: `cu_seq_lens_q`, int32 (documents + 1), over all rows one after the other, and `max_length_q`.

    Padding counts as a document. Boundaries are filled up with empty documents, and the length is rounded up, each to
    one of a few numbers, so that few graphs serve all batches; with `is_uniform` to one, so that one does.
    """
    ids = _document_ids(batch)
    if ids is None:
        return dict(batch)
    rows, length = ids.shape
    begins = torch.ones(rows, length, dtype=torch.bool)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    found = [*begins.flatten().nonzero().flatten().tolist(), rows * length]
    longest = max(end - begin for begin, end in itertools.pairwise(found))
    num_documents = _power_of_two(max(len(found) - 1, rows * length // _DOCUMENT))
    found += [rows * length] * (num_documents + 1 - len(found))
    boundaries = torch.tensor(found, dtype=torch.int32)
    most = length if is_uniform else min(length, _power_of_two(max(longest, length // 4)))
    whole = {name: value for name, value in batch.items() if name != "attention_mask"}
    return whole | {"_packed_seq_ids": ids, "cu_seq_lens_q": boundaries, "max_length_q": most}


def _document_ids(batch: Mapping[str, Any]) -> torch.Tensor | None:
    """Of packed rows, (rows, sequence): documents are numbered from 1, padding is 0. Where each row happens to be one
    document, AutoModel leaves the mask of pairs to tell."""
    ids, mask = batch.get("_packed_seq_ids"), batch.get("attention_mask")
    if ids is None and isinstance(mask, torch.Tensor) and mask.ndim == 4 and mask.dtype is torch.bool:
        ids = mask[:, 0].diagonal(0, 1, 2).long()
    return ids


_DOCUMENT = 64
"""Tokens of a short document: so many documents a row are taken for usual."""


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def unmasked(batch: Mapping[str, Any]) -> dict[str, Any]:
    """`batch` without its attention mask where a causal model needs none: no padding, or all of it on the right.

    A mask makes attention fall back to a slower kernel; without one, padding attends to what came before it, nothing
    attends to padding, and no loss is taken on it.
    """
    mask = batch.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or bool((mask > 1).any()):
        return dict(batch)
    is_on_the_right = bool((mask[:, 1:] <= mask[:, :-1]).all())
    takes_no_loss = bool((batch["labels"][mask == 0] == IGNORED_LABEL).all())
    if not (is_on_the_right and takes_no_loss):
        return dict(batch)
    return {name: value for name, value in batch.items() if name != "attention_mask"}
