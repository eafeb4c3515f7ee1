"""The optimizer step as a few graph launches: `step=graphed`.

The first micro-batch of each shape runs as the engine would run it; then its forward and backward pass is recorded
into a CUDA graph, which every later one replays, and so are clipping and the optimizer. The host sends one copy and one
graph a micro-batch and one graph a step, and waits for none of them: token counts come from the host's batches, the
loss is read back by a thread. On a CPU the same steps run unrecorded.
"""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from cctrain.steps.capture import (
    Graph,
    NotCapturableError,
    Recorder,
    Way,
    drawing_none_on_the_host,
    draws_random_numbers,
    not_capturable,
    original_error,
    without_random_state,
)
from cctrain.steps.model_tensors import ModelTensors
from cctrain.steps.number import OnDevice
from cctrain.steps.readback import Readback
from cctrain.steps.staging import on_device, shape_of

_MOST_GRAPHS = 8
"""Shapes recorded in a run; micro-batches of others run as the engine would run them, and are counted."""
_SCALARS = "cctrain_scalars"
"""Key in a staged batch: float32 (2,), the step's label tokens and whether this rank was asked to stop."""


class Engine(Protocol):
    """What a step is made of, queued on the current stream without waiting for the device."""

    def forward_backward(self, batch: dict[str, Any], index: int, num_batches: int, label_tokens: Any) -> torch.Tensor:
        """One micro-batch, gradients added to `.grad`. Returns its loss over `label_tokens`, of all ranks, detached."""

    def update(self) -> torch.Tensor | float:
        """Clip the gradients, step the optimizers; returns the norm. The gradients are the caller's to clear."""

    def agree(self, digest: bytes) -> bool:
        """Whether all ranks have the same `digest`; every rank asks, and waits for the others' hosts at most."""

    def first_failure(self, own: str) -> str:
        """Of what kept the ranks from recording, the first's, with its rank; empty if all have. `own` is this one's.
        Every rank asks, as for `agree`."""

    def sum_over_all_ranks(self, values: torch.Tensor) -> None:
        """Sum `values` in place over every rank."""

    def sum_over_samples(self, values: torch.Tensor) -> None:
        """Sum `values` in place over the ranks that see different samples, or different tokens of them."""


class PhaseMarks(Protocol):
    """The timer, as far as graphs have marks in them."""

    def phase_end(self, name: str) -> None:
        """What ran since the last mark was `name`."""

    def record_marks(self) -> list[str]:
        """Until `end_record`, marks go into the graph being captured, and their names into the list returned."""

    def end_record(self) -> None:
        """Marks count again."""

    def replayed(self, names: Sequence[str]) -> None:
        """A graph with the marks `names` was queued."""


@dataclass(slots=True)
class _Recorded:
    """The graph of one micro-batch's shape."""

    way: Way
    graph: Graph
    marks: list[str]
    given: frozenset[int]
    """The trained parameters that get a gradient from it, by their places."""
    gradients: list[torch.Tensor | None] | None = None
    """Where it leaves them, if the step's gradients are its alone and no graph has the update that reads them."""
    update: Graph | None = None
    """That graph. Both come one after the other, so that the memory between them may be other graphs' as well."""


class GraphedStep:
    """One rank's optimizer steps, of `num_ranks` that train one model; `is_sharded`: each holds a part of it.
    `optimizers` are torch's; without a `recorder`, as on a CPU, nothing is recorded; `deliver` gets the step, its loss,
    gradient norm, label tokens of all ranks and how many were asked to stop, in order and on a thread beside."""

    def __init__(
        self,
        engine: Engine,
        model: torch.nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        marks: PhaseMarks,
        recorder: Recorder | None,
        accumulates: bool,
        num_ranks: int,
        is_sharded: bool,
        deliver: Callable[[int, list[float]], None],
    ) -> None:
        self._engine, self._marks, self._recorder = engine, marks, recorder
        self._accumulates, self._num_ranks, self._is_sharded = accumulates, num_ranks, is_sharded
        parameters = list(model.parameters())
        device = parameters[0].device
        self._is_random = draws_random_numbers(model)
        self._trained = [parameter for parameter in parameters if parameter.requires_grad]
        self._tensors = ModelTensors(model, is_sharded=is_sharded)
        self._readback = Readback(4, device, deliver)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._counts = torch.zeros(2, dtype=torch.float64, device=device)
        self._recorded: dict[Any, _Recorded] = {}
        self._updates: dict[Any, Graph] = {}
        self._groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self._rates = [torch.zeros((), device=device) for _ in self._groups]
        self._rates_there: list[float] = [0.0] * len(self._rates)
        self._settings: Any = None
        self._is_update_capturable = recorder is not None and all(map(recorder.prepare, optimizers))
        self._addresses: list[int] = []
        self.is_new = True
        """Whether the last step was more than replays."""
        self.facts: dict[str, Any] = {
            "num_graphs": 0,
            "capture_s": 0.0,
            "replayed_micro_batches": 0,
            "eager_micro_batches": 0,
            "eager_updates": 0,
            "recaptures": 0,
        }

    def begin(self) -> None:
        """Training begins: from here on this thread's work goes to one stream, which is the one recorded."""
        if self._recorder:
            self._recorder.begin()

    def run(
        self, step: int, batches: Sequence[Mapping[str, Any]], label_tokens: int, *, is_asked_to_stop: bool
    ) -> None:
        """Train on `batches`, this rank's micro-batches of `step`, on the host.

        `label_tokens` are in them together; 0 from a rank whose samples another rank counts.
        Raises NotCapturableError when the step is done, if at all, and then on every rank. A pass may have broken off
        then, of which the layers' own state is the caller's to mend before another begins.
        """
        self._readback.admit()
        self._forget_outdated()
        scalars = torch.tensor([label_tokens, is_asked_to_stop], dtype=torch.float32)
        staged = [{**batch, _SCALARS: scalars} for batch in batches]
        keys = [(self._role(index, len(staged)), shape_of(one)) for index, one in enumerate(staged)]
        graphs = [self._recorded.get(key) for key in keys]
        # A graph that holds a collective has to be recorded, and replayed, by all ranks at once.
        is_agreed = self._num_ranks == 1 or self._engine.agree(self._digest(keys, graphs))
        graphs = graphs if is_agreed else [None] * len(graphs)
        may_record = True
        if self._is_sharded and self._accumulates:
            # Sharded gradients live in Python between a step's micro-batches: a graph knows those of its step only.
            graphs = graphs if None not in graphs else [None] * len(graphs)
            may_record = not self._recorded and len({shape for _, shape in keys}) == 1
        num_graphs = self.facts["num_graphs"]
        given = [self._micro_batch(graph, staged[index], index, len(staged)) for index, graph in enumerate(graphs)]
        new = {key: index for index, key in enumerate(keys) if may_record and graphs[index] is None}
        new_update = self._update(graphs[-1], frozenset().union(*given), may_use_graphs=is_agreed)
        self._readback.stored(step)
        if self._recorder and is_agreed and None in graphs:  # on all ranks alike
            few = dict(list(new.items())[: _MOST_GRAPHS - len(self._recorded)])
            ran = {key: (staged[index], index, given[index]) for key, index in few.items()}
            self._record_all(new_update, ran, len(staged))
        self.is_new = None in graphs or self.facts["num_graphs"] > num_graphs

    def drain(self) -> None:
        """Wait until every step's loss is delivered."""
        self._readback.drain()

    def close(self) -> None:
        """End the thread that reads back, and give the graphs up: a group of ranks whose collectives are in one waits
        for it when it ends."""
        self._readback.close()
        self._give_up()

    def _give_up(self) -> None:
        self._recorded.clear()
        self._updates.clear()

    def _role(self, index: int, num_batches: int) -> tuple[bool, bool] | None:
        """Ranks that share parameters treat a step's first and last micro-batch apart."""
        return (index == 0, index == num_batches - 1) if self._is_sharded else None

    def _micro_batch(
        self, recorded: _Recorded | None, staged: dict[str, Any], index: int, num_batches: int
    ) -> frozenset[int]:
        """Returns the places of the trained parameters that got a gradient from it."""
        self.facts["replayed_micro_batches" if recorded else "eager_micro_batches"] += 1
        if recorded:
            recorded.way.send(staged)
        else:
            staged = on_device(staged, self._loss.device)
        if index == 0:  # not in the graph, which may be replayed at any place of a step
            self._marks.phase_end("other")
        if recorded is None:
            return self._forward_backward(staged, index, num_batches)
        recorded.graph.replay()
        self._marks.replayed(recorded.marks)
        return recorded.given

    def _forward_backward(self, staged: dict[str, Any], index: int, num_batches: int) -> frozenset[int]:
        batch, before = dict(staged), self._gradient_versions()
        counts = batch.pop(_SCALARS).clone()
        self._engine.sum_over_all_ranks(counts)
        label_tokens = OnDevice(counts[0].clamp(min=1))  # none at all: the sum of no losses is 0, whatever it is over
        with nullcontext() if self._is_random else without_random_state():  # before it is recorded as when it is
            self._loss += self._engine.forward_backward(batch, index, num_batches, label_tokens)
        self._counts.copy_(counts)
        versions = zip(before, self._gradient_versions(), strict=True)
        return frozenset(place for place, (old, new) in enumerate(versions) if new != old)

    def _gradient_versions(self) -> list[tuple[int, int] | None]:
        """Of each trained parameter's gradient which tensor it is, and how often it was written to."""
        gradients = (getattr(one.grad, "_local_tensor", one.grad) for one in self._trained)  # FSDP2 adds to a shard's
        return [None if one is None else (id(one), one._version) for one in gradients]  # noqa: SLF001

    def _digest(self, keys: Sequence[Any], graphs: Sequence[_Recorded | None]) -> bytes:
        """Of all that decides whether this step is replayed, and from which graphs."""
        known = [graph is not None for graph in graphs]
        return hashlib.blake2b(repr((keys, known, list(self._updates), self.facts["recaptures"])).encode()).digest()

    def _update(self, last: _Recorded | None, given: frozenset[int], *, may_use_graphs: bool) -> Any:
        """Update the weights from the step's gradients, which the parameters in the places `given` have; `last` is the
        graph of its last micro-batch, if it was one. Returns the key of an update to record, if any."""
        if self._accumulates:
            pattern = tuple(sorted(given))
            graph = self._updates.get(pattern) if may_use_graphs else None
            is_new = may_use_graphs and not graph and self._is_update_capturable and len(self._updates) < _MOST_GRAPHS
        else:
            pattern, graph, is_new = (), last.update if last else None, False
        if graph:
            graph.replay()
            return None
        if last and last.gradients:
            self._set_gradients(last.gradients)
        self.facts["eager_updates"] += 1
        self._update_now(pattern)
        return pattern if is_new else None

    def _update_now(self, given: Sequence[int] = ()) -> None:
        """Where gradients are accumulated, of the parameters in the places `given`: the others' are zeros left by
        earlier steps, by which an optimizer would go on moving them."""
        left, places = [parameter.grad for parameter in self._trained], frozenset(given)
        if self._accumulates:
            self._set_gradients([gradient if place in places else None for place, gradient in enumerate(left)])
        norm = self._step_optimizers()
        if not isinstance(norm, torch.Tensor):
            norm = torch.full_like(self._loss, norm)
        self._engine.sum_over_samples(self._loss)
        self._readback.store(torch.stack([self._loss, norm.to(self._loss.dtype), *self._counts]))
        self._loss.zero_()
        if self._accumulates:  # recorded with the gradients where they are
            torch._foreach_zero_([parameter.grad for parameter in self._trained if parameter.grad is not None])
            self._set_gradients(left)
        else:
            self._set_gradients([None] * len(self._trained))

    def _step_optimizers(self) -> torch.Tensor | float:
        """The engine's update, with learning rates on the device, where a schedule can change them under a graph."""
        if not self._is_update_capturable:
            return self._engine.update()
        plain = [group["lr"] for group in self._groups]
        for group, rate in zip(self._groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            return self._engine.update()
        finally:
            for group, value in zip(self._groups, plain, strict=True):
                group["lr"] = value

    def _forget_outdated(self) -> None:
        """Bring what changes with the steps to the device, and drop every graph that holds on to the past: one that
        reads a tensor which was moved or replaced, or has an optimizer's settings in it that are others now."""
        if self._is_update_capturable:
            for index, (group, rate) in enumerate(zip(self._groups, self._rates, strict=True)):
                if group["lr"] != self._rates_there[index]:
                    rate.fill_(group["lr"])
                    self._rates_there[index] = group["lr"]
        settings = [
            [(name, repr(value)) for name, value in group.items() if name not in _CHANGING] for group in self._groups
        ]
        addresses = self._tensors.addresses()
        is_other = self._is_update_capturable and settings != self._settings  # else no graph has them in it
        if self._recorder and (self._recorded or self._updates) and (is_other or addresses != self._addresses):
            self._is_update_capturable &= not is_other  # a schedule of more than the learning rate
            self._give_up()
            self._recorder.begin_anew()
            self.facts["recaptures"] += 1
        self._settings, self._addresses = settings, addresses

    def _set_gradients(self, gradients: Sequence[torch.Tensor | None]) -> None:
        for parameter, gradient in zip(self._trained, gradients, strict=True):
            parameter.grad = gradient

    def _record_all(
        self, new_update: Any, new: Mapping[Any, tuple[dict[str, Any], int, frozenset[int]]], num_batches: int
    ) -> None:
        """Record what this step ran for the first time: the update of the key `new_update`, if any, and the
        micro-batches `new`, each with its place in the step and what it gave gradients to. What one rank cannot record
        no rank replays."""
        failure: NotCapturableError | None = None
        try:
            if new_update is not None:
                self._updates[new_update] = self._capture(lambda: self._update_now(new_update))
            for key, (staged, index, given) in new.items():
                self._record(key, staged, index, num_batches, given)
        except NotCapturableError as error:
            failure = error
        why = str(failure or "")
        if self._num_ranks > 1:
            why = self._engine.first_failure(why)
        if why:
            self._give_up()
            self._set_gradients([None] * len(self._trained))  # nothing was computed into them
            raise NotCapturableError(why) from failure

    def _record(self, key: Any, staged: dict[str, Any], index: int, num_batches: int, given: frozenset[int]) -> None:
        """Record the micro-batch `staged`, which has just run, and, if the gradients are its alone, its update."""
        assert self._recorder
        try:
            way = self._recorder.stage(staged)
        except torch.OutOfMemoryError as error:
            raise not_capturable(error) from error
        names = self._marks.record_marks()
        try:
            try:
                graph = self._capture(lambda: self._forward_backward(way.batch, index, num_batches))
            finally:
                self._marks.end_record()
        except NotCapturableError as error:
            why = f"{error}{self._waits(error, way.batch, index, num_batches)}"
            raise NotCapturableError(why) from error.__cause__
        recorded = self._recorded[key] = _Recorded(way, graph, names, given)
        if self._accumulates:
            return
        try:
            if self._is_update_capturable:
                recorded.update = self._capture(self._update_now)
            else:
                recorded.gradients = [parameter.grad for parameter in self._trained]
        finally:  # nothing was computed into them yet, and the engine's own step may come next
            self._set_gradients([None] * len(self._trained))

    def _capture(self, work: Callable[[], object]) -> Graph:
        assert self._recorder
        begin, addresses = time.perf_counter(), self._tensors.addresses()
        try:
            with drawing_none_on_the_host():
                graph = self._recorder.record(work)
        except NotCapturableError:
            raise
        except Exception as error:  # noqa: BLE001 - told as what it means
            cause = original_error(error)
            why = not_capturable(cause)
            traceback.clear_frames(cause.__traceback__)  # which hold the graph, and with it a micro-batch's memory
            raise why from cause
        replaced = self._tensors.elsewhere(addresses)
        if replaced:
            raise NotCapturableError(
                f"the step itself puts another tensor in the place of the model's {replaced[0]}: a graph would go on "
                "with the one that it was recorded with"
            )
        self.facts["num_graphs"] += 1
        self.facts["capture_s"] += time.perf_counter() - begin
        return graph

    def _waits(self, error: NotCapturableError, batch: dict[str, Any], index: int, num_batches: int) -> str:
        """Each line at which the host waits for the device, found by running the micro-batch of `error` once more;
        nothing where memory is what it lacked, or other ranks would have to run theirs."""
        if self._num_ranks > 1 or isinstance(error.__cause__, torch.OutOfMemoryError):
            return ""
        assert self._recorder
        self._set_gradients([None] * len(self._trained))
        try:
            lines = self._recorder.waits(lambda: self._forward_backward(batch, index, num_batches))
        except Exception:  # noqa: BLE001 - memory is short now, for one; that it cannot be recorded is known
            lines = []
        self._loss.zero_()
        return f"; the host waits for the GPU at {', '.join(lines)}" if lines else ""


_CHANGING = ("params", "lr", "initial_lr")
"""Of an optimizer's group, what is no fixed setting."""
