"""FLOPs against torch's own counter, which sees the products that really run.

It counts attention as a full square, so the savings are off here; tests/unit/test_flops.py counts those by hand, and
transformers' own masks do below. Models of real width hold no numbers (device meta); what looks at its numbers, as a
vision tower does at its padding, is small and computed. Attention is eager: the counter knows no fused one on a CPU.
"""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nemo_automodel.components._peft.lora import PeftConfig, apply_lora_to_linear_modules
from nemo_automodel.components._peft.module_matcher import ModuleMatcher
from nemo_automodel.components.distributed.activation_checkpointing import (
    apply_full_layer_checkpointing_to_layers,
    apply_submodule_checkpointing,
)
from nemo_automodel.components.models.gemma4_moe.model import Gemma4ForConditionalGeneration as AutoModelGemma
from nemo_automodel.components.models.llama.model import LlamaForCausalLM as AutoModelLlama
from nemo_automodel.components.utils.model_utils import apply_parameter_freezing
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, Gemma4ForCausalLM, Gemma4ForConditionalGeneration, LlamaForCausalLM
from transformers.models.gemma4 import modeling_gemma4

from cctrain import flops
from cctrain.flops import Savings, Sequences, Unit, hardware_flops, shape_of, training_of

MODELS = Path(__file__).parents[2] / "recipes" / "models"
SQUARE = Savings(causal=False, window=False, packing=False)
EXACT, LORA = 2e-4, 2e-3
"""Allowed, as a ratio. Not counted: rotary angles; the half of an adapter that AutoModel computes again in backward."""
ALL_PROJ = {"target_modules": "*_proj", "dim": 8}
NO_VISION = {"exclude_modules": ["*vision_tower*", "*vision*", "*lm_head*"], "dim": 2}


@pytest.fixture(autouse=True)
def _one_thread():
    """Products this small are done before a second thread has started."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(name, **changes):
    return {**json.loads((MODELS / name / "config.json").read_text()), **changes}


def gemma_text(layer_types, **changes):
    text = config_of("gemma-4-31b")["text_config"]
    return {**text, "layer_types": layer_types, "num_hidden_layers": len(layer_types), **changes}


def built(model_class, config, device="meta"):
    settings = AutoConfig.for_model(**copy.deepcopy(config))
    settings._attn_implementation = "eager"
    settings.get_text_config().use_cache = settings.use_cache = False
    with torch.device(device):
        return model_class(settings).train()


def adapted(model, peft):
    if peft:
        apply_lora_to_linear_modules(model, PeftConfig(**peft))
    return model


def recipe(peft, checkpointing=None, freeze=None):
    """The recipe that says what a test does to its model by hand."""
    return {
        "model": {"force_hf": checkpointing == "layer"},
        "peft": peft,
        "freeze_config": freeze,
        "distributed": {"activation_checkpointing": checkpointing is not None},
    }


def checkpoint(model, layers, kind):
    if kind == "layer":
        apply_full_layer_checkpointing_to_layers(model, list(layers))
    elif kind == "module":
        apply_submodule_checkpointing(list(layers), has_kv_sharing=False)


def added_flops(total, left, right, **_):
    """Of `addmm_`, which the counter does not know: AutoModel's LoRA of a whole MLP adds its products in place."""
    return 2 * left[0] * left[1] * right[1]


def counted(model, rows, length, device="meta", **inputs):
    ids = inputs.pop("input_ids", torch.ones(rows, length, dtype=torch.long, device=device))
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added_flops}) as counter:
        model(input_ids=ids, **inputs).logits.float().sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(("rows", "length"), [(2, 512), (1, 96)])
@pytest.mark.parametrize("checkpointing", [None, "module", "layer"])
@pytest.mark.parametrize("peft", [None, ALL_PROJ, {"target_modules": ["*.q_proj", "*.v_proj"], "dim": 16}])
def test_llama_of_real_width_costs_what_torch_counts(rows, length, checkpointing, peft):
    config = config_of("llama-3.1-8b", num_hidden_layers=2)
    model = adapted(built(LlamaForCausalLM, config), peft)
    checkpoint(model, model.model.layers, checkpointing)
    mask = torch.zeros(rows, 1, length, length, device="meta")
    torch_flops = counted(model, rows, length, attention_mask=mask)
    sequences = Sequences([length] * rows, [[length]] * rows)
    found = hardware_flops(shape_of(config), training_of(recipe(peft, checkpointing)), sequences, SQUARE)
    assert found == pytest.approx(torch_flops, rel=LORA if peft else EXACT)


@pytest.mark.parametrize("checkpointing", [None, "module"])
@pytest.mark.parametrize("peft", [None, {"target_modules": "*_proj", "dim": 2}])
def test_automodels_own_llama_costs_what_torch_counts(checkpointing, peft):
    config = config_of("tiny-llama", hidden_size=512, intermediate_size=1024)
    model = adapted(built(AutoModelLlama, config, "cpu"), peft)
    checkpoint(model, model.model.layers, checkpointing)
    torch_flops = counted(model, 2, 48, "cpu")
    found = hardware_flops(
        shape_of(config), training_of(recipe(peft, checkpointing)), Sequences([48] * 2, [[48]] * 2), SQUARE
    )
    assert found == pytest.approx(torch_flops, rel=LORA if peft else EXACT)


@pytest.mark.parametrize("checkpointing", [None, "layer"])
@pytest.mark.parametrize("peft", [None, {"exclude_modules": ["*lm_head*"], "dim": 16}])
@pytest.mark.parametrize(
    "config",
    [
        gemma_text(["sliding_attention", "full_attention"]),
        gemma_text(
            ["sliding_attention", "full_attention"] * 2,
            num_kv_shared_layers=2,
            use_double_wide_mlp=True,
            hidden_size_per_layer_input=256,
            attention_k_eq_v=False,
        ),
    ],
    ids=["31b", "with what the small ones have"],
)
def test_the_text_of_gemma_of_real_width_costs_what_torch_counts(config, peft, checkpointing):
    model = adapted(built(Gemma4ForCausalLM, config), peft)
    checkpoint(model, model.model.layers, checkpointing)
    mask = torch.zeros(2, 1, 256, 256, device="meta")
    torch_flops = counted(model, 2, 256, attention_mask={"full_attention": mask, "sliding_attention": mask})
    found = hardware_flops(
        shape_of(config), training_of(recipe(peft, checkpointing)), Sequences([256] * 2, [[256]] * 2), SQUARE
    )
    assert found == pytest.approx(torch_flops, rel=LORA if peft else EXACT)


def gemma_with_images():
    """Wide enough for its adapters to be as small beside it as they are in life."""
    config = config_of("tiny-gemma-4")
    config["text_config"] |= {"hidden_size": 512, "intermediate_size": 1024}
    config["vision_config"] |= {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    config["vision_config"] |= {"num_key_value_heads": 4, "head_dim": 64}
    return config


def images_of(sizes, padded):
    """Patches of images of `sizes` (columns, rows), with the positions that say which of them are padding."""
    positions = torch.full((len(sizes), padded, 2), -1)
    for index, (columns, rows) in enumerate(sizes):
        grid = torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy")
        positions[index, : columns * rows] = torch.stack(grid, -1).reshape(-1, 2)
    return {"pixel_values": torch.rand(len(sizes), padded, 768), "image_position_ids": positions}


@pytest.mark.parametrize(
    ("peft", "freeze", "checkpointing"),
    [
        (None, {"freeze_vision_tower": True}, "layer"),
        (None, None, None),
        (NO_VISION, {"freeze_vision_tower": True}, "layer"),
        (NO_VISION, None, None),
        ({"match_all_linear": True, "dim": 2}, {"freeze_vision_tower": True}, None),
        ({"match_all_linear": True, "dim": 2}, None, "layer"),
    ],
)
def test_gemma_with_images_costs_what_torch_counts(peft, freeze, checkpointing):
    config = gemma_with_images()
    model = adapted(built(Gemma4ForConditionalGeneration, config, "cpu"), peft)
    if freeze:
        apply_parameter_freezing(model, freeze)
    checkpoint(model, model.model.language_model.layers, checkpointing)
    images = [(9, 6), (6, 12)]
    ids, kinds = torch.full((2, 64), 20), torch.zeros(2, 64, dtype=torch.long)
    for row, (columns, rows) in enumerate(images):
        soft_tokens = slice(3, 3 + columns * rows // 9)
        ids[row, soft_tokens], kinds[row, soft_tokens] = config["image_token_id"], 1
    torch_flops = counted(model, 2, 64, "cpu", input_ids=ids, mm_token_type_ids=kinds, **images_of(images, 90))
    sequences = Sequences([64] * 2, [[64]] * 2, [90] * 2, [columns * rows for columns, rows in images])
    training = training_of(recipe(peft, checkpointing, freeze))
    found = hardware_flops(shape_of(config), training, sequences, SQUARE)
    assert found == pytest.approx(torch_flops, rel=LORA if peft else EXACT)


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (AutoModelLlama, config_of("llama-3.1-8b", num_hidden_layers=2)),
        (AutoModelGemma, config_of("tiny-gemma-4")),
        (Gemma4ForCausalLM, gemma_text(["sliding_attention", "full_attention"], hidden_size_per_layer_input=8)),
    ],
)
def test_the_linears_are_those_of_the_model_by_name_and_size(model_class, config):
    modules = built(model_class, config).named_modules()
    wanted = {name: (m.in_features, m.out_features) for name, m in modules if isinstance(m, torch.nn.Linear)}
    linears = [linear for step in shape_of(config).steps for linear in step.linears]
    assert {linear.name: (linear.num_in, linear.num_out) for linear in linears} == wanted
    assert len(linears) == len(wanted)


@pytest.mark.parametrize(
    "peft",
    [
        {"match_all_linear": True},
        {},
        {"target_modules": "*_proj"},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["*.layers.1.*", "*layers.0.*mlp*"]},
        {"target_modules": ["*language_model.layers.*.self_attn.q_proj", "model.vision_tower.*"]},
        {"target_modules": ["*.self_attn.*", "*mlp.gate.*", "*layers.5.*proj"]},
        {"target_modules": ["lm.*", "*.mlp.gate.*", "*layers.1.*"]},
        {"exclude_modules": ["*vision*", "lm_head"]},
        {"exclude_modules": ["*.mlp.*", "*_tower.encoder.layers.1.*"]},
    ],
)
def test_adapters_are_put_where_automodel_puts_them(peft):
    config = config_of("tiny-gemma-4")
    config["text_config"] |= {"num_hidden_layers": 12, "layer_types": config["text_config"]["layer_types"] * 2}
    matcher, training = ModuleMatcher(**peft), training_of(recipe({"dim": 8, **peft}))
    shape, linear = shape_of(config), torch.nn.Linear(1, 1)
    for step in shape.steps:
        for one in step.linears:
            assert flops._has_adapter(one, training) == bool(matcher.match(linear, one.name)), one.name


@pytest.mark.parametrize("path", sorted(MODELS.glob("*/config.json")), ids=lambda path: path.parent.name)
def test_a_config_as_transformers_writes_it_says_the_same_as_the_file(path):
    loaded = AutoConfig.from_pretrained(path.parent)
    shape = dataclasses.astuple(shape_of(json.loads(path.read_text())))
    assert dataclasses.astuple(shape_of(json.loads(json.dumps(loaded.to_dict(), default=str)))) == shape
    assert dataclasses.astuple(shape_of(json.loads(loaded.to_json_string()))) == shape


@pytest.mark.parametrize("images", [[], [(2, 5)], [(1, 12), (15, 4)]])
def test_pairs_are_the_true_entries_of_transformers_masks(images):
    config = config_of("tiny-gemma-4")
    config["text_config"]["sliding_window"] = 6
    settings = AutoConfig.for_model(**config).get_text_config()
    settings._attn_implementation = "sdpa"  # whose masks are true and false
    kinds = torch.zeros(1, 24, dtype=torch.long)
    for first, length in images:
        kinds[0, first : first + length] = 1
    masks = modeling_gemma4.create_masks_for_vision_model(
        config=settings,
        inputs_embeds=torch.zeros(1, 24, settings.hidden_size),
        attention_mask=torch.ones(1, 24, dtype=torch.long),
        past_key_values=None,
        position_ids=None,
        block_sequence_ids=modeling_gemma4.get_block_sequence_ids_for_mask(kinds, torch.device("cpu")),
    )
    patches = [9 * length for _, length in images]
    sequences = Sequences([24], [[24]], patches, patches)
    counts = flops._counts(shape_of(config), np.array([24]), patches, sequences, Savings())
    assert counts[Unit.WINDOW_PAIR] == masks["sliding_attention"].sum()
    full = masks["full_attention"]
    assert counts[Unit.PAIR] == (24 * 25 // 2 if full is None else full.sum())
