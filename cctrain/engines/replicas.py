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


def rebuild_reducer(model: torch.nn.Module) -> None:
    """Have a replica's reducer begin anew on the stream that is current: gradients are accumulated on the one on which
    it began, and no graph can be recorded on another. For DDP as AutoModel makes it: of the default group, and without
    a communication hook. Nothing else may hold the reducer, or a backward pass that is still to come."""
    if not isinstance(model, DistributedDataParallel):
        return
    state = model.__getstate__()  # without the reducer, which __setstate__ makes
    model.reducer = model.logger = None  # else the nodes that accumulate are kept, and with them their stream
    model.__setstate__(state)


def without_reducer(model: torch.nn.Module) -> AbstractContextManager[None]:
    """Within, backward passes leave their gradients as they are, whichever micro-batch it is."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def average_gradients(model: torch.nn.Module) -> None:
    """The mean of the replicas' gradients, in place, as DDP would have made it.

    Raises RuntimeError where a parameter has none, which DDP would not have taken either.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    trained = {name: parameter for name, parameter in model.module.named_parameters() if parameter.requires_grad}
    for name, parameter in trained.items():
        if parameter.grad is None:
            raise RuntimeError(
                f"{name} got no gradient: with train.distributed.strategy=ddp each trained parameter needs one in "
                "every step; freeze it (train.freeze_config)"
            )
    size = torch.distributed.get_world_size(model.process_group)
    all_reduce([parameter.grad for parameter in trained.values()], model.process_group, divisor=size)


def all_reduce(gradients: Sequence[Any], group: Any, *, divisor: int = 1, dtype: torch.dtype | None = None) -> None:
    """Sum `gradients`, each over `divisor`, over the ranks of `group`, in place, bucket by bucket; added up in `dtype`
    where that is wider than their own."""
    for bucket in buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        flat = flat.to(torch.promote_types(flat.dtype, dtype or flat.dtype)).div_(divisor)
        torch.distributed.all_reduce(flat, group=group)
        parts = flat.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view_as(one) for part, one in zip(parts, bucket, strict=True)])


def buckets(gradients: Sequence[Any], most_bytes: int = _BUCKET_BYTES) -> Iterator[list[torch.Tensor]]:
    """`gradients` in order, those of one type together, as many as fit into a bucket, one at least."""
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        bucket: list[torch.Tensor] = []
        for gradient in gradients:
            if gradient.dtype is not dtype:
                continue
            if bucket and sum(one.nbytes for one in bucket) + gradient.nbytes > most_bytes:
                yield bucket
                bucket = []
            bucket.append(gradient)
        yield bucket
