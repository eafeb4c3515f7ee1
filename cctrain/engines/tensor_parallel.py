"""Tensor parallelism with four exchanges a layer, where AutoModel's has seven, and 23 with LoRA.

AutoModel's layers compute on DTensors: each projection that is split by columns sums its input's gradient by itself,
and each adapter gathers and scatters what lies between its two matrices. Here the ranks compute on their own parts and
exchange what Megatron-LM's do (Shoeybi et al., arXiv:1909.08053, section 3): the outputs of attention and of the
feed-forward layer, and the gradients of what these are given. Of an adapter, the matrix on the weight's split side is
split like it, and the other one is whole on every rank. Of its gradient each rank has a part; the parts are summed once
a step, all adapters' at once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from nemo_automodel.components.distributed import parallelizer, tp_replicas
from nemo_automodel.components.distributed.parallel_styles import _distribute_param
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ParallelStyle
from torch.nn import functional

from cctrain.engines.replicas import all_reduce

_MODELS = (
    "nemo_automodel.components.models.llama.model.LlamaForCausalLM",
    "transformers.models.llama.modeling_llama.LlamaForCausalLM",
)
"""Whose layers have these modules and projections, and no others."""
_SHARED = ("self_attn", "mlp")
_BY_COLUMNS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_BY_ROWS = ("self_attn.o_proj", "mlp.down_proj")


@contextmanager
def few_collectives() -> Iterator[None]:
    """Within, AutoModel splits a Llama among tensor-parallel ranks so: with plain LoRA or none, but not with dropout or
    DoRA, under sequence parallelism, or with a plan of the recipe's own. Whatever else it splits, it splits as ever."""
    planned = parallelizer._get_parallel_plan

    def plan(
        model: torch.nn.Module, sequence_parallel: bool = False, tp_shard_plan: Any = None, tp_size: int = 1
    ) -> dict[str, Any]:
        styles: dict[str, Any] = planned(model, sequence_parallel, tp_shard_plan, tp_size)
        is_usual = not sequence_parallel and tp_shard_plan is None
        return {**styles, **_styles()} if is_usual and _is_splittable(model) else styles

    parallelizer._get_parallel_plan = plan
    try:
        yield
    finally:
        parallelizer._get_parallel_plan = planned


def has_few_collectives(model: torch.nn.Module) -> bool:
    """Whether it was split so."""
    return any(isinstance(module, _PartLinear) for module in model.modules())


def wait_for_embedding(model: torch.nn.Module) -> None:
    """Have what is looked up in a table be there before it is used. Tensor-parallel ranks sum it, and it is a tensor
    that waits for that when it is read: of such a one torch 2.13 loses the gradient in what it compiles, AutoModel's
    norm as well."""
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.register_forward_hook(lambda _module, _args, output: output.clone())


def reduce_replicas(model_parts: Sequence[torch.nn.Module], device_mesh: Any) -> None:
    """Make the gradients of what tensor-parallel ranks hold whole alike on all of them, in place: AutoModel's
    `synchronize_tp_replica_gradients` less its check that all have the same, for which the host waits."""
    mesh = tp_replicas._get_tp_mesh(device_mesh, "tp")
    if mesh is None:
        return
    group = mesh.get_group()
    ranks, rank = tuple(torch.distributed.get_process_group_ranks(group)), torch.distributed.get_rank()
    gradients: dict[str, list[torch.Tensor]] = {"sum": [], "mean": []}
    for parameter, reduction in tp_replicas._iter_unique_parameters_by_name(model_parts):
        if parameter.grad is not None and all(
            tp_replicas._is_tp_replicated(one, ranks, rank, "tp") for one in (parameter, parameter.grad)
        ):
            gradients[reduction].append(_local(parameter.grad))
    for reduction, of_all in gradients.items():
        all_reduce(of_all, group, divisor=mesh.size() if reduction == "mean" else 1, dtype=torch.float32)


def _styles() -> dict[str, ParallelStyle]:
    styles = {_Shared(): _SHARED, _ColumnParallel(): _BY_COLUMNS, _RowParallel(): _BY_ROWS}
    return {f"model.layers.*.{name}": style for style, names in styles.items() for name in names}


def _is_splittable(model: Any) -> bool:
    """Whether it is a Llama whose projections are as usual, or have plain LoRA."""
    if f"{type(model).__module__}.{type(model).__qualname__}" not in _MODELS:
        return False
    return all(_is_plain(layer.get_submodule(name)) for layer in model.model.layers for name in _BY_COLUMNS + _BY_ROWS)


def _is_plain(linear: Any) -> bool:
    if type(linear) is torch.nn.Linear:
        return True
    if not _has_adapter(linear) or _bases(linear)[-1] is not torch.nn.Linear:  # one of quantized weights, say
        return False
    # Ranks would have to draw the same numbers for dropout.
    is_usual = all(type(part) is torch.nn.Linear for part in (linear.lora_A, linear.lora_B))
    return is_usual and not linear.use_dora and linear.dropout_p == 0


def _has_adapter(linear: Any) -> bool:
    return hasattr(linear, "lora_A")


class _Shared(ParallelStyle):
    """A module whose projections all read what it is given: the gradients that come back are summed once."""

    def _apply(self, module: torch.nn.Module, device_mesh: Any) -> torch.nn.Module:
        def shared(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if "hidden_states" in kwargs:
                return args, {**kwargs, "hidden_states": _with_summed_gradient(kwargs["hidden_states"], device_mesh)}
            return (_with_summed_gradient(args[0], device_mesh), *args[1:]), kwargs

        module.register_forward_pre_hook(shared, with_kwargs=True)
        return module


class _ColumnParallel(ParallelStyle):
    """Each rank has some of the outputs."""

    def _apply(self, module: Any, device_mesh: Any) -> torch.nn.Module:
        _split(module, device_mesh, weight=Shard(0), bias=Shard(0))
        if _has_adapter(module):
            _split(module.lora_A, device_mesh, weight=Replicate())
            _split(module.lora_B, device_mesh, weight=Shard(0))
            tp_replicas.mark_tp_replica_gradient_reduction(module.lora_A, "sum")
        module.__class__ = _class_of(_PartLinear, _bases(module))
        return module


class _RowParallel(ParallelStyle):
    """Each rank has a part of every output, of some of the inputs."""

    def _apply(self, module: Any, device_mesh: Any) -> torch.nn.Module:
        _split(module, device_mesh, weight=Shard(1), bias=Replicate())
        if _has_adapter(module):
            _split(module.lora_A, device_mesh, weight=Shard(1))
            _split(module.lora_B, device_mesh, weight=Replicate())
            tp_replicas.mark_tp_replica_gradient_reduction(module.lora_B, "sum")
        module.__class__ = _class_of(_SummedLinear, _bases(module))
        module.tensor_mesh = device_mesh
        return module


class _PartLinear:
    """Mixed into a linear layer before it, with LoRA or without: computed on this rank's part of it."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        """`x` (..., inputs) and the result (..., outputs) are this rank's as well."""
        return self._part(x, None if self.bias is None else _local(self.bias))

    def _part(self: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        part = functional.linear(x, _local(self.weight), bias)
        if not _has_adapter(self):
            return part
        low = functional.linear(x, _local(self.lora_A.weight)) * self.scale
        return part + functional.linear(low, _local(self.lora_B.weight))


class _SummedLinear(_PartLinear):
    """The same, of which the ranks' results are summed."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        """`x` (..., inputs) is this rank's, the result (..., outputs) every rank's."""
        parts = DTensor.from_local(self._part(x, None), self.tensor_mesh, [Partial()], run_check=False)
        whole: torch.Tensor = parts.redistribute(placements=[Replicate()]).to_local()
        return whole if self.bias is None else whole + _local(self.bias)


@functools.cache
def _class_of(mixin: type, bases: tuple[type, ...]) -> type:
    """One for all alike: the compiler compiles a layer anew for each class in it."""
    return type(mixin.__name__.lstrip("_"), (mixin, *bases), {})


def _bases(linear: Any) -> tuple[type, ...]:
    """AutoModel gives each linear with LoRA a class of its own."""
    return type(linear).__bases__ if _has_adapter(linear) else (type(linear),)


def _split(module: Any, mesh: Any, **placements: Any) -> None:
    for name, placement in placements.items():
        if getattr(module, name) is not None:
            _distribute_param(module, name, mesh, 0, [placement])


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of it; a gradient has the same part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _with_summed_gradient(x: torch.Tensor, mesh: Any) -> torch.Tensor:
    """`x`, of whose gradient each rank's backward pass comes with a part."""
    shared: torch.Tensor = DTensor.from_local(x, mesh, [Replicate()], run_check=False).to_local(
        grad_placements=[Partial()]
    )
    return shared
