"""What in AutoModel waits for the device or copies from the host in each step, without that."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

_FEWEST_POSITIONS, _MOST_POSITIONS = 1 << 15, 1 << 17
"""Of the table of rotations that is made once, 32 and 128 MiB of float32 at 128 a head. Rows may be longer than what a
model says."""


def free_rotary_of_waits(model: torch.nn.Module) -> None:
    """AutoModel's Llama asks the GPU for the largest position before each forward pass, to size a table: size it once,
    for the positions that the model has and those of common rows. Longer rows then raise ValueError."""
    for module in model.modules():
        rotary: Any = module
        if type(module).__name__ != "LlamaRotaryEmbedding" or getattr(rotary, "rope_fusion", True):
            continue
        positions = getattr(rotary._rope_config, "max_position_embeddings", _MOST_POSITIONS)
        most = min(max(positions, _FEWEST_POSITIONS), _MOST_POSITIONS)
        rotary._ensure_cache(most, next(model.parameters()).device)

        def gathered(x: torch.Tensor, position_ids: torch.Tensor, *_: Any, rotary: Any = rotary, **__: Any) -> Any:
            length, most = position_ids.shape[-1], len(rotary._cos_cache)
            if length > most:
                raise ValueError(f"rows of {length:,} tokens: step=graphed takes up to {most:,}; allowed is step=stock")
            return rotary._cos_cache[position_ids], rotary._sin_cache[position_ids]

        rotary.forward = gathered


@contextmanager
def sum_squares_on_the_device() -> Iterator[None]:
    """Within, the gradient norm is made of torch's norms, summed in float64 as AutoModel's: its own kernel takes a
    table of addresses that the host copies each time."""
    utils: Any = importlib.import_module("nemo_automodel.components.training.utils")

    def sum_of_squares(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        if not tensors:  # of what is split among the ranks this one may have nothing
            return torch.zeros((), dtype=torch.float64, device=torch.accelerator.current_accelerator() or "cpu")
        norms = torch._foreach_norm(list(tensors), 2.0, dtype=torch.float32)
        return torch.stack(norms).double().square().sum()

    original, utils.multi_tensor_sumsq = utils.multi_tensor_sumsq, sum_of_squares
    try:
        yield
    finally:
        utils.multi_tensor_sumsq = original


@contextmanager
def clipping_by(optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
    """Within, clipping gradients does not rescale them: fused optimizers divide each by a number as they read it, made
    for gradient scaling. That saves a pass over the gradients, and with float64 norms a kernel for each of them.
    Afterwards they divide by none, as AutoModel's own step expects."""
    if not all(group.get("fused") for optimizer in optimizers for group in optimizer.param_groups):
        yield
        return

    def clip(_: Any, max_norm: float, total_norm: torch.Tensor, __: Any = None) -> None:
        divisor = ((total_norm + _NORM_EPSILON) / max_norm).clamp(min=1.0).float()
        for optimizer in optimizers:
            setattr(optimizer, "grad_scale", divisor)  # noqa: B010 - torch looks it up by name

    utils: Any = torch.nn.utils
    original, utils.clip_grads_with_norm_ = utils.clip_grads_with_norm_, clip
    try:
        yield
    finally:
        utils.clip_grads_with_norm_ = original
        for optimizer in optimizers:
            vars(optimizer).pop("grad_scale", None)


_NORM_EPSILON = 1e-6
"""What torch's clip_grads_with_norm_ adds to the norm."""
