"""transformers' Trainer with PEFT and Accelerate: the second engine, which answers whether what a run shows is
confidential computing's doing or AutoModel's.

The recipe is AutoModel's, and so are the data; model, LoRA, loss, optimizer step, sharding and loop are Hugging Face's
as they come. Set where both have a choice, to AutoModel's: labels are those of the loader, already shifted; the loss is
the sum over the label tokens of all ranks and micro-batches over their number; gradients are clipped to 1 unless the
recipe says otherwise; the learning rate follows AutoModel's schedule; adapters are of the weights' type. The loss is
read at each step (`logging_steps=1`), as AutoModel does, which makes the host wait; the loss is inside "forward".
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from nemo_automodel.components.config.loader import translate_value
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainingArguments

from cctrain.emulation.in_rank import toll_switch
from cctrain.emulation.switch import TollSwitch
from cctrain.engines.hf_model import DrawnBy, build_loader, build_model, forward_keys
from cctrain.engines.hf_schedule import learning_rate
from cctrain.engines.observer import Observer
from cctrain.metrics import count_tokens
from cctrain.request.hf import policy_dtype
from cctrain.request.recipe import is_cpu_recipe
from cctrain.samples import SampleFile

_LOADING_S = 3600
"""How long ranks wait for the first one, which draws or loads the whole model; who follows the run ends one that
hangs."""


def train(config: dict[str, Any], samples: SampleFile) -> dict[str, Any]:
    """Train the recipe `config["train"]` to its end on this rank. Returns what its end line says.

    Every finished step is appended to `samples`. Raises whatever Trainer raises.
    """
    run_dir = samples.path.parent.parent
    is_polling = config["measure"]["steps"] == "auto"
    trainer = build(
        config["train"],
        samples,
        lambda: toll_switch(config, int(os.environ["WORLD_SIZE"])),
        output=run_dir / "trainer",
        is_polling=is_polling,
    )
    try:
        trainer.train()
    except BaseException:
        trainer.observer.end(is_complete=False)
        raise
    trainer.observer.end(is_complete=True)
    memory = trainer.observer.memory()
    trainer.accelerator.end_training()  # the process group: its threads may abort an interpreter that ends before them
    return memory


def build(
    train: dict[str, Any],
    samples: SampleFile,
    make_switch: Callable[[], TollSwitch | None] = lambda: None,
    *,
    output: Path,
    is_polling: bool = False,
) -> TimedTrainer:
    """The Trainer of the recipe `train`, and in it what will time it; `make_switch` is called when training begins.

    `is_polling`: the run may be told to stop, and its ranks agree about that at each step.
    """
    train = as_read(train)
    arguments = training_arguments(train, output)
    sharding = _sharding(train, arguments)
    transformers.set_seed(arguments.seed)
    model = _sharded_model(train, arguments, sharding) if sharding else build_model(train, device=arguments.device)
    loader = build_loader(
        train,
        data_rank=arguments.process_index,
        data_ranks=arguments.world_size,
        first=arguments.main_process_first(desc="data"),
    )
    of_hf = {**train, "model": {**train["model"], "force_hf": True}}  # whose class it is says what is computed again
    observer = Observer(samples, make_switch, of_hf)
    trainer = TimedTrainer(train, model, arguments, sharding, observer, is_polling=is_polling)
    trainer.observe(loader)
    return trainer


def as_read(node: Any) -> Any:
    """A recipe with its text as AutoModel reads it: `1e-5`, to YAML a word, is a number, and `none` is null."""
    if isinstance(node, Mapping):
        return {key: as_read(value) for key, value in node.items()}
    return [as_read(value) for value in node] if isinstance(node, list) else translate_value(node)


def training_arguments(train: Mapping[str, Any], output: Path) -> TrainingArguments:
    """The recipe's settings under Trainer's names."""
    scheduler, compiled = train["step_scheduler"], train.get("compile") or {}
    micro_batch = scheduler.get("local_batch_size", 1)
    world = int(os.environ["WORLD_SIZE"])
    is_compiled = bool(compiled.get("enabled"))
    max_norm = (train.get("clip_grad_norm") or {}).get("max_norm")
    is_cpu = is_cpu_recipe(dict(train))
    if world == 1:  # no process group, and no gathering of the loss: as where a program with a Trainer is just started
        os.environ.pop("LOCAL_RANK", None)
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=scheduler["max_steps"],
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=scheduler.get("global_batch_size", micro_batch * world) // (micro_batch * world),
        max_grad_norm=1.0 if max_norm is None else float(max_norm),
        gradient_checkpointing=bool((train.get("distributed") or {}).get("activation_checkpointing")),
        gradient_checkpointing_kwargs={"use_reentrant": False},
        seed=train.get("seed", 42),
        torch_compile=is_compiled,
        torch_compile_backend=(compiled.get("backend") or "inductor") if is_compiled else None,
        torch_compile_mode=compiled.get("mode") if is_compiled else None,
        use_liger_kernel=bool(train["model"].get("use_liger_kernel")),
        use_cpu=is_cpu,
        ddp_backend=None if world == 1 else "gloo" if is_cpu else "nccl",
        ddp_timeout=max(60 * int((train.get("dist_env") or {}).get("timeout_minutes") or 1), _LOADING_S),
        ddp_find_unused_parameters=False,
        bf16=False,  # weights are of the type that is computed with: no autocast
        logging_steps=1,
        logging_nan_inf_filter=False,  # it reads each micro-batch's loss on the host, and hides a NaN
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    assert arguments.device  # looks at the machine, and would take all of its GPUs
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _sharding(train: Mapping[str, Any], arguments: TrainingArguments) -> FullyShardedDataParallelPlugin | None:
    """FSDP2 with AutoModel's types, where the recipe wants it and there is more than one rank."""
    distributed = train.get("distributed") or {}
    if arguments.world_size == 1 or distributed.get("strategy", "fsdp2") == "ddp":
        return None
    if not arguments.use_cpu:  # transformers reads it where it loads: on the first rank, and sends the weights around
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    names = [policy_dtype(train, name) for name in ("param_dtype", "reduce_dtype")]
    types = [name and getattr(torch, name) for name in names]
    policy = MixedPrecisionPolicy(param_dtype=types[0], reduce_dtype=types[1])
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        mixed_precision_policy=policy,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=True,
    )


def _sharded_model(
    train: Mapping[str, Any], arguments: TrainingArguments, sharding: FullyShardedDataParallelPlugin
) -> Any:
    """The model on the CPU, as it may not fit one device: loaded, or drawn by its device, by the first rank, which
    sends it around."""
    with DrawnBy(arguments.device):
        model = build_model(train, is_empty=arguments.process_index > 0)
        if set(model.state_dict()) - {name for name, _ in model.named_parameters(remove_duplicate=False)}:
            # Accelerate cannot send the buffers of a checkpoint (Gemma 4 has some): each rank makes all of it.
            sharding.cpu_ram_efficient_loading = False
            os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
            transformers.set_seed(arguments.seed)
            model = build_model(train)
    # A model's list of layers may name some that this one has none of.
    present = {type(module).__name__ for module in model.modules()}
    sharding.transformer_cls_names_to_wrap = sorted(present & set(model._no_split_modules))
    return model


class TimedTrainer(Trainer):
    """A Trainer with time stamps at the edges of what it does."""

    def __init__(
        self,
        train: Mapping[str, Any],
        model: Any,
        arguments: TrainingArguments,
        sharding: FullyShardedDataParallelPlugin | None,
        observer: Observer,
        *,
        is_polling: bool,
    ) -> None:
        self._train, self._sharding, self._is_polling = train, sharding, is_polling
        self.observer = observer
        self._counts: dict[str, Any] = {}
        self._loss = math.nan
        self._num_ended, self._is_first, self._is_stopping = 0, True, False
        super().__init__(model=model, args=arguments, callbacks=[_Edges(self)])
        self.remove_callback(transformers.PrinterCallback)
        self._keys = forward_keys(model)
        # Gemma 4 says no, but hands what it is given to the same loss as the others.
        self.model_accepts_loss_kwargs = True

    def observe(self, loader: Any) -> None:
        """Train from `loader`, timed."""
        arguments = self.args
        self.observer.attach(
            self.model,
            loader,
            data_rank=arguments.process_index,
            data_ranks=arguments.world_size,
            stop=lambda: setattr(self, "_is_stopping", True),
            hook=False,
        )

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = super()._build_accelerator_args(**{**kwargs, "fsdp_plugin": self._sharding})
        return arguments

    def create_accelerator_and_postprocess(self) -> None:
        """Have Accelerate shard on CPUs as well, which it takes for plain data parallelism."""
        super().create_accelerator_and_postprocess()
        if self._sharding and self.args.use_cpu:
            state = self.accelerator.state
            state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, self._sharding
            self.is_fsdp_enabled = True

    def get_train_dataloader(self) -> Any:
        """The recipe's, whose ranks have their own shares already."""
        return self.observer.loader

    def create_optimizer(self, model: Any = None) -> Any:
        """The recipe's, over everything that trains."""
        settings = {key: value for key, value in self._train["optimizer"].items() if key != "_target_"}
        kind = getattr(torch.optim, str(self._train["optimizer"]["_target_"]).rpartition(".")[2])
        trained = [parameter for parameter in (model or self.model).parameters() if parameter.requires_grad]
        self.optimizer = kind(trained, **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """AutoModel's schedule; a constant rate where the recipe has none."""
        recipe, optimizer = self._train.get("lr_scheduler"), optimizer or self.optimizer
        base = optimizer.param_groups[0]["lr"]
        if recipe is None:
            self.lr_scheduler = LambdaLR(optimizer, lambda _: 1.0)
            return self.lr_scheduler
        for group in optimizer.param_groups:
            group["lr"] = 1.0  # the schedule gives rates, and LambdaLR multiplies
        self.lr_scheduler = LambdaLR(optimizer, lambda n: learning_rate(n, recipe, base, num_training_steps))
        return self.lr_scheduler

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """A step's micro-batches, counted while they are on the host."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self._counts, self._is_first = count_tokens(batches), True
        kept = [{key: value for key, value in batch.items() if key in self._keys} for batch in batches]
        for batch in kept:
            batch["shift_labels"] = batch["labels"]  # already shifted
        num_labels = self._get_num_items_in_batch(kept, device)
        # Of a step without any the loss is 0, as AutoModel's, and not 0/0.
        return kept, num_labels.clamp(min=1) if isinstance(num_labels, torch.Tensor) else num_labels

    def _prepare_input(self, data: Any) -> Any:
        """To the device without waiting, as AutoModel and Accelerate's own loaders do."""
        return data.to(self.args.device, non_blocking=True) if torch.is_tensor(data) else super()._prepare_input(data)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """A micro-batch, forward and backward."""
        if self._is_first:
            self.observer.timer.phase_end("other")
            self._is_first = False
        loss = super().training_step(*args, **kwargs)
        self.observer.timer.phase_end("backward")
        return loss

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass and its loss."""
        loss = super().compute_loss(*args, **kwargs)
        self.observer.timer.phase_end("forward")
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log of the step, whose loss is kept."""
        self._loss = logs.get("loss", self._loss)
        super().log(logs, start_time)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self.state.global_step > self._num_ended:  # it is called once more at the end of an epoch
            self._num_ended = self.state.global_step
            self.control.should_training_stop |= self._is_polling and self._must_stop()
            self.observer.step_end(step=self._num_ended, loss=self._loss, counts=self._counts)

    def _must_stop(self) -> bool:
        """Whether any rank has been told to; all learn it with the same step."""
        stop = torch.tensor(float(self._is_stopping), device=self.args.device)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(stop, op=torch.distributed.ReduceOp.MAX)
        return bool(stop.item())


class _Edges(TrainerCallback):
    """Where training begins, and where an epoch does."""

    def __init__(self, trainer: TimedTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.observer.begin()

    def on_epoch_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        sampler: Any = getattr(self._trainer.observer.loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(round(state.epoch or 0))
