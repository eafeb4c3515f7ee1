"""FSDP2 after passes that its own hooks do not see the end of: one that broke off while it was recorded, and forward
passes with replayed graphs after them."""

from __future__ import annotations

import torch
from torch.distributed.fsdp import FSDPModule


def reshard(model: torch.nn.Module) -> None:
    """Give up the weights that FSDP2 has gathered and keeps until a backward pass: replayed graphs run none of its
    hooks, and the next forward pass would compute with what the weights were before them."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def forget_unfinished(model: torch.nn.Module) -> None:
    """Bring the shards of `model` to where a step begins, without a gradient: torch's own recovery from an error in the
    middle of a pass, which would wait for collectives that were recorded and never ran, and leaves what a micro-batch
    before it has accumulated.

    Raises RuntimeError with a torch that has none.
    """
    for module in model.modules():
        if not isinstance(module, FSDPModule):
            continue
        state = module._get_fsdp_state()
        if not state._is_root:
            continue
        if not hasattr(module, "reset_iter_state"):
            raise RuntimeError(
                f"torch {torch.__version__} cannot go on after a pass of FSDP2's that broke off: use step=stock, or "
                "torch 2.13"
            )
        state._comm_ctx.all_gather_state = None
        state._comm_ctx.reduce_scatter_states.clear()
        state._comm_ctx._last_post_reduce_events.clear()
        for group in (group for one in state._state_ctx.all_states for group in one._fsdp_param_groups):
            group._all_gather_result = group._post_reduce_event = None
            group._all_reduce_state = group._reshard_after_forward_event = None
            for parameter in group.fsdp_params:
                parameter.unsharded_accumulated_grad = None
                if hasattr(parameter, "_unsharded_param"):
                    parameter._unsharded_param.grad = None
        module.reset_iter_state()
