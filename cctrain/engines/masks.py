"""Attention masks in a CUDA graph: none, where the same micro-batch outside of it has none.

transformers looks at the positions for several samples in a row, which a mask must keep apart. While a graph is
recorded it cannot look, and masks in any case: attention then takes a slower kernel, and its layers are compiled again.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_search_for_samples(batch: Mapping[str, Any]) -> Iterator[None]:
    """Within, none are looked for, if `batch` brings no positions, as the model's own count each row from 0 to its end;
    or if it brings the boundaries between its samples besides."""
    if "position_ids" in batch and "cu_seq_lens_q" not in batch:
        yield
        return
    masks: Any = importlib.import_module("transformers.masking_utils")
    original, masks.find_packed_sequence_indices = masks.find_packed_sequence_indices, lambda _: None
    try:
        yield
    finally:
        masks.find_packed_sequence_indices = original
