"""NVIDIA NeMo AutoModel: its recipes, run as they are, with time stamps at the edges of what they do.

AutoModel has no callbacks, so the recipe class is subclassed at the method names that its LLM and VLM recipes share
(0.5 to 0.7). Nothing here adds a synchronization, a copy or a collective to a step; the stamps cost four kernel
launches, and two for each further micro-batch.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from cctrain.emulation.in_rank import toll_switch
from cctrain.emulation.switch import TollSwitch
from cctrain.engines import images
from cctrain.metrics import count_tokens
from cctrain.samples import STOP_FILE, SampleFile, SampleThread
from cctrain.timing.clock import HostClock, StepClock
from cctrain.timing.timer import StepTimer

_RECIPE_MODULES = {
    "TrainFinetuneRecipeForNextTokenPrediction": "nemo_automodel.recipes.llm.train_ft",
    "FinetuneRecipeForVLM": "nemo_automodel.recipes.vlm.finetune",
}


class LossNotFiniteError(RuntimeError):
    """The loss became a NaN or infinite; what follows is not worth timing."""


def train(config: dict[str, Any], samples: SampleFile) -> dict[str, Any]:
    """Run the recipe `config["train"]` to its end on this rank. Returns what its end line says.

    Every finished step is appended to `samples`. Raises whatever the recipe raises.
    """
    recipe, observer = build(config["train"], samples, lambda: toll_switch(config, int(os.environ["WORLD_SIZE"])))
    recipe.setup()
    recipe.run_train_validation_loop()
    return observer.memory()


def build(
    train: dict[str, Any], samples: SampleFile, make_switch: Callable[[], TollSwitch | None] = lambda: None
) -> tuple[Any, Observer]:
    """The recipe `train`, not set up yet, and what will time it; `make_switch` is called when training begins."""
    if not torch.cuda.is_available():
        from cctrain.engines import cpu

        cpu.install()
    name = train["recipe"]
    if name == "FinetuneRecipeForVLM":
        images.install()
    from nemo_automodel.components.config.loader import ConfigNode

    module: Any = importlib.import_module(_RECIPE_MODULES[name])
    if torch.cuda.is_available() and _is_built_on_cpu(train["model"]):
        module.build_model = _on_this_gpu(module.build_model)
    # AutoModel takes every attribute of a recipe with a state for something to checkpoint: ours is the class's.
    observer = Observer(samples, make_switch)
    timed: Any = type(name, (TimedRecipe, getattr(module, name)), {"observer": observer})
    return timed(ConfigNode(train)), observer


def _is_built_on_cpu(model: dict[str, Any]) -> bool:
    """Whether AutoModel would draw random weights on one CPU core: Hugging Face's class, and no sharding."""
    is_random = str(model["_target_"]).endswith(".from_config")
    return is_random and bool(model.get("force_hf")) and os.environ["WORLD_SIZE"] == "1"


def _on_this_gpu(build_model: Any) -> Any:
    """Have the GPU draw them: 31 billion take minutes on a core."""

    def build(*args: Any, **kwargs: Any) -> Any:
        with torch.device("cuda", torch.cuda.current_device()):
            return build_model(*args, **kwargs)

    return build


def _clock() -> StepClock:
    if not torch.cuda.is_available():
        return HostClock()
    from cctrain.timing.device_clock import DeviceClock

    return DeviceClock()


class _TimedLoader:
    """The recipe's data loader, with the host time that each `next` took."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._waited_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        begin = time.perf_counter()
        batches = iter(self._loader)  # starts the loader's workers, at each epoch
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._waited_s += time.perf_counter() - begin
            yield batch
            begin = time.perf_counter()

    def take_wait_s(self) -> float:
        """Seconds waited since the last call."""
        waited, self._waited_s = self._waited_s, 0.0
        return waited


class Observer:
    """The clock, the loader and the samples of one recipe."""

    def __init__(self, samples: SampleFile, make_switch: Callable[[], TollSwitch | None]) -> None:
        self._samples = samples
        self._make_switch = make_switch
        self._switch: TollSwitch | None = None
        self._peak_bytes = 0
        self.timer: StepTimer
        self.loader: _TimedLoader
        self.thread: SampleThread

    def attach(self, recipe: Any) -> None:
        """Start observing `recipe`, whose model and loader now stand."""
        clock = _clock()
        self.timer = StepTimer(clock)
        self.loader = recipe.step_scheduler.dataloader = _TimedLoader(recipe.step_scheduler.dataloader)
        if not recipe.pp_enabled:
            recipe.model_parts[0].register_forward_hook(lambda *_: self.timer.phase_end("forward"))
        self._samples.write(
            {
                "event": "ready",
                "data_rank": recipe._get_dp_rank(),
                "data_ranks": recipe._get_dp_group_size() * recipe._get_cp_group_size(),
                "clock": clock.name,
                "model_config": _model_config(recipe.model_parts[0]),
                "versions": _versions(),
            }
        )
        self.thread = SampleThread(self.timer.finished, self._samples, lambda: _stop_if_asked(recipe, self._samples))

    def begin(self) -> None:
        """Training begins: what came before belongs to no step, and its memory to no peak."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._switch = self._make_switch()
        self._next_block()
        self.timer.resume()
        self.loader.take_wait_s()

    def end(self, *, is_complete: bool) -> None:
        """Training is over: write the steps that are not written yet. After a failure the device may never finish
        what was queued (a collective whose peer is gone), so only a complete run waits for it."""
        if is_complete:
            _drain()
        self.thread.close()
        if is_complete:
            self.thread.check()

    def memory(self) -> dict[str, int | None]:
        """Peaks of torch's allocator on this rank, None on CPU, and how often it had to free its cache to go on."""
        if not torch.cuda.is_available():
            return {"peak_allocated_bytes": None, "peak_reserved_bytes": None, "num_alloc_retries": None}
        stats = torch.cuda.memory_stats()
        return {
            # AutoModel's main rank resets the counter after each step, the others never.
            "peak_allocated_bytes": max(self._peak_bytes, stats["allocated_bytes.all.peak"]),
            # Reset with the other, but what is reserved stays so, unless the cache had to be freed.
            "peak_reserved_bytes": stats["reserved_bytes.all.peak"],
            "num_alloc_retries": stats["num_alloc_retries"],
        }

    def step_end(self, log: Any, counts: dict[str, Any]) -> None:
        """A step is over. Raises LossNotFiniteError, and what the samples' thread ran into."""
        metrics = log.metrics
        step, loss = log.step + 1, float(metrics["loss"])
        self._peak_bytes = max(self._peak_bytes, int(metrics["mem"] * 2**30))
        crossed = self._switch.step_end() if self._switch else {}
        self.timer.step_end(
            "optimizer",
            data_wait_s=self.loader.take_wait_s(),
            step=step,
            loss=loss,
            engine_tokens=metrics["num_tokens_per_step"],
            engine_tokens_per_s_per_gpu=metrics["tps_per_gpu"],
            **counts,
            **crossed,
        )
        if self._next_block():
            self.timer.resume()
            self.loader.take_wait_s()
        self.thread.check()
        if not math.isfinite(loss):
            why = "is train.optimizer.lr too high?" if counts["label_tokens"] else "its batch has no label token"
            raise LossNotFiniteError(f"the loss of step {step} is {loss}; {why}")

    def _next_block(self) -> bool:
        """Whether a block of steps under other tolls begins here, with an empty queue."""
        return self._switch is not None and self._switch.next(_drain)


def _drain() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _versions() -> dict[str, str | None]:
    """What this process has loaded."""
    nccl = ".".join(str(part) for part in torch.cuda.nccl.version()) if torch.cuda.is_available() else None
    return {"torch": torch.__version__, "cuda_runtime": torch.version.cuda, "nccl": nccl}


def _model_config(model: Any) -> dict[str, Any] | None:
    """The model's own configuration, with whatever the recipe changed in it."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return None
    plain: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    return plain


def _stop_if_asked(recipe: Any, samples: SampleFile) -> None:
    """End the training with the step under way where the parent says that enough is measured.

    AutoModel's poll for SIGTERM, a collective that it makes each step anyway, tells the other ranks, so that all end
    with the same step.
    """
    if (samples.path.parent.parent / STOP_FILE).exists():
        recipe.step_scheduler.sig_handler._signal_received = True


class TimedRecipe:
    """Mixed into a recipe class of AutoModel before it; the methods are AutoModel's."""

    observer: Observer

    def setup(self: Any) -> None:
        """Set up, then attach the observer."""
        super().setup()  # type: ignore[misc]
        if not self.cfg.get("checkpoint.enabled", True):
            # AutoModel's handler turns SIGTERM into a checkpoint at the next step; with none to save, a stop is a stop.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.observer.attach(self)

    def run_train_validation_loop(self) -> None:
        """Train, observed."""
        self.observer.begin()
        try:
            super().run_train_validation_loop()  # type: ignore[misc]
        except BaseException:
            self.observer.end(is_complete=False)
            raise
        self.observer.end(is_complete=True)

    def _run_train_optim_step(self, batches: Any, max_grad_norm: float | None = None) -> Any:
        counts = count_tokens(batches)
        log = super()._run_train_optim_step(batches, max_grad_norm)  # type: ignore[misc]
        self.observer.step_end(log, counts)
        return log

    def _forward_backward_step(self: Any, idx: int, batch: Any, **kwargs: Any) -> Any:
        is_train = kwargs.get("is_train", True)
        if is_train and idx == 0:
            self.observer.timer.phase_end("other")
        result = super()._forward_backward_step(idx, batch, **kwargs)  # type: ignore[misc]
        if is_train:
            self.observer.timer.phase_end("forward_backward" if self.pp_enabled else "backward")
        return result

    def _run_validation_epoch(self, *args: Any, **kwargs: Any) -> Any:
        self.observer.timer.pause()
        result = super()._run_validation_epoch(*args, **kwargs)  # type: ignore[misc]
        self.observer.timer.resume()
        return result

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Save one where the recipe does; its time belongs to no step."""
        self.observer.timer.pause()
        result = super().save_checkpoint(*args, **kwargs)  # type: ignore[misc]
        self.observer.timer.resume()
        return result
