"""Gradients of replicas averaged in the step, where AutoModel has DDP: its reducer is driven by hooks, bucket by
bucket, which no graph can hold.

Replicas have no weights to gather, and under LoRA few gradients to exchange: where each GPU holds the weights, it is
the layout with the fewest collectives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

_BUCKET_BYTES = 64 << 20
"""Of gradients that are exchanged as one: large enough for a link, and no second copy of all."""


def unwrapped(model: torch.nn.Module) -> Any:
    """The model itself, in DDP or not."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def is_replicated(model: torch.nn.Module) -> bool:
    """Whether each rank holds all of it."""
    return isinstance(model, DistributedDataParallel)


def without_reducer(model: torch.nn.Module) -> AbstractContextManager[None]:
    """Within, backward passes leave their gradients as they are, whichever micro-batch it is."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def average_gradients(model: torch.nn.Module) -> None:
    """What DDP would have made of the gradients of its replicas: their mean. A parameter without one counts as 0."""
    if not isinstance(model, DistributedDataParallel):
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    size = torch.distributed.get_world_size(model.process_group)
    for bucket in _buckets([parameter.grad for parameter in trained]):
        flat = torch.cat([gradient.flatten() for gradient in bucket]).div_(size)
        torch.distributed.all_reduce(flat, group=model.process_group)
        parts = flat.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view_as(one) for part, one in zip(parts, bucket, strict=True)])


def _buckets(gradients: Sequence[Any]) -> Iterator[list[torch.Tensor]]:
    """`gradients` in order, those of one type together, as many as fit into a bucket, one at least."""
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        bucket: list[torch.Tensor] = []
        for gradient in gradients:
            if gradient.dtype is not dtype:
                continue
            if bucket and sum(one.nbytes for one in bucket) + gradient.nbytes > _BUCKET_BYTES:
                yield bucket
                bucket = []
            bucket.append(gradient)
        yield bucket
