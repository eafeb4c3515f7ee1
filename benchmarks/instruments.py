"""Other people's instruments for `instrument.py --others`: each around the same steps, and what it then says of them.

What a package does by itself beside the step (threads, patches) runs on in the blocks of the others; what only its
start and its end take is not billed to steps.
"""

# ruff: noqa: D102 - methods are those of Instrument

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch


class Instrument(Protocol):
    """Around blocks of steps."""

    def start(self, tokens: int, samples: int) -> None:
        """A block begins, of steps of so many each."""

    def around(self, model: Any) -> AbstractContextManager[Any]:
        """Around one step."""

    def step_end(self) -> None:
        """The step is over on the host."""

    def stop(self) -> list[float]:
        """The block is over: tokens/s as the instrument has them; empty where it tells at the end only."""

    def at_the_end(self) -> list[float]:
        """Likewise, of all its blocks."""


class _Plain:
    """Nothing around a step and nothing at the end."""

    tokens, samples, num_steps, begin = 0, 0, 0, 0.0

    def start(self, tokens: int, samples: int) -> None:
        self.tokens, self.samples, self.num_steps, self.begin = tokens, samples, 0, self.now()

    def now(self) -> float:
        return time.perf_counter()

    def around(self, _: Any) -> AbstractContextManager[Any]:
        return nullcontext()

    def step_end(self) -> None:
        self.num_steps += 1

    def at_the_end(self) -> list[float]:
        return []


class Lightning(_Plain):
    """Lightning Fabric's Throughput, updated after each step as its documentation does."""

    def __init__(self) -> None:
        from lightning.fabric.utilities.throughput import Throughput

        self._make = Throughput

    def start(self, tokens: int, samples: int) -> None:
        super().start(tokens, samples)
        self._updates: list[dict[str, Any]] = []
        self._throughput = self._make(window_size=10_000)
        self._throughput.update(time=0.0, batches=0, samples=0, lengths=0)

    def step_end(self) -> None:
        super().step_end()
        counts = {"samples": self.num_steps * self.samples, "lengths": self.num_steps * self.tokens}
        update = {"time": self.now() - self.begin, "batches": self.num_steps, **counts}
        self._updates.append(update)
        self._throughput.update(**update)

    def stop(self) -> list[float]:
        filled = self._make(window_size=len(self._updates) + 1)  # it answers once its window is full
        for update in ({"time": 0.0, "batches": 0, "samples": 0, "lengths": 0}, *self._updates):
            filled.update(**update)
        return [float(filled.compute()["device/items_per_sec"])]


class HuggingFace(_Plain):
    """The speed metrics of transformers' Trainer: counts over the host's time since training began."""

    def __init__(self) -> None:
        from transformers.trainer_utils import speed_metrics

        self._speed_metrics = speed_metrics

    def now(self) -> float:
        return time.time()

    def step_end(self) -> None:
        super().step_end()
        self._last = self._speed_metrics("train", self.begin, num_tokens=self.num_steps * self.tokens)

    def stop(self) -> list[float]:
        return [float(self._last["train_tokens_per_second"])]


class TorchProfiler(_Plain):
    """torch.profiler of CPU and, where there is one, GPU, with a `step()` after each step."""

    def start(self, tokens: int, samples: int) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        schedule = torch.profiler.schedule(wait=0, warmup=0, active=10_000)
        self._profile = torch.profiler.profile(activities=activities, schedule=schedule)
        self._profile.start()
        super().start(tokens, samples)

    def step_end(self) -> None:
        super().step_end()
        self._profile.step()

    def stop(self) -> list[float]:
        self._profile.stop()
        spans = [event for event in self._profile.events() if event.name.startswith("ProfilerStep")]
        steps = [event.time_range.elapsed_us() for event in spans if event.device_type == torch.autograd.DeviceType.CPU]
        return [self.tokens / (us * 1e-6) for us in steps[: self.num_steps]]


class TraceMl(_Plain):
    """TraceML's `trace_step`, all else automatic. Only under `traceml run`, which starts what it reports to."""

    def __init__(self) -> None:
        import traceml_ai

        self._traceml = traceml_ai
        traceml_ai.init(mode="auto", on_missing_aggregator="raise")

    def around(self, model: Any) -> AbstractContextManager[Any]:
        return self._traceml.trace_step(model)  # type: ignore[no-any-return]

    def stop(self) -> list[float]:
        return []

    def at_the_end(self) -> list[float]:
        """Of the mean step, which is all that its summary has."""
        mean_ms = self._traceml.summary().get("traceml/step_time/traced_step_time_ms")
        return [self.tokens / (mean_ms * 1e-3)] if mean_ms else []


ALL: dict[str, Callable[[], Instrument]] = {
    "Lightning's Throughput": Lightning,
    "Trainer's speed metrics": HuggingFace,
    "torch.profiler": TorchProfiler,
    "TraceML": TraceMl,
}
SHORT = dict(zip(("lightning", "hf", "profiler", "traceml"), ALL, strict=True))
