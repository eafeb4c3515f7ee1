"""AutoModel's recipes under `step=graphed`: their own forward, backward, clipping and optimizers, run by
`steps.graphed`.

What AutoModel's step does for each step on the host, and what this does instead: token counts by an all-reduce that the
host waits for (all-reduced on the device, with whether to stop); the loss read back (read by a thread, and logged when
it is known); a poll for SIGTERM by a collective (part of the same all-reduce).
"""

from __future__ import annotations

import functools
import gc
import importlib
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from cctrain.engines.automodel_unwaiting import clipping_by, free_rotary_of_waits, sum_squares_on_the_device
from cctrain.engines.compiled import compile_layers, compiler_facts
from cctrain.engines.compiled_loss import compile_loss
from cctrain.engines.documents import attend_by_documents
from cctrain.engines.image_places import check_images, images_in_place
from cctrain.engines.masks import masked_as_in_a_graph
from cctrain.engines.observer import check_loss
from cctrain.engines.replicas import average_gradients, is_replicated, rebuild_reducer, unwrapped, without_reducer
from cctrain.engines.sampled_lengths import lengths_for
from cctrain.engines.tensor_parallel import has_few_collectives, reduce_replicas, wait_for_embedding
from cctrain.engines.unfinished import forget_unfinished
from cctrain.steps.batches import by_documents, padded, unmasked
from cctrain.steps.capture import NotCapturableError, Recorder, draws_random_numbers, recomputes
from cctrain.steps.graphed import GraphedStep
from cctrain.steps.readback import MOST_AHEAD


class GraphedTraining:
    """The graphed step of one AutoModel recipe, set up, and what is known of its steps; without a `recorder` they run
    unrecorded."""

    def __init__(self, recipe: Any, *, recorder: Recorder | None, is_compiled: bool, may_fall_back: bool) -> None:
        self._recipe, self._recorder = recipe, recorder
        self._may_fall_back = may_fall_back
        self._compiled = is_compiled
        self._num_compiled = 0
        self._known: dict[int, dict[str, float]] = {}
        self._newest: dict[str, float] = {"loss": float("nan"), "grad_norm": float("nan"), "num_label_tokens": 0}
        self._unlogged: list[Any] = []
        self._stop_at: int | None = None
        self._last_step = 0
        self._why = "asked for" if not may_fall_back else "step=auto: nothing stood against graphs"
        self._lengths: tuple[int, ...] = ()
        self._is_by_documents = self._is_uniform = False
        self._step: GraphedStep | None = None
        self._last_s = time.perf_counter()

    def begin(self) -> None:
        """Training begins. Raises NotCapturableError for a recipe that has no graphed step."""
        recipe = self._recipe
        try:
            self._refuse(recipe)
        except NotCapturableError as error:
            self._fall_back(error)
            return
        model = unwrapped(recipe.model_parts[0])
        is_sharded = recipe.dist_env.world_size > 1 and not is_replicated(recipe.model_parts[0])
        # Graphs with collectives are replayed by all ranks at once, and those of sharded gradients are of one shape.
        self._is_uniform = recipe._get_dp_group_size(include_cp=True) > 1
        self._is_uniform |= recipe.step_scheduler.grad_acc_steps > 1 and is_sharded
        self._lengths = lengths_for(recipe.dataloader)
        if self._is_uniform:
            self._lengths = self._lengths[-1:]
        free_rotary_of_waits(model)
        if _is_tensor_parallel(recipe):
            wait_for_embedding(model)
        self._is_by_documents = attend_by_documents(recipe)
        if not self._recorder:
            self._why += "; on a CPU, which has no CUDA graphs, the steps ran unrecorded"
        elif self._compiled and recomputes(model) and _is_tensor_parallel(recipe):
            # Between both passes torch 2.13's compiler would keep what is no tensor: the mesh of the ranks.
            self._why += "; layers stay uncompiled under activation checkpointing and tensor parallelism at once"
        elif self._compiled:
            self._num_compiled = compile_layers(model)
            compile_loss(recipe.loss_fn)
        self._engine = _Engine(recipe)
        self._step = GraphedStep(
            self._engine,
            model,
            recipe.optimizer,
            marks=recipe.observer.timer,
            recorder=self._recorder,
            accumulates=recipe.step_scheduler.grad_acc_steps > 1,
            num_ranks=recipe.dist_env.world_size,
            is_sharded=is_sharded,
            deliver=self._deliver,
        )
        if recipe.step_scheduler.sig_handler is not None:
            recipe.step_scheduler.sig_handler = _AgreedStop(recipe.step_scheduler.sig_handler, self)
        self._step.begin()
        rebuild_reducer(recipe.model_parts[0])

    @property
    def peak_bytes(self) -> int:
        """The most memory that torch had allocated, if this step can have been the one that took most; else 0."""
        return torch.cuda.max_memory_allocated() if self._step and self._step.is_new else 0

    @property
    def is_active(self) -> bool:
        """Whether steps are graphed, and not the engine's own because they cannot be."""
        return self._step is not None

    def facts(self) -> dict[str, Any]:
        """For the record: which step it was, why, and what was recorded into graphs."""
        facts: dict[str, Any] = {"kind": "graphed" if self._step else "stock", "why": self._why}
        facts["few_collectives"] = has_few_collectives(self._recipe.model_parts[0])
        if self._step:
            is_fused = bool(getattr(getattr(self._recipe, "loss_fn", None), "is_fused", False))
            facts |= {"lengths": list(self._lengths), "compiled": self._num_compiled > 0, "loss_compiled": is_fused}
            facts |= {"attends_by_documents": self._is_by_documents, **self._step.facts}
            if self._num_compiled or is_fused:
                facts |= compiler_facts()
        return facts

    def prepared(self, batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The micro-batches as they are trained on. Raises ValueError for images that their text has no places for."""
        for batch in batches:
            check_images(batch, getattr(unwrapped(self._recipe.model_parts[0]), "config", None))
        prepared = [padded(batch, self._lengths) for batch in batches]
        if not self._is_by_documents:
            return prepared
        return [by_documents(batch, is_uniform=self._is_uniform) for batch in prepared]

    def run(self, batches: Sequence[dict[str, Any]], max_grad_norm: float | None) -> Any:
        """Queue the step. Returns AutoModel's sample of its metrics, with the loss of the last step known."""
        assert self._step is not None
        self._engine.max_grad_norm = max_grad_norm
        recipe, scheduler = self._recipe, self._recipe.step_scheduler
        step = scheduler.step + 1
        label_tokens = sum(self._engine.label_tokens(batch["labels"]) for batch in batches)
        self._last_step = step
        handler = scheduler.sig_handler
        asked = isinstance(handler, _AgreedStop) and handler.is_asked
        recipe.checkpointer.maybe_wait_for_staging()
        try:
            counted = label_tokens if self._engine.counts_tokens else 0
            self._step.run(step, [unmasked(batch) for batch in batches], counted, is_asked_to_stop=asked)
        except NotCapturableError as error:
            self._step.drain()
            self._fall_back(error)
            try:
                forget_unfinished(recipe.model_parts[0])
            except RuntimeError as unable:
                raise NotCapturableError(f"{error}; {unable}") from error
        for schedule in recipe.lr_scheduler or []:
            schedule.step(1)
        return self._sample(batches)

    def _sample(self, batches: Sequence[dict[str, Any]]) -> Any:
        now, recipe = time.perf_counter(), self._recipe
        # As AutoModel counts them, but for the other ranks', which it asks and waits for.
        tokens = sum(self._engine.tokens(batch["labels"]) for batch in batches) * recipe._get_dp_group_size()
        rate = tokens / (now - self._last_s)
        self._last_s = now
        metrics = {
            **self._newest,
            "lr": recipe.optimizer[0].param_groups[0]["lr"],
            "mem": 0.0,
            "tps": rate,
            "tps_per_gpu": rate / recipe.dist_env.world_size,
            "num_tokens_per_step": tokens,
        }
        make: Any = importlib.import_module("nemo_automodel.components.loggers.metric_logger").MetricsSample
        return make(step=recipe.step_scheduler.step, epoch=recipe.step_scheduler.epoch, metrics=metrics)

    def loggable(self, sample: Any) -> list[Any]:
        """The samples, this one and earlier, whose loss is known by now and which are not logged yet, in order."""
        if not self.is_active:
            return [*self.known(), sample]
        self._unlogged.append(sample)
        if self._recipe.step_scheduler.is_last_step:
            self.drain()
        return self.known()

    def known(self) -> list[Any]:
        """Those of the samples kept back whose loss is known by now."""
        ready = []
        while self._unlogged and self._unlogged[0].step + 1 in self._known:
            sample = self._unlogged.pop(0)
            sample.metrics |= self._known[sample.step + 1]
            sample.metrics["mem"] = torch.cuda.max_memory_allocated() / 2**30
            ready.append(sample)
        return ready

    def drain(self) -> None:
        """Wait until the loss of every step is known."""
        if self._step:
            self._step.drain()

    def loss_of(self, step: int) -> float:
        """The loss of `step`, which is known."""
        return self._known[step]["loss"]

    @property
    def is_alone(self) -> bool:
        """Whether there is no other rank to agree with."""
        return bool(self._recipe.dist_env.world_size == 1)

    def is_time_to_stop(self) -> bool:
        """Whether all ranks end with the step that ended last, which they agree on because the wish came with the same
        step's loss."""
        return self._stop_at is not None and self._last_step >= self._stop_at

    def close(self) -> None:
        """Training is over."""
        if self._step:
            self._step.close()

    def _deliver(self, step: int, values: list[float]) -> None:
        loss, norm, label_tokens, asked = values
        self._newest = {"loss": loss, "grad_norm": norm, "num_label_tokens": int(label_tokens)}
        self._known[step] = self._newest
        self._known.pop(step - 4 * MOST_AHEAD, None)
        if asked and self._stop_at is None:
            self._stop_at = step + MOST_AHEAD  # by then every rank has read this
        self._recipe.observer.loss_known(step, loss)
        check_loss(step, loss, int(label_tokens))

    def _fall_back(self, error: NotCapturableError) -> None:
        """Go on with the engine's own step under step=auto; raise `error` otherwise."""
        if not self._may_fall_back:
            raise NotCapturableError(
                f"step=graphed: {error}; use step=stock, or step=auto to have it chosen"
            ) from error
        if self._step:
            self._step.close()
        handler = self._recipe.step_scheduler.sig_handler
        if isinstance(handler, _AgreedStop):  # which learns of a wish from graphed steps alone
            self._recipe.step_scheduler.sig_handler = handler.of_this_rank
        self._step, self._why = None, f"step=auto: {error}"
        gc.collect()  # a recording that broke off is part of cycles, and holds a micro-batch's memory
        torch.cuda.empty_cache()

    def _refuse(self, recipe: Any) -> None:
        """Raise NotCapturableError for what the model says; what the recipe says is refused before the launch."""
        for why in _reasons(recipe, unwrapped(recipe.model_parts[0])):
            raise NotCapturableError(f"{why}, which no graph can hold")


def _reasons(recipe: Any, model: Any) -> Iterator[str]:
    experts = _num_experts(getattr(model, "config", None))
    if experts:
        yield f"a model with {experts} experts routes its tokens by their values"
    if getattr(recipe, "partial_cuda_graph_manager", None):
        yield "a model with graphs of its own (train.model.backend)"
    if getattr(recipe, "te_fp8", None):
        yield "Transformer Engine's FP8 keeps its scales' history on the host"
    if recomputes(model) and draws_random_numbers(model):
        yield "activation checkpointing draws dropout's numbers again from a state that the host keeps"


def _is_tensor_parallel(recipe: Any) -> bool:
    """Whether several ranks train on the same samples, each with a part of every layer."""
    return bool(recipe.dist_env.world_size > recipe._get_dp_group_size(include_cp=True))


_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What the configurations of transformers and AutoModel call the number of experts."""


def _num_experts(config: Any) -> Any:
    """Of a model's configuration, or of a part of it: its text's, its feed-forward layers'."""
    own = (getattr(config, name, None) for name in _EXPERTS)
    parts = (part for name, part in getattr(config, "__dict__", {}).items() if name.endswith("_config"))
    return next(filter(None, itertools.chain(own, map(_num_experts, parts))), None)


class _Engine:
    """AutoModel's recipe as `steps.graphed.Engine`."""

    def __init__(self, recipe: Any) -> None:
        self._recipe = recipe
        self._utils: Any = importlib.import_module("nemo_automodel.components.training.utils")
        self.max_grad_norm: float | None = None
        self._group = recipe._get_dp_group(include_cp=True)  # None: all ranks, or one alone
        self._are_samples_shared = recipe._get_dp_group_size(include_cp=True) > 1
        self._are_ranks = recipe.dist_env.world_size > 1
        cp_rank = recipe.device_mesh.get_local_rank("cp") if recipe._get_cp_group_size() > 1 else 0
        self.counts_tokens = recipe._get_tp_rank() == 0 and cp_rank == 0
        """Whether this rank, of those that get the same samples, is the one that counts their tokens."""
        self._losses: Any = importlib.import_module("nemo_automodel.components.loss.utils")
        self._ignored = self._losses._get_loss_ignore_index(getattr(recipe, "loss_fn", None))

    def label_tokens(self, labels: torch.Tensor) -> int:
        """How many of the labels have a loss."""
        return int(self._losses._count_label_tokens(labels, self._ignored))

    def tokens(self, labels: torch.Tensor) -> int:
        """How many there are before the padding at the end of each row."""
        return int(labels.numel() - self._utils.count_tail_padding(labels))

    def forward_backward(self, batch: dict[str, Any], index: int, num_batches: int, label_tokens: Any) -> torch.Tensor:
        """AutoModel's `_forward_backward_step`, between its preparations."""
        recipe, utils = self._recipe, self._utils
        losses: list[torch.Tensor] = []
        if index == 0:
            utils.prepare_for_grad_accumulation(recipe.model_parts, pp_enabled=False)
        if index == num_batches - 1:
            utils.prepare_for_final_backward(recipe.model_parts, pp_enabled=False)
        model = recipe.model_parts[0]
        with masked_as_in_a_graph(batch), without_reducer(model), images_in_place(model):
            recipe._forward_backward_step(
                index, batch, loss_buffer=losses, num_label_tokens=label_tokens, num_batches=num_batches
            )
        if index == 0:
            utils.prepare_after_first_microbatch()
        return losses[0]

    def update(self) -> torch.Tensor | float:
        """AutoModel's clipping, and its optimizers."""
        recipe = self._recipe
        average_gradients(recipe.model_parts[0])
        reduce_replicas(recipe.model_parts, recipe.device_mesh)
        with sum_squares_on_the_device(), clipping_by(recipe.optimizer):
            norm: torch.Tensor | float = self._utils.scale_grads_and_clip_grad_norm(
                self.max_grad_norm, recipe.model_parts, device_mesh=recipe.device_mesh, foreach=True
            )
            for optimizer in recipe.optimizer:
                optimizer.step()
        return norm

    @functools.cached_property
    def _hosts(self) -> Any:
        return torch.distributed.new_group(backend="gloo")

    def agree(self, digest: bytes) -> bool:
        """By the ranks' hosts alone: the GPUs are not asked, and not waited for."""
        own = torch.frombuffer(bytearray(digest), dtype=torch.uint8).to(torch.int32)
        both = torch.stack([own, -own])
        torch.distributed.all_reduce(both, op=torch.distributed.ReduceOp.MAX, group=self._hosts)
        return bool((both[0] == -both[1]).all())

    def first_failure(self, own: str) -> str:
        """By the ranks' hosts alone as well."""
        told: list[str] = [""] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(told, own, group=self._hosts)
        return next((f"rank {rank}: {why}" for rank, why in enumerate(told) if why), "")

    def sum_over_all_ranks(self, values: torch.Tensor) -> None:
        """Over the ranks of all groups, which stop together."""
        if self._are_ranks:
            torch.distributed.all_reduce(values)

    def sum_over_samples(self, values: torch.Tensor) -> None:
        """Over the data-parallel ranks and those that share a sequence; ranks of tensor parallelism know the sum."""
        if self._are_samples_shared:
            torch.distributed.all_reduce(values, group=self._group)


class _AgreedStop:
    """In place of AutoModel's signal handler: ranks agree on the step to stop after without a collective of its own."""

    def __init__(self, of_this_rank: Any, training: GraphedTraining) -> None:
        self.of_this_rank, self._training = of_this_rank, training

    @property
    def _signal_received(self) -> bool:
        return bool(self.of_this_rank._signal_received)

    @_signal_received.setter
    def _signal_received(self, value: bool) -> None:
        self.of_this_rank._signal_received = value

    @property
    def is_asked(self) -> bool:
        """Whether this rank got the signal."""
        return self._signal_received

    def signals_received(self) -> list[bool]:
        """AutoModel's question after each step, and before each epoch."""
        return [self.is_asked if self._training.is_alone else self._training.is_time_to_stop()]
