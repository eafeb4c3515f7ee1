"""How long the samples of a data loader are, told by some of them: for the few lengths that batches are padded to."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from cctrain.steps.lengths import bucket_lengths

_SAMPLED = 512
"""Samples whose lengths decide."""
_COLLATED = 64
"""Likewise, where a sample's length is known only once its images are decoded and cut."""


def lengths_for(loader: Any) -> tuple[int, ...]:
    """The lengths to pad the loader's micro-batches to, rising; none where its data do not tell any."""
    data: Any = getattr(loader, "dataset", None)
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__") or not getattr(loader, "batch_size", None):
        return ()
    with _random_states_kept():
        lengths = _tokenized(data) or _collated(data, getattr(loader, "collate_fn", None))
    return bucket_lengths(lengths, loader.batch_size) if lengths else ()


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Samples that are drawn at random are then the same as without having looked."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=()):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def _evenly(data: Any, most: int) -> range:
    return range(0, len(data), max(1, -(-len(data) // most)))


def _tokenized(data: Any) -> list[int]:
    """Lengths of samples that hold their tokens; none of others, which is known from the first one."""
    lengths: list[int] = []
    for index in _evenly(data, _SAMPLED):
        sample: Any = data[index]
        ids = sample.get("input_ids") if isinstance(sample, dict) else None
        if ids is None or (isinstance(ids, torch.Tensor) and ids.ndim != 1):
            return []
        lengths.append(len(ids))
    return lengths


def _collated(data: Any, collate: Any) -> list[int]:
    """Lengths of samples that become tokens when they are collated, with their images: of fewer, since that is work;
    and of none where one cannot be collated by itself."""
    if not collate or not len(data) or not isinstance(data[0], dict):
        return []
    try:
        return [int(collate([data[index]])["labels"].shape[-1]) for index in _evenly(data, _COLLATED)]
    except Exception:  # noqa: BLE001 - whatever a data set's own code makes of a single sample
        return []
