"""A micro-batch on its way to where a graph reads it: one copy for all its tensors, ahead of the work before it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils import _pytree as pytree

_ALIGNED = 256
"""Bytes between the beginnings of two tensors, as torch's allocator has it."""


def shape_of(batch: Any) -> tuple[Any, ...]:
    """What a graph is captured for: of each tensor in `batch` its shape and type, and all that is not a tensor."""
    leaves, structure = pytree.tree_flatten(batch)
    kinds = [(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, torch.Tensor) else repr(leaf) for leaf in leaves]
    return (structure, *kinds)


def on_device(batch: Any, device: torch.device) -> Any:
    """`batch`, with the strides that it has where a graph reads it: for others, also those of a single row, what is
    compiled would be compiled anew."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device).copy_(tensor)

    return pytree.tree_map_only(torch.Tensor, moved, batch)


class Staging:
    """Static copies on the current device of a batch's tensors, and the way there.

    The host's side is pageable: with CC on, a pinned buffer is slower and waits for its stream. The copy runs on a
    stream of its own into one of two landing places, so that the batch of the next step lands while this one computes.
    """

    def __init__(self, example: Any) -> None:
        leaves, self._structure = pytree.tree_flatten(example)
        self._places: list[tuple[int, int] | None] = []
        end = 0
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor):
                size = leaf.numel() * leaf.element_size()
                self._places.append((end, size))
                end += math.ceil(size / _ALIGNED) * _ALIGNED
            else:
                self._places.append(None)
        self._host = torch.zeros(end, dtype=torch.uint8)
        self._static = torch.zeros(end, dtype=torch.uint8, device="cuda")
        self._landings = [torch.zeros_like(self._static) for _ in range(2)]
        self._is_free = [torch.cuda.Event() for _ in self._landings]
        self._has_landed = torch.cuda.Event()
        self._stream = torch.cuda.Stream()
        # Work queued before may still use the memory of the landings: the allocator minds the current stream only.
        self._stream.wait_stream(torch.cuda.current_stream())
        self._host_views = self._views(self._host, leaves)
        self.batch = pytree.tree_unflatten(self._views(self._static, leaves), self._structure)
        self._turn = 0

    def _views(self, memory: torch.Tensor, leaves: list[Any]) -> list[Any]:
        return [
            leaf if place is None else memory[place[0] : sum(place)].view(leaf.dtype).view(leaf.shape)
            for leaf, place in zip(leaves, self._places, strict=True)
        ]

    def send(self, batch: Any) -> None:
        """Queue the copy of `batch`, of the example's shape, into `self.batch`; waits for its own stream at most."""
        for view, leaf in zip(self._host_views, pytree.tree_leaves(batch), strict=True):
            if isinstance(leaf, torch.Tensor):
                view.copy_(leaf)
        turn, self._turn = self._turn, 1 - self._turn
        self._stream.wait_event(self._is_free[turn])
        with torch.cuda.stream(self._stream):
            self._landings[turn].copy_(self._host, non_blocking=True)
            self._has_landed.record()
        current = torch.cuda.current_stream()
        current.wait_event(self._has_landed)
        self._static.copy_(self._landings[turn])
        self._is_free[turn].record(current)
