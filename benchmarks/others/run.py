"""One line of `peers.py` that is no recipe of AutoModel: another library's own trainer on the same shape of model.

    PYTHON benchmarks/others/run.py torchtitan --task lora --rows ROWS.pt --steps 96 --warmup 15
    PYTHON benchmarks/others/run.py torchtune --size tiny --rows ROWS.pt --steps 8 --warmup 2     on a CPU
    python -m cctrain emulate -- PYTHON benchmarks/others/run.py ... --tolls b300 --blocks 4      plain and tolled steps

Runs in that library's environment (`install.py`). Its loop is left as it is; what is put in place are the data (those
that the recipe's own loader gives the other lines, token ids and labels, which `peers_rows.py` has written to ROWS.pt
for as many steps), the weights (random), and a time stamp of cctrain's at each step's end. torchtune and Axolotl
shift labels by themselves, so that the last token of a row, whose label is the token after the row, has none there.
LoRA of rank 8 on all linear layers of attention and MLP, Adam, gradients clipped to 1, bf16, no activation
checkpointing. Attention is torch's sdpa, and flex attention in torchtitan, which no longer takes another, and in
torchtune where rows are packed (on a CPU sdpa with a mask), so that documents do not see each other, padding being one
more; the others are not given packed rows. torchtitan reads its loss each tenth step, its default, the others each
step. Axolotl computes under autocast with float32 adapters, its default.
With --tolls, steps after the warm-up take turns in blocks, plain and tolled, as those of a run with cc=emulated do. The
last line of stdout is one JSON object with the times of the steps after the warm-up, by mode.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from cctrain.emulation.blocks import ALL, OFF, fewest_steps, schedule
from cctrain.emulation.injector import attached
from cctrain.emulation.profile import load_profile
from cctrain.emulation.switch import TollSwitch
from cctrain.timing.clock import HostClock, StepClock
from cctrain.timing.timer import StepTimer

OFFLINE = {"HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1"}
RANK_OF_ONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29519"}
NO_LABEL = -100
PACKED = ("torchtune",)
"""Libraries that are given packed rows."""
MODES = {OFF: "off", ALL: "tolled"}
"""What `peers.py` calls the arms."""
TOKENIZER = Path(__file__).resolve().parents[2] / "recipes" / "models" / "tokenizer-llama"


class Steps:
    """The ends of `num` steps after `warmup` others; a `switch` puts each under its tolls."""

    def __init__(self, timer: StepTimer, num: int, warmup: int, switch: TollSwitch | None = None) -> None:
        self._timer, self._num, self._warmup, self._switch = timer, num, warmup, switch

    def begin(self) -> None:
        """The first step begins here."""
        self._timer.resume()

    def end(self) -> None:
        """A step ends here, and the next begins."""
        facts = self._switch.step_end() if self._switch else {}
        self._timer.step_end("step", arm=facts.get("arm", OFF), is_settling=facts.get("is_settling", False))
        if self._switch and self._switch.next(_drain):
            self._timer.resume()

    def times_s(self) -> dict[str, list[float]]:
        """Of the measured steps so far, by mode."""
        _drain()
        rows = self._timer.finished()[self._warmup : self._warmup + self._num]
        measured = [(MODES[row["arm"]], row["step_time_s"]) for row in rows if not row["is_settling"]]
        modes = dict.fromkeys(mode for mode, _ in measured)
        return {mode: [seconds for of, seconds in measured if of == mode] for mode in modes}


def _drain() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _clock() -> StepClock:
    """The device's where there is one."""
    if not torch.cuda.is_available():
        return HostClock()
    from cctrain.timing.device_clock import DeviceClock

    return DeviceClock()


class Rows(NamedTuple):
    """Of a step: token ids and labels, shifted by one already, of shape (micro-batch, tokens); and the lengths of the
    documents in each row, 0 behind the last."""

    ids: torch.Tensor
    labels: torch.Tensor
    seq_lens: torch.Tensor


def read_rows(path: Path, num_steps: int) -> list[Rows]:
    """Of each step."""
    found = torch.load(path, weights_only=True)
    keys = ("input_ids", "labels", "seq_lens")
    if missing := set(keys) - set(found):
        raise SystemExit(f"--rows {path} has no {', '.join(missing)}: an earlier peers_rows.py wrote it; delete it")
    steps = list(map(Rows, *(found[key].long() for key in keys)))
    if len(steps) < num_steps:
        raise SystemExit(f"--rows {path} has {len(steps)} steps, fewer than --warmup and --steps together: {num_steps}")
    return steps[:num_steps]


def unshifted(labels: torch.Tensor) -> torch.Tensor:
    """For a library that shifts labels itself."""
    return torch.cat([torch.full_like(labels[:, :1], NO_LABEL), labels[:, :-1]], dim=1)


def packs(rows: Rows) -> list[dict[str, torch.Tensor]]:
    """A micro-batch of packed rows as torchtune's collater takes them: padding is a document of its own."""
    found = []
    for ids, labels, seq_lens in zip(rows.ids, unshifted(rows.labels), rows.seq_lens, strict=True):
        lengths = [*seq_lens[seq_lens > 0].tolist(), len(ids) - int(seq_lens.sum())]
        lengths = [length for length in lengths if length]
        positions = torch.cat([torch.arange(length) for length in lengths])
        found.append({"tokens": ids, "labels": labels, "input_pos": positions, "seq_lens": torch.tensor(lengths)})
    return found


def torchtitan(options: argparse.Namespace, steps: Steps) -> None:
    """torchtitan's Trainer, which replays forward and backward as a CUDA graph by default."""
    from torchtitan.tools import utils

    if not torch.cuda.is_available():
        utils.device_type, utils.device_module = "cpu", _NoGpu()

    from torchtitan.components.checkpoint import CheckpointManager
    from torchtitan.components.lora import LoRAConverter
    from torchtitan.components.validate import Validator
    from torchtitan.models.llama3 import model_registry
    from torchtitan.models.llama3.config_registry import llama3_8b

    is_tiny = options.size == "tiny"
    lora = LoRAConverter.Config(rank=8, alpha=32, target_modules=["wqkv", "wo", "w1", "w2", "w3"])
    config = llama3_8b()
    config.model_spec = model_registry(
        "debugmodel" if is_tiny else "8B", converters=[lora] if options.task == "lora" else None
    )
    config.loss.loss_fn.global_vocab_size = config.model_spec.model.vocab_size
    config.training.local_batch_size, config.training.seq_len = options.micro_batch, options.seq_len
    config.training.steps, config.training.dtype = options.warmup + options.steps, "bfloat16"
    config.training.disable_cuda_graphs = not torch.cuda.is_available()
    config.compile.enable = options.compile
    config.activation_checkpoint = None
    config.checkpoint = CheckpointManager.Config(enable=False)
    config.validator = Validator.Config(enable=False)
    config.profiler.enable_profiling = config.metrics.enable_tensorboard = False
    config.debug.enable_structured_logging = False
    config.dump_folder, config.hf_assets_path = str(options.folder), options.tokenizer
    config.dataloader.dataset, config.dataloader.infinite = "", True

    class Batches:
        def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
            for ids, labels, _ in options.rows:
                positions = torch.arange(options.seq_len).expand(options.micro_batch, -1).contiguous()
                yield {"input": ids, "positions": positions}, labels

    config.dataloader = _Ready(Batches())
    trainer = config.build()
    timed(trainer, "train_step", steps)
    steps.begin()
    trainer.train()


class _NoGpu:
    """In place of torch.cuda, whose memory and device torchtitan asks for without looking."""

    def __getattr__(self, name: str) -> Any:
        answers = {"get_device_name": "CPU", "memory_stats": defaultdict(int), "is_available": False}
        answers["get_device_properties"] = SimpleNamespace(total_memory=1)
        return lambda *_, **__: answers.get(name)


class _Ready:
    """Stands where a configuration is expected, and builds what it is given."""

    def __init__(self, built: Any) -> None:
        self._built = built

    def build(self, **_: Any) -> Any:
        return self._built

    def to_dict(self) -> dict[str, Any]:
        return {}


def torchtune(options: argparse.Namespace, steps: Steps) -> None:
    """torchtune's recipe for one device."""
    from omegaconf import OmegaConf
    from torchtune import __file__ as place
    from torchtune import config as tune
    from torchtune import training
    from torchtune.data import padded_collate_packed
    from torchtune.modules import peft

    is_lora, is_tiny = options.task == "lora", options.size == "tiny"
    sizes = {"vocab_size": 128256, "num_layers": 32, "num_heads": 32, "num_kv_heads": 8, "embed_dim": 4096}
    sizes |= {"intermediate_dim": 14336, "max_seq_len": 131072}
    if is_tiny:
        sizes = {"vocab_size": 1024, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 128}
        sizes |= {"intermediate_dim": 256, "max_seq_len": 4096}
    model = {"_component_": f"torchtune.models.llama3_1.{'lora_' * is_lora}llama3_1", **sizes}
    if is_lora:
        model |= {"lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"], "apply_lora_to_mlp": True}
        model |= {"lora_rank": 8, "lora_alpha": 32}
    sys.path.append(str(Path(place).parents[1] / "recipes"))  # scripts beside the package, no package themselves
    script: Any = importlib.import_module(f"{'lora' if is_lora else 'full'}_finetune_single_device")
    kind: Any = script.LoRAFinetuneRecipeSingleDevice if is_lora else script.FullFinetuneRecipeSingleDevice

    class OfRows(kind):  # type: ignore[misc]
        def load_checkpoint(self, *_: Any, **__: Any) -> dict[str, Any]:
            return {training.MODEL_KEY: None}

        def _setup_model(self, cfg_model: Any, compile_model: bool, **_: Any) -> Any:
            self.activations_handling_ctx = contextlib.nullcontext()
            with training.set_default_dtype(self._dtype), self._device:
                built = tune.instantiate(cfg_model)
            if is_lora:
                peft.set_trainable_params(built, peft.get_adapter_params(built))
            if compile_model:
                training.compile_model(built, verbose=False)
            return built

        def _setup_data(self, **_: Any) -> Any:
            if options.is_packed:  # which is masked as it is taken
                data, collate = [packs(rows) for rows in options.rows], padded_collate_packed
            else:
                data, collate = [{"tokens": rows.ids, "labels": unshifted(rows.labels)} for rows in options.rows], None
            sampler = torch.utils.data.DistributedSampler(data, num_replicas=1, rank=0, shuffle=False)
            return torch.utils.data.DataLoader(data, batch_size=None, sampler=sampler, collate_fn=collate)

        def save_checkpoint(self, *_: Any, **__: Any) -> None:
            pass

    folder = str(options.folder)
    settings = {
        "model": model,
        "tokenizer": {"_component_": "builtins.dict"},
        "checkpointer": {},
        "dataset": {"packed": False},
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-5, "fused": torch.cuda.is_available()},
        "lr_scheduler": {"_component_": "torchtune.training.get_cosine_schedule_with_warmup", "num_warmup_steps": 10},
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "metric_logger": {"_component_": "torchtune.training.metric_logging.DiskLogger", "log_dir": folder},
        **{"output_dir": folder, "device": "cuda" if torch.cuda.is_available() else "cpu", "dtype": "bf16"},
        **{"epochs": 1, "max_steps_per_epoch": None, "batch_size": options.micro_batch, "seed": 1, "shuffle": False},
        **{"gradient_accumulation_steps": 1, "clip_grad_norm": 1.0, "compile": options.compile},
        **{"enable_activation_checkpointing": False, "enable_activation_offloading": False},
        **{"resume_from_checkpoint": False, "save_adapter_weights_only": True, "log_every_n_steps": 1},
        **{"log_peak_memory_stats": False, "optimizer_in_bwd": False},
    }
    cfg = OmegaConf.create(settings)
    recipe = OfRows(cfg=cfg)
    recipe.setup(cfg=cfg)
    timed(recipe._metric_logger, "log_dict", steps)  # noqa: SLF001 - called at the end of each step
    steps.begin()
    recipe.train()


def axolotl(options: argparse.Namespace, steps: Steps) -> None:
    """Axolotl's trainer, which is transformers' with changes of its own, from its kind of configuration."""
    import transformers
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.integrations.base import BasePlugin
    from axolotl.train import train

    folder, models = options.folder, Path(options.tokenizer).parent
    config = transformers.AutoConfig.from_pretrained(
        models / ("tiny-llama" if options.size == "tiny" else "llama-3.1-8b")
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # a CPU draws the large ones in minutes
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / "model")
    del model
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(options.tokenizer) / name, folder / "model")
    num_steps = options.warmup + options.steps
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for ids, labels, _ in options.rows:
            for row, label in zip(ids.tolist(), unshifted(labels).tolist(), strict=True):
                file.write(json.dumps({"input_ids": row, "labels": label, "attention_mask": [1] * len(row)}) + "\n")

    class Stamps(BasePlugin):  # type: ignore[misc]
        def post_trainer_create(self, _: Any, trainer: Any) -> None:
            timed(trainer, "_maybe_log_save_evaluate", steps)  # called at the end of each step, and of the epoch
            trainer.add_callback(Begin())

    class Begin(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            steps.begin()

    sys.modules["stamps"] = SimpleNamespace(Stamps=Stamps)  # type: ignore[assignment]
    settings: dict[str, Any] = {
        "base_model": str(folder / "model"),
        "datasets": [{"path": str(folder / "rows.jsonl"), "ds_type": "json", "type": None}],
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(folder / "out"),
        "plugins": ["stamps.Stamps"],
        **{"sequence_len": options.seq_len, "micro_batch_size": options.micro_batch, "max_steps": num_steps},
        **{
            "gradient_accumulation_steps": 1,
            "num_epochs": 1,
            "optimizer": "adamw_torch_fused",
            "lr_scheduler": "cosine",
        },
        **{
            "learning_rate": 1e-5,
            "max_grad_norm": 1.0,
            "bf16": torch.cuda.is_available(),
            "attn_implementation": "sdpa",
        },
        **{"gradient_checkpointing": False, "logging_steps": 1, "save_strategy": "no", "val_set_size": 0},
        **{
            "sample_packing": False,
            "curriculum_sampling": True,
            "torch_compile": options.compile,
            "pad_to_sequence_len": True,
        },
        "special_tokens": {"pad_token": "<pad>"},
    }
    if options.task == "lora":
        settings |= {"adapter": "lora", "lora_r": 8, "lora_alpha": 32, "lora_dropout": 0.0, "lora_target_linear": True}
    if not torch.cuda.is_available():  # its kernels for LoRA, on by default, are Triton's
        settings |= dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False)
    (folder / "config.yml").write_text(json.dumps(settings), encoding="utf-8")
    cfg = load_cfg(str(folder / "config.yml"))
    train(cfg=cfg, dataset_meta=load_datasets(cfg=cfg))


def timed(owner: Any, method: str, steps: Steps) -> None:
    """Have a step end whenever that method of `owner` has run."""
    own = getattr(owner, method)

    def then_stamp(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        steps.end()
        return result

    setattr(owner, method, then_stamp)


def main() -> None:
    """Train, read the stamps, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("torchtitan", "torchtune", "axolotl"))
    parser.add_argument("--task", choices=("lora", "sft"), default="lora", help="adapters, or all weights")
    parser.add_argument("--rows", type=Path, required=True, help="of peers_rows.py")
    parser.add_argument("--size", choices=("8b", "tiny"), default="8b", help="of the Llama")
    parser.add_argument("--steps", type=int, default=96, help="to be measured")
    parser.add_argument("--warmup", type=int, default=15, help="steps before these")
    parser.add_argument("--compile", action="store_true", help="torch.compile, as the library has it")
    parser.add_argument("--tolls", metavar="NAME|FILE", help="a profile; only under python -m cctrain emulate")
    parser.add_argument("--blocks", type=int, default=4, help="with --tolls: pairs of blocks")
    parser.add_argument("--tokenizer", default=str(TOKENIZER), help="torchtitan and Axolotl want one")
    options = parser.parse_args()
    switch = None
    if options.tolls:
        tolls = attached()
        if tolls is None:
            parser.error(f"--tolls {options.tolls}: only in a process that python -m cctrain emulate has started")
        fewest = fewest_steps(len(MODES), options.blocks)
        if options.steps < fewest:
            parser.error(f"--steps {options.steps}: allowed is {fewest} or more with --blocks {options.blocks}")
        slots = schedule(options.steps, tuple(MODES), options.blocks)
        switch = TollSwitch(tolls, load_profile(options.tolls), slots, options.warmup)
    if not options.rows.is_file():
        parser.error(f"--rows {options.rows}: no such file; peers_rows.py writes one")
    path, options.rows = options.rows, read_rows(options.rows, options.warmup + options.steps)
    options.micro_batch, options.seq_len = options.rows[0].ids.shape
    options.is_packed = any((rows.seq_lens > 0).sum(1).max() > 1 for rows in options.rows)
    if options.is_packed and options.name not in PACKED:
        parser.error(f"--rows {path}: its rows are packed; allowed with {', '.join(PACKED)}")
    os.environ |= RANK_OF_ONE | OFFLINE
    steps = Steps(StepTimer(_clock()), options.steps, options.warmup, switch)
    options.folder = Path(tempfile.mkdtemp())

    def end(code: int) -> None:
        """With what there is."""
        tokens = options.micro_batch * options.seq_len
        modes = {
            mode: {"step_times_s": seconds, "tokens_per_step": tokens} for mode, seconds in steps.times_s().items()
        }
        print(json.dumps({"timed": modes}), flush=True)
        shutil.rmtree(options.folder, ignore_errors=True)  # Axolotl's model is in it
        os._exit(code)

    signal.signal(signal.SIGTERM, lambda *_: end(1))  # its deadline
    try:
        {"torchtitan": torchtitan, "torchtune": torchtune, "axolotl": axolotl}[options.name](options, steps)
    except Exception as error:
        # Said on stdout as well, as a progress bar may have the last word on stderr.
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        shutil.rmtree(options.folder, ignore_errors=True)
        raise
    end(0)


if __name__ == "__main__":
    main()
