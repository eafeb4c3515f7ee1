"""What `engine=hf` can express of an AutoModel recipe. Whatever it cannot is refused by name before anything starts: a
setting that one engine reads and the other does not would make two runs of the same recipe incomparable.

Left unread without a word is only how AutoModel computes the same numbers: kernels of its own for LoRA
(`peft.use_triton`, `use_memory_efficient_lora`), the backend of its gradient norm, its choice among torch's attention
kernels (`model.use_sdpa_patching`, `sdpa_method`) and between its model class and transformers' (`model.force_hf`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cctrain.config import Config, Engine, MeasureKind, StepKind
from cctrain.errors import RequestError

DTYPES = {name: plain for plain in ("bfloat16", "float16", "float32") for name in (plain, f"torch.{plain}")}
DTYPES |= {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""Names that recipes have for a type of weights; `auto` is as the checkpoint has them."""
DEFAULT_PARAM_DTYPE = "bfloat16"
"""What AutoModel computes in where a recipe has no distributed.mp_policy."""
_MODELS = {"NeMoAutoModelForCausalLM", "NeMoAutoModelForImageTextToText"}
_NONE = (None, "none", "None")

_Allowed = Callable[[Any], bool]
_ANY: _Allowed = lambda _: True  # noqa: E731
_OFF: _Allowed = lambda value: value in (*_NONE, False, 0, 1)  # noqa: E731
"""Absent, false, zero of something or one rank."""


def _one_of(*allowed: Any) -> _Allowed:
    return lambda value: value in allowed


_SECTIONS = (
    *("recipe", "seed", "step_scheduler", "dist_env", "model", "processor", "checkpoint", "peft", "distributed"),
    *("loss_fn", "dataset", "packed_sequence", "dataloader", "clip_grad_norm", "optimizer", "lr_scheduler"),
    *("freeze_config", "compile", "sdpa_method"),
)
_KEYS: dict[str, dict[str, _Allowed]] = {
    "model": {
        "_target_": lambda target: str(target).split(".")[-2:-1][0] in _MODELS if "." in str(target) else False,
        **dict.fromkeys(("pretrained_model_name_or_path", "config", "text_config", "force_hf"), _ANY),
        **dict.fromkeys(("use_sdpa_patching", "use_liger_kernel", "use_cache"), _ANY),
        "trust_remote_code": _OFF,
        "torch_dtype": lambda name: name in (*_NONE, "auto") or str(name) in DTYPES,
        "attn_implementation": _one_of(None, "eager", "sdpa", "flash_attention_2", "flash_attention_3"),
    },
    "peft": {
        "_target_": lambda target: str(target).endswith(".PeftConfig"),
        **dict.fromkeys(("target_modules", "exclude_modules", "match_all_linear", "dim", "alpha"), _ANY),
        **dict.fromkeys(("use_triton", "use_memory_efficient_lora", "dropout_position"), _ANY),
        "lora_A_init": _one_of("xavier", "uniform"),
        "dropout": _OFF,
        "use_dora": _OFF,
        "lora_dtype": _one_of(*_NONE),
    },
    "distributed": {
        "strategy": _one_of("fsdp2", "ddp"),
        "dp_size": _ANY,
        **dict.fromkeys(("tp_size", "pp_size", "cp_size", "ep_size", "dp_replicate_size", "sequence_parallel"), _OFF),
        "activation_checkpointing": _one_of(None, True, False, "full"),
        "mp_policy": _ANY,
    },
    "loss_fn": {"_target_": lambda target: str(target).endswith(".MaskedCrossEntropy")},
    "packed_sequence": {
        "packed_sequence_size": _ANY,
        "packing_strategy": _ANY,
        "drop_long_samples": _ANY,
        "max_packs": _ANY,
        "packing_ratio": _ANY,
    },
    "clip_grad_norm": {"max_norm": _ANY, "backend": _ANY},
    "optimizer": {
        "_target_": _one_of("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD"),
        **dict.fromkeys(("lr", "betas", "eps", "weight_decay", "fused", "foreach", "amsgrad"), _ANY),
        **dict.fromkeys(("momentum", "nesterov", "dampening"), _ANY),
    },
    "lr_scheduler": {
        "lr_decay_style": _one_of("cosine", "linear", "constant"),
        **dict.fromkeys(("lr_warmup_steps", "lr_decay_steps", "init_lr", "max_lr", "min_lr"), _ANY),
    },
    "freeze_config": dict.fromkeys(("freeze_vision_tower", "freeze_audio_tower", "freeze_language_model"), _ANY),
    "compile": {"enabled": _ANY, "mode": _ANY, "backend": _ANY, "dynamic": _OFF, "fullgraph": _OFF},
}


def check_engine(config: Config) -> None:
    """Raises RequestError for what the chosen engine cannot do, naming the setting."""
    if config.engine.name is not Engine.hf:
        return
    if config.step.kind is not StepKind.stock:
        raise RequestError(f"step={config.step.kind.value} is AutoModel's: with engine=hf allowed is step=stock")
    if config.measure.kind is MeasureKind.seed:
        raise RequestError("measure=seed is a figure that AutoModel prints: with engine=hf allowed is measure=steady")
    for key in ("validation", "checkpoint"):
        if getattr(config.measure, key):
            raise RequestError(f"measure.{key}=true: with engine=hf allowed is false, it trains and nothing else")
    for reason in reasons(config.train):
        raise RequestError(f"{reason} (engine=hf; engine=automodel runs it)")


def reasons(recipe: Mapping[str, Any]) -> Iterator[str]:
    """Each setting of an AutoModel recipe that the engine cannot express, in words."""
    for name, section in recipe.items():
        if name not in _SECTIONS and not name.startswith("validation_") and section not in (*_NONE, False, {}):
            yield f"train.{name}: transformers' Trainer has nothing like it; remove it with ~train.{name}"
    for name, allowed in _KEYS.items():
        section = recipe.get(name)
        for key, value in (section if isinstance(section, dict) else {}).items():
            if not allowed.get(key, _OFF)(value):
                yield f"train.{name}.{key}={value}: not something that Trainer, PEFT and Accelerate can do"
    yield from _packing(recipe)
    yield from _precision(recipe)
    liger = (recipe.get("model") or {}).get("use_liger_kernel")
    if liger and importlib.util.find_spec("liger_kernel") is None:
        yield "train.model.use_liger_kernel=true needs the package liger-kernel: install it, or set it to false"


def _packing(recipe: Mapping[str, Any]) -> Iterator[str]:
    packed = recipe.get("packed_sequence") or {}
    strategy = packed.get("packing_strategy", "thd")
    if packed.get("packed_sequence_size") and strategy != "neat":
        yield (
            f"train.packed_sequence.packing_strategy={strategy}: transformers' models take packed rows with a mask of "
            "who sees whom, +train.packed_sequence.packing_strategy=neat"
        )


def _precision(recipe: Mapping[str, Any]) -> Iterator[str]:
    """AutoModel casts to mp_policy.param_dtype what it computes with; here weights are computed with as they are."""
    if (recipe.get("distributed") or {}).get("strategy", "fsdp2") != "fsdp2":
        return
    stored = DTYPES.get(str((recipe.get("model") or {}).get("torch_dtype")))
    computed = param_dtype(recipe)
    if stored and computed != stored:
        yield (
            f"train.model.torch_dtype={stored} with train.distributed.mp_policy.param_dtype={computed}: weights are "
            "computed with as they are stored, make both the same"
        )


def param_dtype(recipe: Mapping[str, Any]) -> str | None:
    """What AutoModel's FSDP2 computes in."""
    policy = (recipe.get("distributed") or {}).get("mp_policy") or {}
    return DTYPES.get(str(policy.get("param_dtype", DEFAULT_PARAM_DTYPE)))
