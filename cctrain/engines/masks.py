"""Attention masks alike in a CUDA graph and outside of it.

transformers makes no mask where it sees that one would hide nothing, and looks at the positions for several samples in
a row, which a mask must keep apart. While a graph is recorded it cannot look, and masks in any case; layers that were
compiled without a mask would be compiled again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


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
    for name, answer in answers.items():
        setattr(masks, name, _answering(answer))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(masks, name, original)


def _answering(answer: Any) -> Callable[..., Any]:
    return lambda *_: answer
