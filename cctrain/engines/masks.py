"""Attention masks alike in a CUDA graph and outside of it.

transformers looks at the positions for several samples in a row, which a mask must keep apart. While a graph is
recorded it cannot look, and masks in any case: attention then takes a slower kernel, and its layers, compiled without a
mask, would be compiled again.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_search_for_samples(batch: Mapping[str, Any]) -> Iterator[None]:
    """Within, transformers looks for none. It takes each row for one sample if `batch` brings no positions, as the
    model's own count each row from 0 to its end, or if it brings the boundaries between its samples besides; otherwise
    it masks by the positions, recorded or not."""
    masks: Any = importlib.import_module("transformers.masking_utils")
    name, answer = "find_packed_sequence_indices", None
    if "position_ids" in batch and "cu_seq_lens_q" not in batch:
        name, answer = "is_tracing", True
    original = getattr(masks, name)
    setattr(masks, name, lambda *_: answer)
    try:
        yield
    finally:
        setattr(masks, name, original)
