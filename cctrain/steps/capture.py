"""Work recorded into a CUDA graph, or a clear word on why it cannot be."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.utils.checkpoint

from cctrain.errors import one_line


class NotCapturableError(RuntimeError):
    """Something in a step cannot be recorded into a CUDA graph; the message names it and its line."""


def capture(work: Callable[[], None], pool: tuple[int, int], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """Record `work`, which has run before on `stream`, into a graph whose memory is of `pool`. Nothing is executed.

    Raises NotCapturableError.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        # thread_local: NCCL's watchdog and the samples' thread go on meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            work()
    except torch.cuda.OutOfMemoryError as error:
        _end_recording_of_random_numbers(stream.device)
        raise NotCapturableError(
            "out of GPU memory while the step was recorded: a graph keeps the memory of a micro-batch to itself; lower "
            "train.step_scheduler.local_batch_size or data.seq_len, or use step=stock"
        ) from error
    except Exception as error:
        _end_recording_of_random_numbers(stream.device)
        raise NotCapturableError(
            f"{_where(error)} cannot be recorded into a CUDA graph ({type(error).__name__}: {one_line(error)})"
        ) from error
    return graph


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
    names = ("attention_dropout", "hidden_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob")
    configs = [config, getattr(config, "text_config", None), getattr(config, "vision_config", None)]
    rates = [getattr(one, name, None) for one in configs for name in names]
    rates += [getattr(module, name, None) for module in model.modules() for name in ("dropout_p", "p", "dropout")]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def recomputes(model: torch.nn.Module) -> bool:
    """Whether the backward pass of `model` runs parts of the forward pass again: torch's wrapper, or transformers'."""
    return any(
        hasattr(module, "_checkpoint_wrapped_module") or getattr(module, "gradient_checkpointing", False)
        for module in model.modules()
    )


def synchronizing_lines(work: Callable[[], object]) -> list[str]:
    """Run `work` and say, as `file:line`, where the host waited for the device in it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)]
    return list(dict.fromkeys(found))


def _where(error: BaseException) -> str:
    """The innermost line outside torch's own files that led to `error`, with its text."""
    while error.__context__ is not None and "capture" in str(error).lower() and error.__context__.__traceback__:
        error = error.__context__  # ending a broken capture raises once more
    frames = traceback.extract_tb(error.__traceback__)
    own = Path(__file__).name
    ours = [frame for frame in frames if "/torch/" not in frame.filename and Path(frame.filename).name != own]
    frame = (ours or list(frames))[-1]
    return f"{frame.line} ({'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno})"
