"""FLOPs by hand: masks counted entry by entry, formulas on numbers small enough to follow."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import yaml

from cctrain import flops
from cctrain.flops import Savings, Sequences, Shape, Step, Training, Unit, hardware_flops, model_flops

RECIPES = Path(__file__).parents[2] / "recipes"
# A layer of nothing but attention, where a pair costs one FLOP.
FULL = Shape((Step(Unit.PAIR, width=0.25),), ())
SLIDING = Shape((Step(Unit.WINDOW_PAIR, width=0.25),), (), window=4)
IMAGES = dataclasses.replace(SLIDING, patches_per_soft_token=9, is_image_bidirectional=True)
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 2,
    "intermediate_size": 6,
    "vocab_size": 10,
    "num_hidden_layers": 1,
}
# Weights of LLAMA's products: q 4x4, k and v 4x2, o 4x4, gate, up and down 4x6, head 4x10.
LAYER, HEAD = 16 + 8 + 8 + 16 + 3 * 24, 40
THREE = Sequences([3], [[3]])


def config_of(name):
    return json.loads((RECIPES / "models" / name / "config.json").read_text())


def recipe_of(name):
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text())


def seen(documents, window=None, images=()):
    """Entries of the mask of one row that are true; an image is (its first token, how many)."""
    spans = [range(end - length, end) for length, end in zip(documents, itertools.accumulate(documents), strict=True)]
    blocks = [range(first, first + length) for first, length in images]

    def sees(query, key):
        together = any(query in span and key in span for span in spans)
        of_image = any(query in block and key in block for block in blocks)
        return together and (key <= query or of_image) and (window is None or key > query - window)

    return sum(sees(query, key) for query in range(sum(documents)) for key in range(sum(documents)))


@pytest.mark.parametrize("documents", [[1], [3], [4], [5], [11], [3, 5, 1], [9, 9]])
def test_attention_counts_the_true_entries_of_its_mask(documents):
    row = Sequences([sum(documents)], [documents])
    assert model_flops(FULL, Training(), row) == seen(documents)
    assert model_flops(SLIDING, Training(), row) == seen(documents, window=4)


@pytest.mark.parametrize("images", [[(0, 3)], [(2, 4)], [(1, 9)], [(1, 3), (6, 5)]])
def test_tokens_of_an_image_see_each_other_where_there_is_a_window(images):
    patches = [9 * length for _, length in images]
    row = Sequences([13], [[12]], patches, patches)
    assert model_flops(IMAGES, Training(), row) == seen([12], window=4, images=images)
    full = dataclasses.replace(IMAGES, steps=FULL.steps)
    assert model_flops(full, Training(), row) == seen([12])
    causal = dataclasses.replace(IMAGES, is_image_bidirectional=False)
    assert model_flops(causal, Training(), row) == seen([12], window=4)


def test_padding_and_the_filling_of_a_packed_row_are_computed_but_not_needed():
    padded, packed = Sequences([8], [[5]]), Sequences([8], [[2, 3]])
    assert model_flops(FULL, Training(), padded) == seen([5])
    assert hardware_flops(FULL, Training(), padded) == seen([8])
    assert model_flops(FULL, Training(), packed) == seen([2, 3])
    assert hardware_flops(FULL, Training(), packed) == seen([2, 3, 3])


def test_each_saving_can_be_left_out():
    row, image = Sequences([9], [[3, 6]]), Sequences([9], [[9]], [27], [27])
    assert model_flops(SLIDING, Training(), row, Savings(window=False)) == seen([3, 6])
    assert model_flops(SLIDING, Training(), row, Savings(packing=False)) == seen([9], window=4)
    assert model_flops(SLIDING, Training(), row, Savings(causal=False)) == 3 * 3 + 6 * 6
    assert hardware_flops(SLIDING, Training(), row, Savings(causal=False, packing=False)) == 9 * 9
    assert model_flops(IMAGES, Training(), image, Savings(causal=False)) == 9 * 9


def test_full_fine_tuning_is_six_times_the_weights_and_three_times_the_attention():
    attention = 4 * (2 * 2) * 6  # four FLOPs x heads x head size, of six pairs
    assert model_flops(flops.shape_of(LLAMA), Training(), THREE) == 3 * 6 * (LAYER + HEAD) + 3 * attention


def test_lora_spares_the_gradients_of_the_weights_and_those_that_nobody_needs():
    lora = Training(lora_dim=1, targets=("*_proj",))
    first = 16 + 8 + 8  # q, k and v of the first layer: the embedding before them does not train
    adapters = (4 + 4) + 2 * (4 + 2) + (4 + 4) + 3 * (4 + 6)
    token = 4 * (LAYER + HEAD) - 2 * first + 6 * adapters - 2 * (3 * 4)
    assert model_flops(flops.shape_of(LLAMA), lora, THREE) == 3 * token + 3 * 4 * 4 * 6


def test_an_adapter_spares_the_backward_pass_of_all_before_it():
    head_only = Training(lora_dim=1, targets=("lm_head",))
    token = 2 * LAYER + 2 * HEAD + 2 * 4 * 2 + 2 * 10 * 3  # of the adapter's halves, the first has no input gradient
    assert model_flops(flops.shape_of(LLAMA), head_only, THREE) == 3 * token + 4 * 4 * 6


@pytest.mark.parametrize(("is_hf_class", "ends"), [(False, 16 + 24), (True, 24)])
def test_checkpointing_repeats_a_layer_but_for_what_its_regions_end_with(is_hf_class, ends):
    shape, training = flops.shape_of(LLAMA), Training(is_checkpointing=True, is_hf_class=is_hf_class)
    repeated = hardware_flops(shape, training, THREE) - hardware_flops(shape, Training(), THREE)
    assert repeated == 3 * 2 * (LAYER - ends) + 4 * 4 * 6
    assert model_flops(shape, training, THREE) == model_flops(shape, Training(), THREE)


def test_checkpointing_repeats_the_layers_that_train_only():
    shape = flops.shape_of({**LLAMA, "num_hidden_layers": 3})
    lora = Training(lora_dim=1, targets=("*.layers.1.*",))
    again = dataclasses.replace(lora, is_checkpointing=True)
    adapters = (4 + 4) + 2 * (4 + 2) + (4 + 4) + 3 * (4 + 6)
    repeated = hardware_flops(shape, again, THREE) - hardware_flops(shape, lora, THREE)
    assert repeated == 3 * 2 * (LAYER + adapters) + 4 * 4 * 6


@pytest.mark.parametrize(
    ("name", "num_parameters"), [("llama-3.1-8b", 8_030_261_248), ("llama-3.3-70b", 70_553_706_496)]
)
def test_the_weights_of_the_products_the_embedding_and_the_norms_are_all_there_is(name, num_parameters):
    config = config_of(name)
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    products = sum(linear.num_in * linear.num_out for step in flops.shape_of(config).steps for linear in step.linears)
    assert products + config["vocab_size"] * hidden + (2 * layers + 1) * hidden == num_parameters


def test_a_frozen_vision_tower_costs_its_forward_pass_of_the_patches():
    config = config_of("tiny-gemma-4")
    vision, hidden = config["vision_config"], config["text_config"]["hidden_size"]
    width, inner = vision["hidden_size"], vision["intermediate_size"]  # heads x head size is the width, too
    tower = 2 * (3 * 16 * 16 * width + vision["num_hidden_layers"] * (4 * width * width + 3 * width * inner))
    pair = vision["num_hidden_layers"] * 4 * width + 2 * width / 9  # attention, and the pooler's averaging
    projection = 2 * width * hidden
    shape, training = flops.shape_of(config), flops.training_of(recipe_of("tiny_gemma_peft"))
    text = Sequences([64], [[50]])
    image = dataclasses.replace(text, padded_patches=[90], real_patches=[54])
    # Six soft tokens see those after them in the five layers with a window: attention with its backward pass.
    bidirectional = 5 * 3 * 4 * (4 * 32) * (6 * 5 // 2)
    for count, patches in ((model_flops, 54), (hardware_flops, 90)):
        added = count(shape, training, image) - count(shape, training, text)
        assert added == pytest.approx(patches * tower + patches**2 * pair + 6 * projection + bidirectional, rel=1e-12)


def test_sequences_come_back_from_json():
    sequences = Sequences([8, 8], [[5], [2, 3]], [90], [54])
    shape = flops.shape_of(config_of("tiny-gemma-4"))
    copy = Sequences(**json.loads(json.dumps(dataclasses.asdict(sequences))))
    assert hardware_flops(shape, Training(), copy) == hardware_flops(shape, Training(), sequences) > 0


GEMMA = config_of("gemma-4-31b")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {**LLAMA, "model_type": "mixtral"},
        {key: value for key, value in LLAMA.items() if key != "intermediate_size"},
        {**LLAMA, "model_type": "qwen2", "use_sliding_window": True},
        {**LLAMA, "model_type": "mistral"},  # without saying whether it has a window
        {**GEMMA, "audio_config": {"hidden_size": 1024}},
        {**GEMMA, "text_config": {**GEMMA["text_config"], "enable_moe_block": True}},
        {**GEMMA, "text_config": {**GEMMA["text_config"], "use_bidirectional_attention": "all"}},
    ],
)
def test_a_model_that_is_not_known_has_no_shape(config):
    assert flops.shape_of(config) is None


@pytest.mark.parametrize("path", sorted(RECIPES.glob("models/*/config.json")), ids=lambda path: path.parent.name)
def test_every_model_of_the_recipes_has_a_shape(path):
    assert flops.shape_of(json.loads(path.read_text())) is not None


@pytest.mark.parametrize(("value", "expected"), [("vision", True), (None, False)])
def test_gemma_says_whether_images_see_themselves(value, expected):
    text = {**GEMMA["text_config"], "use_bidirectional_attention": value}
    assert flops.shape_of({**GEMMA, "text_config": text}).is_image_bidirectional == expected


def test_mistral_sees_its_window_in_every_layer():
    shape = flops.shape_of({**LLAMA, "model_type": "mistral", "sliding_window": 2})
    whole = flops.shape_of({**LLAMA, "model_type": "mistral", "sliding_window": None})
    pairs = seen([3]) - seen([3], window=2)
    assert model_flops(whole, Training(), THREE) - model_flops(shape, Training(), THREE) == 3 * 4 * 4 * pairs > 0


VISION_LORA = ("*vision_tower*", "*vision*", "*visual*", "*image_encoder*", "*lm_head*", "*audio*")


@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("gemma31b_peft", Training(16, (), VISION_LORA, is_vision_frozen=True, is_checkpointing=True)),
        ("gemma31b_sft", Training(is_vision_frozen=True, is_checkpointing=True)),
        ("llama70b_peft", Training(8, ("*_proj",))),
        ("llama70b_sft", Training(is_checkpointing=True)),
        ("llama8b_peft", Training(8, ("*_proj",))),
        ("llama8b_sft", Training()),
        ("tiny_gemma_peft", Training(16, (), VISION_LORA, is_vision_frozen=True, is_hf_class=True)),
        ("tiny_gemma_sft", Training(is_vision_frozen=True, is_hf_class=True)),
        ("tiny_llama_peft", Training(8, ("*_proj",))),
        ("tiny_llama_sft", Training()),
    ],
)
def test_a_recipe_says_what_trains(name, training):
    assert flops.training_of(recipe_of(name)) == training


def test_every_recipe_is_known():
    paths = sorted(RECIPES.glob("*.yaml"))
    assert [path.stem for path in paths if flops.training_of(yaml.safe_load(path.read_text())) is None] == []
    assert len(paths) >= 10


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"peft": {"dim": 4}}, Training(4, ("*_proj",))),
        ({"peft": {"match_all_linear": True}}, Training(8, ("*",))),
        ({"peft": {"target_modules": ["a", "b"]}}, Training(8, ("a", "b"))),
        ({"freeze_config": {}}, Training(is_vision_frozen=True)),
        ({"freeze_config": {"freeze_vision_tower": False}}, Training()),
        ({"distributed": {"activation_checkpointing": "full"}}, Training(is_checkpointing=True)),
        ({"peft": {"use_dora": True}}, None),
        ({"peft": {"_target_": "peft.LoraConfig"}}, None),
        ({"freeze_config": {"freeze_language_model": True}}, None),
        ({"freeze_config": {"freeze_modules": [{"glob": "*"}]}}, None),
        ({"distributed": {"activation_checkpointing": "selective"}}, None),
        ({"distributed": {"activation_checkpointing": True, "activation_checkpointing_scope": "vision"}}, None),
        ({"distributed": {"strategy": "DDP"}}, Training()),
        ({"distributed": {"strategy": "megatron_fsdp"}}, None),
    ],
)
def test_what_a_recipe_leaves_out_is_automodels_default_and_what_is_not_counted_is_unknown(change, expected):
    assert flops.training_of({"model": {}, **change}) == expected


def test_what_replicas_compute_again_is_known_to_an_estimate_only():
    replicas = {"model": {}, "distributed": {"strategy": "ddp", "activation_checkpointing": True}}
    assert flops.training_of(replicas) is None
    assert flops.training_of(replicas, is_estimate=True) == Training(is_checkpointing=True)
    selective = {"model": {}, "distributed": {"strategy": "ddp", "activation_checkpointing": "selective"}}
    assert flops.training_of(selective, is_estimate=True) is None


def test_a_rank_counts_a_steps_flops_from_its_rows_and_patches():
    rows, patches = [[9, [3, 4]], [9, [8]]], [[27, 18]]
    sequences = Sequences([9, 9], [[3, 4], [8]], [27], [18])
    config, recipe = config_of("gemma-4-31b"), recipe_of("gemma31b_peft")
    shape, training = flops.shape_of(config), flops.training_of(recipe)
    counted = flops.counter_of(config, recipe)(rows, patches)
    assert counted == {
        "model_flops": model_flops(shape, training, sequences),
        "hardware_flops": hardware_flops(shape, training, sequences),
    }
    eager = recipe | {"model": recipe["model"] | {"attn_implementation": "eager"}}
    assert flops.counter_of(config, eager)(rows, patches)["hardware_flops"] > counted["hardware_flops"]


@pytest.mark.parametrize("config", [None, {"model_type": "unheard_of"}])
def test_flops_of_a_model_that_is_not_known_are_not_counted(config):
    assert flops.counter_of(config, recipe_of("llama8b_peft"))([[9, [8]]], []) == {}
