"""NVIDIA NeMo AutoModel: its recipes, run as they are, with time stamps at the edges of what they do.

AutoModel has no callbacks, so the recipe class is subclassed at the method names that its LLM and VLM recipes share
(0.5 to 0.7). Nothing here adds a synchronization, a copy or a collective to a step; the stamps cost four kernel
launches, and two for each further micro-batch.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable
from typing import Any

import torch

from cctrain.emulation.in_rank import toll_switch
from cctrain.emulation.switch import TollSwitch
from cctrain.engines import images
from cctrain.engines.automodel_graphed import GraphedTraining
from cctrain.engines.observer import Observer
from cctrain.engines.tensor_parallel import few_collectives
from cctrain.engines.unfinished import reshard
from cctrain.metrics import count_tokens
from cctrain.request.strategy import is_ddp
from cctrain.samples import SampleFile
from cctrain.steps.capture import CudaRecorder

_RECIPE_MODULES = {
    "TrainFinetuneRecipeForNextTokenPrediction": "nemo_automodel.recipes.llm.train_ft",
    "FinetuneRecipeForVLM": "nemo_automodel.recipes.vlm.finetune",
}


def train(config: dict[str, Any], samples: SampleFile) -> dict[str, Any]:
    """Run the recipe `config["train"]` to its end on this rank. Returns what its end line says.

    Every finished step is appended to `samples`. Raises whatever the recipe raises.
    """
    recipe, observer = build(
        config["train"], samples, lambda: toll_switch(config, int(os.environ["WORLD_SIZE"])), config["step"]
    )
    recipe.setup()
    recipe.run_train_validation_loop()
    return {**observer.memory(), "graphs": recipe.step_facts()}


_STOCK = {"kind": "stock"}


def build(
    train: dict[str, Any],
    samples: SampleFile,
    make_switch: Callable[[], TollSwitch | None] = lambda: None,
    step: dict[str, Any] = _STOCK,
) -> tuple[Any, Observer]:
    """The recipe `train`, not set up yet, and what will time it; `make_switch` is called when training begins, and
    `step` is the configuration's."""
    if not torch.cuda.is_available():
        from cctrain.engines import cpu

        cpu.install()
    name = train["recipe"]
    if name == "FinetuneRecipeForVLM":
        images.install()
    from nemo_automodel.components.config.loader import ConfigNode

    module: Any = importlib.import_module(_RECIPE_MODULES[name])
    if torch.cuda.is_available() and _is_built_on_cpu(train, int(os.environ["WORLD_SIZE"])):
        module.build_model = _on_this_gpu(module.build_model)
    # AutoModel takes every attribute of a recipe with a state for something to checkpoint: ours is the class's.
    observer = Observer(samples, make_switch, train)
    mixin = TimedRecipe if step["kind"] == "stock" else GraphedRecipe
    timed: Any = type(name, (mixin, getattr(module, name)), {"observer": observer, "step_config": step})
    return timed(ConfigNode(train)), observer


def _is_built_on_cpu(train: dict[str, Any], num_ranks: int) -> bool:
    """Whether AutoModel would draw random weights on one CPU core: of replicas, and of Hugging Face's class alone."""
    model = train["model"]
    is_random = str(model["_target_"]).endswith(".from_config")
    return is_random and (is_ddp(train) or (bool(model.get("force_hf")) and num_ranks == 1))


def _on_this_gpu(build_model: Any) -> Any:
    """Have the GPU draw them: 31 billion take minutes on a core."""

    def build(*args: Any, **kwargs: Any) -> Any:
        with torch.device("cuda", torch.cuda.current_device()):
            return build_model(*args, **kwargs)

    return build


def _ask_to_stop(handler: Any) -> None:
    """As if this rank had got the signal that `handler` waits for."""
    handler._signal_received = True


class TimedRecipe:
    """Mixed into a recipe class of AutoModel before it; the methods are AutoModel's."""

    observer: Observer

    def step_facts(self) -> dict[str, Any]:
        """For the record: which step it was."""
        return {"kind": "stock"}

    def setup(self: Any) -> None:
        """Set up, then attach the observer."""
        super().setup()  # type: ignore[misc]
        if not self.cfg.get("checkpoint.enabled", True):
            # AutoModel's handler turns SIGTERM into a checkpoint at the next step; with none to save, a stop is a stop.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        scheduler = self.step_scheduler
        scheduler.dataloader = self.observer.attach(
            self.model_parts[0],
            scheduler.dataloader,
            data_rank=self._get_dp_rank(),
            data_ranks=self._get_dp_group_size() * self._get_cp_group_size(),
            # AutoModel's poll for SIGTERM, or the graphed step's, tells the other ranks.
            stop=lambda: _ask_to_stop(scheduler.sig_handler),
            hook=not self.pp_enabled,
        )

    def run_train_validation_loop(self) -> None:
        """Train, observed."""
        self.observer.begin()
        try:
            self._train()
        except BaseException:
            self.observer.end(is_complete=False)
            raise
        self.observer.end(is_complete=True)

    def _train(self) -> None:
        super().run_train_validation_loop()  # type: ignore[misc]

    def _run_train_optim_step(self: Any, batches: Any, max_grad_norm: float | None = None) -> Any:
        counts = count_tokens(batches)
        log = super()._run_train_optim_step(batches, max_grad_norm)  # type: ignore[misc]
        metrics = log.metrics
        own = {"engine_tokens": metrics["num_tokens_per_step"], "engine_tokens_per_s_per_gpu": metrics["tps_per_gpu"]}
        self.observer.step_end(
            step=log.step + 1,
            loss=float(metrics["loss"]),
            counts=counts,
            peak_bytes=int(metrics["mem"] * 2**30),  # the main rank resets the counter after each step, others never
            **(own if self.dist_env.is_main else {}),  # only the first rank's are read
        )
        return log

    def _forward_backward_step(self: Any, idx: int, batch: Any, **kwargs: Any) -> Any:
        is_train = kwargs.get("is_train", True)
        if is_train and idx == 0:
            self._begin_passes()
        result = super()._forward_backward_step(idx, batch, **kwargs)  # type: ignore[misc]
        if is_train:
            self.observer.timer.phase_end("forward_backward" if self.pp_enabled else "backward")
        return result

    def _begin_passes(self) -> None:
        self.observer.timer.phase_end("other")

    def _run_validation_epoch(self, *args: Any, **kwargs: Any) -> Any:
        self.observer.pause()
        result = super()._run_validation_epoch(*args, **kwargs)  # type: ignore[misc]
        self.observer.resume()
        return result

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Save one where the recipe does; its time belongs to no step."""
        self.observer.pause()
        result = super().save_checkpoint(*args, **kwargs)  # type: ignore[misc]
        self.observer.resume()
        return result


class GraphedRecipe(TimedRecipe):
    """The same with `step=graphed` or `auto`: `_run_train_optim_step` is replaced, and what comes after a step waits
    until its loss is known."""

    step_config: dict[str, Any]
    graphed: GraphedTraining

    def setup(self: Any) -> None:
        """Set up; the step itself when training begins."""
        with few_collectives():
            super().setup()
        # Of the class, as the observer: AutoModel would take it for something to checkpoint.
        type(self).graphed = GraphedTraining(
            self,
            recorder=CudaRecorder() if torch.cuda.is_available() else None,
            is_compiled=self.step_config["compile"],
            may_fall_back=self.step_config["kind"] == "auto",
        )

    def step_facts(self) -> dict[str, Any]:
        """For the record: which step it was, why, and what was recorded into graphs."""
        return self.graphed.facts()

    def run_train_validation_loop(self) -> None:
        """Train, with the step's graphs."""
        self.graphed.begin()
        try:
            super().run_train_validation_loop()
        finally:
            self.graphed.close()

    def _train(self) -> None:
        super()._train()
        self.graphed.drain()

    def _run_train_optim_step(self, batches: Any, max_grad_norm: float | None = None) -> Any:
        if not self.graphed.is_active:
            return super()._run_train_optim_step(batches, max_grad_norm)
        prepared = self.graphed.prepared(batches)
        log = self.graphed.run(prepared, max_grad_norm)
        self.observer.step_end(
            step=log.step + 1, loss=None, counts=count_tokens(prepared), peak_bytes=self.graphed.peak_bytes
        )
        return log

    def _begin_passes(self) -> None:
        if not self.graphed.is_active:  # which marks it itself, outside of the graph
            super()._begin_passes()

    def _run_validation_epoch(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = super()._run_validation_epoch(*args, **kwargs)
        for part in self.model_parts:
            reshard(part)
        return result

    def log_train_metrics(self, log_data: Any) -> Any:
        """AutoModel's log, of each step once its loss is known."""
        for known in self.graphed.loggable(log_data):
            super().log_train_metrics(known)  # type: ignore[misc]

    def save_checkpoint(self, epoch: int, step: int, train_loss: float, *args: Any, **kwargs: Any) -> Any:
        """Save one where the recipe does, with the loss of its own step."""
        if self.graphed.is_active:
            self.graphed.drain()
            for known in self.graphed.known():
                super().log_train_metrics(known)  # type: ignore[misc]
            train_loss = self.graphed.loss_of(step + 1)
        return super().save_checkpoint(epoch, step, train_loss, *args, **kwargs)
