"""What `engine=hf` can express of an AutoModel recipe. Whatever it cannot is refused by name before anything starts: a
setting that one engine reads and the other does not would make two runs of the same recipe incomparable.

Left unread without a word is only how AutoModel computes the same numbers: kernels of its own for LoRA
(`peft.use_triton`, `use_memory_efficient_lora`), the backend of its gradient norm, its choice among torch's attention
kernels (`model.use_sdpa_patching`, `sdpa_method`) and between its model class and transformers' (`model.force_hf`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from cctrain.config import Config, Engine, MeasureKind, StepKind
from cctrain.errors import RequestError
from cctrain.request.checks import NONE

DTYPES = {name: plain for plain in ("bfloat16", "float16", "float32") for name in (plain, f"torch.{plain}")}
DTYPES |= {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""Names that recipes have for a type of weights."""
_DEFAULT_POLICY = {"param_dtype": "bfloat16", "reduce_dtype": "float32"}
"""AutoModel's where a recipe has no distributed.mp_policy; what one that it has does not name is as stored."""

_CONFIG = "transformers.AutoConfig.from_pretrained"
_ANY = ("anything",)
_OFF: tuple[Any, ...] = (*NONE, False, 0, "0")
_ONE: tuple[Any, ...] = (*_OFF, 1)
_FLASH = ("flash_attention_2", "flash_attention_3")

_SECTIONS = (
    *("recipe", "seed", "step_scheduler", "dist_env", "model", "processor", "checkpoint", "peft", "distributed"),
    *("loss_fn", "dataset", "packed_sequence", "dataloader", "clip_grad_norm", "optimizer", "lr_scheduler"),
    *("freeze_config", "compile", "sdpa_method"),
)
_VALUES: dict[str, dict[str, tuple[Any, ...]]] = {
    "model": {
        "_target_": ("NeMoAutoModelForCausalLM", "NeMoAutoModelForImageTextToText"),
        **dict.fromkeys(("pretrained_model_name_or_path", "config", "text_config", "use_cache"), _ANY),
        **dict.fromkeys(("force_hf", "use_sdpa_patching", "use_liger_kernel"), _ANY),
        "torch_dtype": (*DTYPES, "auto", *NONE),
        "attn_implementation": ("eager", "sdpa", *_FLASH, *NONE),
    },
    "step_scheduler": {
        **dict.fromkeys(("global_batch_size", "local_batch_size", "max_steps", "preemption_signal"), _ANY),
        **dict.fromkeys(("ckpt_every_steps", "val_every_steps", "save_checkpoint_every_epoch"), _ANY),
        **dict.fromkeys(("validate_on_checkpoint", "log_remote_every_steps", "loss_average_window_steps"), _ANY),
        "num_epochs": NONE,
    },
    "peft": {
        "_target_": ("PeftConfig",),
        **dict.fromkeys(("target_modules", "exclude_modules", "match_all_linear", "dim", "alpha"), _ANY),
        **dict.fromkeys(("use_triton", "use_memory_efficient_lora", "dropout_position"), _ANY),
        "lora_A_init": ("xavier", "uniform"),
    },
    "distributed": {
        "strategy": ("fsdp2", "ddp"),
        **dict.fromkeys(("dp_size", "mp_policy"), _ANY),
        **dict.fromkeys(("tp_size", "pp_size", "cp_size", "ep_size", "dp_replicate_size"), _ONE),
        "activation_checkpointing": (True, "full", *_OFF),
    },
    "loss_fn": {"_target_": ("MaskedCrossEntropy",)},
    "packed_sequence": dict.fromkeys(
        ("packed_sequence_size", "packing_strategy", "drop_long_samples", "max_packs", "packing_ratio"), _ANY
    ),
    "clip_grad_norm": {"max_norm": _ANY, "backend": _ANY},
    "optimizer": {
        "_target_": ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD"),
        **dict.fromkeys(("lr", "betas", "eps", "weight_decay", "fused", "foreach", "amsgrad"), _ANY),
        **dict.fromkeys(("momentum", "nesterov", "dampening"), _ANY),
    },
    "lr_scheduler": {
        "lr_decay_style": ("cosine", "linear", "constant"),
        **dict.fromkeys(("lr_warmup_steps", "lr_decay_steps", "init_lr", "max_lr", "min_lr"), _ANY),
    },
    "freeze_config": dict.fromkeys(("freeze_vision_tower", "freeze_audio_tower", "freeze_language_model"), _ANY),
    "compile": dict.fromkeys(("enabled", "mode", "backend"), _ANY),
}
"""Of each section the keys that are read, and their values; any other key must be off."""


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
            raise RequestError(f"measure.{key}=true: with engine=hf allowed is false")
    for reason in reasons(config.train):
        raise RequestError(f"engine=hf cannot run this recipe: {reason}")


def reasons(recipe: Mapping[str, Any]) -> Iterator[str]:
    """Each setting of an AutoModel recipe that the engine cannot express, in words."""
    for name, section in recipe.items():
        if name not in _SECTIONS and not name.startswith("validation_") and section not in (*_OFF, {}):
            yield f"train.{name} is not handed on to transformers' Trainer; {_without(f'train.{name}')}"
    for name, keys in _VALUES.items():
        section = recipe.get(name)
        for key, value in (section if isinstance(section, Mapping) else {}).items():
            allowed = keys.get(key, _OFF)
            if allowed is not _ANY and not _is_among(key, value, allowed):
                words = ", ".join(dict.fromkeys(_word(one) for one in allowed))
                is_new = key not in keys
                yield f"train.{name}.{key}" + (
                    f" is not handed on to transformers' Trainer; {_without(f'train.{name}.{key}')}"
                    if is_new
                    else f"={value}; allowed is {words}"
                )
    if (recipe.get("clip_grad_norm") or {}).get("max_norm") == 0:
        yield "train.clip_grad_norm.max_norm=0, which is no clipping there and no gradient here; allowed is more than 0"
    if (recipe.get("checkpoint") or {}).get("enabled", False):
        yield "train.checkpoint.enabled=true; allowed is false"
    config = (recipe.get("model") or {}).get("config")
    if isinstance(config, Mapping) and config.get("_target_") != _CONFIG:
        yield f"train.model.config._target_={config.get('_target_')}; allowed is {_CONFIG}"
    yield from _packing(recipe)
    yield from _precision(recipe)
    if (recipe.get("model") or {}).get("use_liger_kernel") and importlib.util.find_spec("liger_kernel") is None:
        yield "train.model.use_liger_kernel=true needs the package liger-kernel: install it, or set it to false"


def _is_among(key: str, value: Any, allowed: tuple[Any, ...]) -> bool:
    if key == "_target_":
        return any(f".{name}." in f".{value}." for name in allowed)
    return value in allowed


def _without(setting: str) -> str:
    return f"without it (~{setting}) it is another training"


def _word(value: Any) -> str:
    return "none" if value in NONE else str(value).lower() if isinstance(value, bool) else str(value)


def _packing(recipe: Mapping[str, Any]) -> Iterator[str]:
    packed = recipe.get("packed_sequence") or {}
    strategy = packed.get("packing_strategy", "thd")
    if packed.get("packed_sequence_size") and strategy != "neat":
        yield (
            f"train.packed_sequence.packing_strategy={strategy}; allowed is neat: transformers' models take packed "
            "rows with a mask of who sees whom"
        )
    attention = (recipe.get("model") or {}).get("attn_implementation")
    if packed.get("packed_sequence_size") and attention in _FLASH:
        yield (
            f"train.model.attn_implementation={attention} with packed rows; allowed is sdpa or eager: flash-attn takes "
            "no mask of who sees whom"
        )


def _precision(recipe: Mapping[str, Any]) -> Iterator[str]:
    """What speaks against the type that the recipe names for its weights; of one that it leaves to them, the engine
    asks once they are there."""
    stored = DTYPES.get(str((recipe.get("model") or {}).get("torch_dtype")))
    return casts(recipe, stored) if stored else iter(())


def casts(recipe: Mapping[str, Any], stored: str) -> Iterator[str]:
    """AutoModel's FSDP2 casts to mp_policy.param_dtype what it computes with; here weights are computed with as they
    are `stored`."""
    if (recipe.get("distributed") or {}).get("strategy", "fsdp2") != "fsdp2":
        return
    policy = (recipe.get("distributed") or {}).get("mp_policy") or {}
    for key, computed in (
        ("param_dtype", policy_dtype(recipe, "param_dtype")),
        ("output_dtype", DTYPES.get(str(policy.get("output_dtype")), stored)),
    ):
        if computed and computed != stored:
            yield (
                f"train.model.torch_dtype={stored} with train.distributed.mp_policy.{key}={computed}; allowed is the "
                "same for both, weights are computed with as they are stored"
            )


def policy_dtype(recipe: Mapping[str, Any], name: str) -> str | None:
    """What AutoModel's FSDP2 computes (`param_dtype`) and reduces gradients in (`reduce_dtype`); None: as stored."""
    policy = (recipe.get("distributed") or {}).get("mp_policy")
    return DTYPES.get(str((_DEFAULT_POLICY if policy is None else policy).get(name)))
