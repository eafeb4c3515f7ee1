"""Attention masks alike in a CUDA graph and outside of it.

transformers makes no mask where it sees that one would hide nothing, and looks at the positions for several samples in
a row, which a mask must keep apart. While a graph is recorded it cannot look, and masks in any case; layers that were
compiled without a mask would be compiled again. Its mask of attention in single operations, "eager", brings a zero from
the host, and such a copy cannot be recorded.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def masked_as_in_a_graph(batch: Mapping[str, Any]) -> Iterator[None]:
    """Within, transformers looks at no values, recorded or not. It takes each row for one sample if `batch` brings no
    positions, as the model's own count each row from 0 to its end, or if it brings the boundaries between its samples
    besides; otherwise it masks by the positions."""
    masks: Any = importlib.import_module("transformers.masking_utils")
    answers: dict[str, Any] = {"is_tracing": True}
    if "position_ids" not in batch or "cu_seq_lens_q" in batch:
        answers["find_packed_sequence_indices"] = None
    originals = {name: getattr(masks, name) for name in answers}
    kinds = masks.ALL_MASK_ATTENTION_FUNCTIONS
    eager = kinds["eager"]
    for name, answer in answers.items():
        setattr(masks, name, _answering(answer))
    kinds["eager"] = _eager_mask
    try:
        yield
    finally:
        kinds["eager"] = eager
        for name, original in originals.items():
            setattr(masks, name, original)


def _answering(answer: Any) -> Callable[..., Any]:
    return lambda *_: answer


def _eager_mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> torch.Tensor | None:
    """transformers' eager_mask, made on the device: 0 where the other's boolean mask is true, else the least number."""
    masks: Any = importlib.import_module("transformers.masking_utils")
    mask = masks.sdpa_mask(*args, **kwargs | {"allow_is_causal_skip": False})
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
