"""Work recorded into a CUDA graph, or a clear word on why it cannot be."""

from __future__ import annotations

import random
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.utils.checkpoint

from cctrain.errors import one_line
from cctrain.steps.staging import Staging


class NotCapturableError(RuntimeError):
    """Something in a step cannot be recorded into a CUDA graph; the message names it and its line."""


class Graph(Protocol):
    """Recorded work."""

    def replay(self) -> None:
        """Queue it once more."""


class Way(Protocol):
    """The way of one shape's micro-batches to the device."""

    batch: Any
    """Where they arrive: what recorded work reads."""

    def send(self, batch: Any) -> None:
        """Queue the copy of `batch`, which is on the host."""


class Recorder(Protocol):
    """Records a step's work, so that it can be replayed. Where there is none, it runs each time."""

    def begin(self) -> None:
        """Training begins: from here on this thread's work goes to the stream that is recorded."""

    def stage(self, example: Any) -> Way:
        """The way for micro-batches like `example`, which has gone it."""

    def record(self, work: Callable[[], object]) -> Graph:
        """Record `work`, which has run before. Nothing is executed. Raises whatever kept it from being recorded."""

    def begin_anew(self) -> None:
        """All that was recorded is given up."""

    def prepare(self, optimizer: torch.optim.Optimizer) -> bool:
        """Have all that `optimizer` changes with each step on the device. Returns whether it can be recorded then."""

    def waits(self, work: Callable[[], object]) -> list[str]:
        """Run `work` and say, as `file:line`, where the host waited for the device in it."""


_NO_RECOMPILING = "fail_on_recompile"
"""A stance of torch.compile, named in the error that it raises, with what is different."""


class CudaRecorder:
    """Into CUDA graphs, whose memory is of one pool."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()

    def begin(self) -> None:
        """From here on this thread's work goes to one stream, which is the one recorded."""
        torch.cuda.synchronize()
        torch.cuda.set_stream(self._stream)

    def stage(self, example: Any) -> Staging:
        """The way for micro-batches like `example`, which has arrived."""
        staging = Staging(example)
        staging.send(example)
        torch.cuda.current_stream().synchronize()
        return staging

    def record(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        """A graph of `work`. Raises whatever kept it from being recorded."""
        graph = torch.cuda.CUDAGraph()
        with ExitStack() as on_failure:
            on_failure.callback(_end_recording_of_random_numbers, self._stream.device)
            # thread_local: NCCL's watchdog and the samples' thread go on meanwhile. What is compiled anew now, though
            # it has run before, computes constants on the GPU and breaks the recording: let the compiler say why.
            with (
                torch.compiler.set_stance(_NO_RECOMPILING),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                work()
            on_failure.pop_all()
        return graph

    def begin_anew(self) -> None:
        """Torch refuses captures into a pool whose graphs are all gone."""
        self._pool = torch.cuda.graph_pool_handle()

    def prepare(self, optimizer: torch.optim.Optimizer) -> bool:
        """Step counts on the device, and all parameters updated by one kernel."""
        if not all("capturable" in group for group in optimizer.param_groups):
            return False
        for group in optimizer.param_groups:
            group["capturable"] = True
            if "fused" in group:
                group["fused"], group["foreach"] = True, False
        for state in optimizer.state.values():  # of a resumed run
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].to(device="cuda", dtype=torch.float32)
        return True

    def waits(self, work: Callable[[], object]) -> list[str]:
        """By torch's own warnings."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                work()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found = [f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)]
        return list(dict.fromkeys(found))


def original_error(error: BaseException) -> BaseException:
    """The error that broke a recording, where `error` may be what its end raised once more."""
    frames = traceback.extract_tb(error.__traceback__)
    is_of_the_end = bool(frames) and frames[-1].name == torch.cuda.CUDAGraph.capture_end.__name__
    return error.__context__ if is_of_the_end and error.__context__ else error


def not_capturable(error: BaseException) -> NotCapturableError:
    """What it means that `error` was raised while work was recorded."""
    if isinstance(error, torch.OutOfMemoryError):
        return NotCapturableError(
            "out of GPU memory while the step was recorded: a graph keeps the memory of a micro-batch to itself; lower "
            "train.step_scheduler.local_batch_size or data.seq_len, or use step=stock"
        )
    if _NO_RECOMPILING in str(error):
        return NotCapturableError(
            "what was compiled for the step would be compiled anew while it is recorded, which no graph can hold: "
            f"{' '.join(str(error).split())}; step.compile=false leaves layers as they are"
        )
    return NotCapturableError(
        f"{_where(error)} cannot be recorded into a CUDA graph ({type(error).__name__}: {one_line(error)})"
    )


def _end_recording_of_random_numbers(device: torch.device) -> None:
    """A capture that broke off leaves the generator of random numbers waiting for its end, and whoever draws some next
    with an error: go on from a copy of its state, which waits for nothing."""
    generator = torch.cuda.default_generators[device.index]
    generator.graphsafe_set_state(generator.clone_state())


@contextmanager
def without_random_state() -> Iterator[None]:
    """Within, activation checkpointing keeps no state of the GPU's random numbers, which cannot be read while a graph
    is recorded. Only where nothing random is computed: then recomputing needs none."""
    checkpoint: Any = torch.utils.checkpoint
    original, checkpoint.get_device_states = checkpoint.get_device_states, lambda *_: ([], [])
    try:
        yield
    finally:
        checkpoint.get_device_states = original


def draws_random_numbers(model: torch.nn.Module) -> bool:
    """Whether `model` has any dropout, which is what fine-tuning draws random numbers for."""
    config = getattr(model, "config", None)
    configs = [config, getattr(config, "text_config", None), getattr(config, "vision_config", None)]
    holders = [*(one for one in configs if one is not None), *model.modules()]
    rates = (rate for one in holders for name, rate in vars(one).items() if name == "p" or "drop" in name)
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


@contextmanager
def drawing_none_on_the_host() -> Iterator[None]:
    """Within, work is recorded. Raises NotCapturableError at its end where random numbers of the host were drawn."""
    before = _random_state_of_the_host()
    yield
    if _random_state_of_the_host() != before:
        raise NotCapturableError(
            "the step draws random numbers on the host, as LayerDrop does for layers to leave out: a graph would "
            "repeat in every step what the first ones decided"
        )


def _random_state_of_the_host() -> tuple[Any, ...]:
    """Python's, numpy's and torch's."""
    numpys: Any = np.random.get_state()
    return (random.getstate(), numpys[1].tobytes(), numpys[2:], torch.get_rng_state().numpy().tobytes())


def recomputes(model: torch.nn.Module) -> bool:
    """Whether the backward pass of `model` runs parts of the forward pass again: torch's wrapper, or transformers'."""
    return any(
        hasattr(module, "_checkpoint_wrapped_module") or getattr(module, "gradient_checkpointing", False)
        for module in model.modules()
    )


def _where(error: BaseException) -> str:
    """The innermost line outside torch's own files that led to `error`, with its text."""
    frames = traceback.extract_tb(error.__traceback__)
    own = Path(__file__).name
    ours = [frame for frame in frames if "/torch/" not in frame.filename and Path(frame.filename).name != own]
    frame = (ours or list(frames))[-1]
    return f"{frame.line} ({'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno})"
