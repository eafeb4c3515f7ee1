"""The model and the data of an AutoModel recipe, for `hf.py`: transformers' model class, PEFT's LoRA, and the recipe's
own data loader.

The data sections of a recipe name classes of AutoModel, and so the loader is built by AutoModel's data package: both
engines see the same tokens in the same order, shard for shard. Nothing of its models, LoRA, loss, optimizers or
distribution is used. What reads the data sections imports the modules of optimizers and distribution; models, kernels
and recipes need not be importable.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import peft
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.initialization import no_init_weights
from transformers.utils import is_flash_attn_2_available

from cctrain.engines import images
from cctrain.request.hf import DTYPES, casts
from cctrain.request.recipe import VLM

_OF_CONFIG = ("_target_", "pretrained_model_name_or_path")
_DRAWN_DTYPE = "bfloat16"
"""AutoModel's of random weights, where a recipe names none."""
_DATA_SECTIONS = ("dataset", "dataloader", "processor", "packed_sequence", "step_scheduler", "seed")


def build_model(train: Mapping[str, Any], *, is_empty: bool = False, device: torch.device | None = None) -> Any:
    """The recipe's model with what trains of it. Random weights are drawn on `device` (the CPU by default), or with
    `is_empty` left undrawn: those of a rank that gets them from another.
    """
    recipe = train["model"]
    named = DTYPES.get(str(recipe.get("torch_dtype")))
    name = "AutoModelForImageTextToText" if train["recipe"] == VLM else "AutoModelForCausalLM"
    auto: Any = getattr(transformers, name)
    place, changes = _place(recipe), recipe.get("config")
    changes = (
        {key: value for key, value in changes.items() if key not in _OF_CONFIG} if isinstance(changes, dict) else {}
    )
    config = _changed(transformers.AutoConfig.from_pretrained(place, **changes), recipe)

    def made(**attention: str) -> Any:
        if not str(recipe["_target_"]).endswith(".from_config"):
            return auto.from_pretrained(place, config=config, dtype=named or "auto", **attention)
        with device or nullcontext(), no_init_weights() if is_empty else nullcontext():
            return auto.from_config(config, dtype=named or _DRAWN_DTYPE, **attention)

    is_packed = bool((train.get("packed_sequence") or {}).get("packed_sequence_size"))
    model = _attending(recipe, made, is_packed=is_packed)
    if not named and (why := next(casts(train, str(model.dtype).removeprefix("torch.")), None)):
        raise ValueError(f"the recipe leaves the type of its weights to them, which is {why}")
    model.config.get_text_config().use_cache = False
    if train.get("peft"):  # before, so that no adapter of a frozen part trains
        model = _with_adapters(model, train["peft"])
    if train.get("freeze_config") is not None:
        _freeze(model, train["freeze_config"])
    return model


class DrawnBy(TorchDispatchMode):
    """Random numbers for tensors of the CPU come from `device`: one core takes two minutes for 8 billion. Of one seed
    they are alike on devices of one kind."""

    _DRAWS = (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operator in self._DRAWS and args[0].device.type == "cpu" and kwargs.get("generator") is None:
            drawn = operator(torch.empty_like(args[0], device=self._device), *args[1:], **kwargs)
            return args[0].copy_(drawn)
        return operator(*args, **kwargs)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        torch.cuda.empty_cache()  # else a training's reserved memory begins with the largest of them


def _attending(recipe: Mapping[str, Any], made: Callable[..., Any], *, is_packed: bool) -> Any:
    """The model, with the recipe's kernel. Where it names none, AutoModel takes flash-attn's if there is one and the
    model can; transformers would not. Packed rows have a mask, which that kernel does not take."""
    if recipe.get("attn_implementation"):
        return made(attn_implementation=recipe["attn_implementation"])
    if is_flash_attn_2_available() and not is_packed:
        with suppress(ValueError):  # not this model
            return made(attn_implementation="flash_attention_2")
    return made()


def _changed(config: Any, recipe: Mapping[str, Any]) -> Any:
    """The model's configuration with the recipe's own values, as `text_config: {use_cache: false}`."""
    for key in ("text_config", "use_cache"):
        value = recipe.get(key)
        if isinstance(value, Mapping):
            for name, inner in value.items():
                setattr(getattr(config, key), name, inner)
        elif value is not None:
            setattr(config, key, value)
    return config


def _freeze(model: nn.Module, freeze: Mapping[str, Any]) -> None:
    """Which parts do not train. Names of the parts, and that a vision tower does not unless it is said: AutoModel's."""
    for key, names in (
        ("freeze_vision_tower", ("vision", "visual", "image_encoder")),
        ("freeze_audio_tower", ("audio", "audio_encoder", "speech", "sound")),
        ("freeze_language_model", ("language", "text", "llm")),
    ):
        stated = freeze.get(key)
        if key == "freeze_vision_tower" if stated is None else stated:
            for name, parameter in model.named_parameters():
                if any(part in name for part in names):
                    parameter.requires_grad_(False)


def _with_adapters(model: Any, recipe: Mapping[str, Any]) -> Any:
    """LoRA on the modules that AutoModel's rules choose, of its weights' type and drawn as it draws them."""
    config = peft.LoraConfig(
        r=recipe.get("dim", 8),
        lora_alpha=recipe.get("alpha", 32),
        target_modules=lora_targets(model, recipe),
        task_type="CAUSAL_LM",
    )
    adapted = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    if recipe.get("lora_A_init", "xavier") == "xavier":  # uniform is PEFT's own
        for name, parameter in adapted.named_parameters():
            if ".lora_A." in name:
                nn.init.xavier_normal_(parameter.data)
    return adapted


def lora_targets(model: nn.Module, recipe: Mapping[str, Any]) -> list[str]:
    """Full names of the linear modules that get an adapter."""
    from nemo_automodel.components._peft.module_matcher import ModuleMatcher

    matcher = ModuleMatcher(
        recipe.get("target_modules") or [], recipe.get("exclude_modules") or [], bool(recipe.get("match_all_linear"))
    )
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = [name for name, module in linears.items() if matcher.match(module, name)]
    if not found:
        endings = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linears}))
        raise ValueError(
            f"train.peft.target_modules={recipe.get('target_modules')} matches no linear layer of the model; the names "
            f"of its layers end in {endings}"
        )
    return found


def build_loader(
    train: Mapping[str, Any], *, data_rank: int, data_ranks: int, first: AbstractContextManager[Any]
) -> Any:
    """The recipe's data loader. Inside `first` the node's first rank comes before the others, for downloads."""
    from nemo_automodel.components.config.loader import ConfigNode
    from nemo_automodel.recipes._typed_config import RecipeConfig

    if train["recipe"] == VLM:
        images.install()
    recipe = RecipeConfig(ConfigNode({key: train[key] for key in _DATA_SECTIONS if key in train}))
    shared = {"dp_rank": data_rank, "dp_world_size": data_ranks, "dataset_build_context": first}
    if train["recipe"] == VLM:
        built = recipe.vlm_dataloader.build(
            pretrained_model_name_or_path=_place(train["model"]),
            batch_size=train["step_scheduler"].get("local_batch_size", 1),
            **shared,
        )
        return built.dataloader
    return recipe.dataloader.build(tokenizer=_tokenizer(train), supports_seq_lens=False, **shared)


def _place(model: Mapping[str, Any]) -> str:
    source = model.get("pretrained_model_name_or_path") or model["config"]
    return str(source if isinstance(source, str) else source["pretrained_model_name_or_path"])


def _tokenizer(train: Mapping[str, Any]) -> Any:
    """As AutoModel: the data set's own, none where that is null, the model's where it says nothing."""
    from nemo_automodel import NeMoAutoTokenizer

    dataset = train["dataset"]
    if "tokenizer" not in dataset:
        return NeMoAutoTokenizer.from_pretrained(_place(train["model"]))
    settings = {key: value for key, value in (dataset["tokenizer"] or {}).items() if key != "_target_"}
    return NeMoAutoTokenizer.from_pretrained(**settings) if settings else None


def forward_keys(model: Any) -> frozenset[str]:
    """What of a batch the model takes; loaders give more, as a `padding_mask`."""
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    return frozenset(inspect.signature(base.forward).parameters)
