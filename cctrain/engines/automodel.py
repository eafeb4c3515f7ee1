"""NVIDIA NeMo AutoModel: its recipes, run as they are, with time stamps at the edges of what they do.

AutoModel has no callbacks, so the recipe class is subclassed at the method names that its LLM and VLM recipes share
(0.5 to 0.7). Nothing here adds a synchronization, a copy or a collective to a step; the stamps cost four kernel
launches, and two for each further micro-batch.
"""

from __future__ import annotations

import importlib
import math
import signal
import time
from collections.abc import Iterator
from typing import Any

import torch

from cctrain.engines import images
from cctrain.metrics import count_tokens
from cctrain.samples import SampleFile, SampleThread
from cctrain.timing.clock import HostClock, StepClock
from cctrain.timing.timer import StepTimer

_RECIPE_MODULES = {
    "TrainFinetuneRecipeForNextTokenPrediction": "nemo_automodel.recipes.llm.train_ft",
    "FinetuneRecipeForVLM": "nemo_automodel.recipes.vlm.finetune",
}


class LossIsNotFinite(RuntimeError):
    """Training went on with a NaN or an infinite loss; what follows is not worth timing."""


def train(config: dict[str, Any], samples: SampleFile) -> dict[str, Any]:
    """Run the recipe `config["train"]` to its end on this rank. Returns what its end line says.

    Every finished step is appended to `samples`. Raises whatever the recipe raises.
    """
    if not torch.cuda.is_available():
        from cctrain.engines import cpu

        cpu.install()
    from nemo_automodel.components.config.loader import ConfigNode

    name = config["train"]["recipe"]
    if name == "FinetuneRecipeForVLM":
        images.install()
    base = getattr(importlib.import_module(_RECIPE_MODULES[name]), name)
    recipe = _timed(base, samples)(ConfigNode(config["train"]))
    recipe.setup()
    recipe.run_train_validation_loop()
    return _peak_memory()


def _peak_memory() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"peak_allocated_bytes": None, "peak_reserved_bytes": None}
    return {
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
    }


def _clock() -> StepClock:
    if not torch.cuda.is_available():
        return HostClock()
    from cctrain.timing.device_clock import DeviceClock

    return DeviceClock()


class _TimedLoader:
    """The recipe's data loader, with the host time that each `next` took."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.waited_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        while True:
            begin = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited_s += time.perf_counter() - begin
            yield batch

    def take_wait_s(self) -> float:
        """Seconds waited since the last call."""
        waited, self.waited_s = self.waited_s, 0.0
        return waited


def _timed(base: Any, samples: SampleFile) -> Any:
    """A subclass of the recipe class `base` that stamps time. Its state lives in this closure: AutoModel's recipes
    take every attribute with a state for something to checkpoint."""
    timer: StepTimer
    loader: _TimedLoader
    thread: SampleThread

    class Timed(base):  # type: ignore[misc,valid-type]
        def setup(self) -> None:
            nonlocal timer, loader, thread
            super().setup()
            if not self.cfg.get("checkpoint.enabled", True):
                # AutoModel's handler turns SIGTERM into a checkpoint at the next step; without one to save, a stop is
                # a stop.
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            clock = _clock()
            timer = StepTimer(clock)
            loader = _TimedLoader(self.step_scheduler.dataloader)
            self.step_scheduler.dataloader = loader
            if not self.pp_enabled:
                self.model_parts[0].register_forward_hook(lambda *_: timer.phase_end("forward"))
            samples.write({"event": "ready", "data_rank": self._get_dp_rank(), "clock": clock.name})
            thread = SampleThread(timer.finished, samples)

        def run_train_validation_loop(self) -> None:
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()  # loading may have taken more than training will
            timer.resume()
            loader.take_wait_s()
            try:
                super().run_train_validation_loop()
            finally:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                thread.close()

        def _run_train_optim_step(self, batches: Any, max_grad_norm: float | None = None) -> Any:
            thread.check()
            counts = count_tokens(batches)
            log = super()._run_train_optim_step(batches, max_grad_norm)
            step, loss = log.step + 1, float(log.metrics["loss"])
            timer.step_end("optimizer", step=step, loss=loss, data_wait_s=loader.take_wait_s(), **counts)
            if not math.isfinite(loss):
                raise LossIsNotFinite(f"the loss of step {step} is {loss}")
            return log

        def _forward_backward_step(self, idx: int, batch: Any, **kwargs: Any) -> Any:
            is_train = kwargs.get("is_train", True)
            if is_train and idx == 0:
                timer.phase_end("other")
            result = super()._forward_backward_step(idx, batch, **kwargs)
            if is_train:
                timer.phase_end("backward" if not self.pp_enabled else "forward_backward")
            return result

        def _run_validation_epoch(self, *args: Any, **kwargs: Any) -> Any:
            result = super()._run_validation_epoch(*args, **kwargs)
            timer.resume()
            return result

        def save_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
            result = super().save_checkpoint(*args, **kwargs)
            timer.resume()
            return result

    return Timed
