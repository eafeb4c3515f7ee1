"""What engine=hf refuses, and that it says what."""

import importlib.util

import pytest

from cctrain.errors import RequestError
from cctrain.packaged import CONF
from cctrain.request.compose import compose_config
from cctrain.request.hf import casts, check_engine, policy_dtype, reasons


def composed(*overrides, recipe="llama8b_peft"):
    return compose_config([f"recipe={recipe}", "engine=hf", *overrides])


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.distributed.tp_size=2", "train.distributed.tp_size=2; allowed is none, false, 0, 1"),
        ("train.distributed.pp_size=2", "train.distributed.pp_size=2"),
        ("train.distributed.cp_size=2", "train.distributed.cp_size=2"),
        ("train.distributed.sequence_parallel=true", "~train.distributed.sequence_parallel"),
        ("train.distributed.strategy=megatron_fsdp", "strategy=megatron_fsdp; allowed is fsdp2, ddp"),
        ("+train.distributed.enable_compile=true", "~train.distributed.enable_compile"),
        ("+train.model.backend.attn=te", "~train.model.backend"),
        ("+train.model.attn_implementation=te", "train.model.attn_implementation=te; allowed is eager, sdpa"),
        ("+train.fp8.enabled=true", "~train.fp8"),
        ("+train.quantization.load_in_4bit=true", "~train.quantization"),
        ("+train.peft.use_dora=true", "~train.peft.use_dora"),
        ("+train.peft.dropout=0.1", "~train.peft.dropout"),
        ("train.packed_sequence.packed_sequence_size=512", "packing_strategy=thd; allowed is neat"),
        ("+train.compile.fullgraph=true", "~train.compile.fullgraph"),
        (
            "train.loss_fn._target_=nemo_automodel.components.loss.linear_ce.FusedLinearCrossEntropy",
            "MaskedCrossEntropy",
        ),
        ("train.optimizer._target_=flashoptim.FlashAdamW", "allowed is torch.optim.Adam, torch.optim.AdamW"),
        ("train.lr_scheduler.lr_decay_style=WSD", "lr_decay_style=WSD; allowed is cosine, linear, constant"),
        (
            "train.model.torch_dtype=float32",
            "torch_dtype=float32 with train.distributed.mp_policy.param_dtype=bfloat16",
        ),
        (
            "+train.model.config._target_=transformers.Qwen3MoeConfig",
            "allowed is transformers.AutoConfig.from_pretrained",
        ),
        ("train.step_scheduler.num_epochs=2", "train.step_scheduler.num_epochs=2; allowed is none"),
        ("+train.step_scheduler.gc_every_steps=10", "~train.step_scheduler.gc_every_steps"),
        ("++train.clip_grad_norm.max_norm=0.0", "train.clip_grad_norm.max_norm=0, which is no clipping there"),
        ("train.checkpoint.enabled=true", "train.checkpoint.enabled=true; allowed is false"),
        ("+train.distributed.mp_policy.output_dtype=float32", "mp_policy.output_dtype=float32"),
        ("measure=seed", "measure=seed"),
        ("measure.checkpoint=true", "measure.checkpoint=true"),
    ],
)
def test_what_it_cannot_express_is_refused_by_name(override, named):
    with pytest.raises(RequestError) as refused:
        check_engine(composed(override))
    assert named in str(refused.value)
    assert "engine=hf" in str(refused.value)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "recipe").glob("*.yaml")))
def test_a_packaged_recipe_runs_unless_it_splits_the_model(name):
    config = composed("weights=random", recipe=name)
    if config.train["distributed"]["tp_size"] == 1:
        check_engine(config)
    else:
        with pytest.raises(RequestError, match="tp_size=4"):
            check_engine(config)


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.packed_sequence.packed_sequence_size=512", "+train.packed_sequence.packing_strategy=neat"),
        ("+train.distributed.activation_checkpointing=true",),
        ("+train.compile.enabled=true", "+train.compile.mode=default"),
        ("train.distributed.strategy=ddp",),
        ("train.peft.use_triton=true", "+train.clip_grad_norm.backend=torch"),
    ],
)
def test_what_both_engines_do_alike_passes(overrides):
    check_engine(composed(*overrides))


def test_packed_rows_have_a_mask_which_flash_attn_takes_none_of():
    packed = ("train.packed_sequence.packed_sequence_size=512", "+train.packed_sequence.packing_strategy=neat")
    with pytest.raises(RequestError, match="attn_implementation=flash_attention_2 with packed rows; allowed is sdpa"):
        check_engine(composed(*packed, "++train.model.attn_implementation=flash_attention_2"))
    check_engine(composed("++train.model.attn_implementation=flash_attention_2"))


def test_what_a_recipes_own_mp_policy_does_not_name_is_as_stored():
    own = {"distributed": {"mp_policy": {"param_dtype": "bf16"}}}
    assert [policy_dtype(own, name) for name in ("param_dtype", "reduce_dtype")] == ["bfloat16", None]
    assert [policy_dtype({}, name) for name in ("param_dtype", "reduce_dtype")] == ["bfloat16", "float32"]
    assert not list(casts({"distributed": {"mp_policy": {"reduce_dtype": "float32"}}}, "float32"))


def test_liger_needs_its_package(monkeypatch):
    recipe = {"model": {"use_liger_kernel": True}}
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert list(reasons(recipe)) == [
        "train.model.use_liger_kernel=true needs the package liger-kernel: install it, or set it to false"
    ]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert not list(reasons(recipe))


def test_the_first_engine_takes_everything():
    check_engine(compose_config(["recipe=llama70b_sft"]))
