"""The full-size models, built on the meta device from the packaged config.json: no weights, but every parameter."""

from typing import TYPE_CHECKING

import pytest
import yaml

from cctrain.packaged import RECIPES

if TYPE_CHECKING:
    import torch

# Those of the libraries, when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def built(model: str) -> "torch.nn.Module":
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(RECIPES / "models" / model)
    auto = AutoModelForImageTextToText if config.model_type == "gemma4" else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config, dtype=torch.bfloat16)


def num_parameters(model: "torch.nn.Module", *, without: str = "\0") -> int:
    return sum(parameter.numel() for name, parameter in model.named_parameters() if without not in name)


def num_lora_parameters(model: "torch.nn.Module", recipe: str) -> int:
    """What AutoModel's LoRA trains under the recipe's own settings."""
    import torch
    from nemo_automodel.components._peft.lora import PeftConfig, apply_lora_to_linear_modules

    settings = yaml.safe_load((RECIPES / recipe).read_text())["peft"]
    del settings["_target_"]
    with torch.device("meta"):
        apply_lora_to_linear_modules(model, PeftConfig(**settings | {"use_triton": False}))
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("name", "recipe", "parameters", "lora"),
    [
        ("llama-3.3-70b", "llama70b_peft.yaml", 70_553_706_496, 103_546_880),
        ("llama-3.1-8b", "llama8b_peft.yaml", 8_030_261_248, 20_971_520),
    ],
)
def test_llama_has_the_published_number_of_parameters(name, recipe, parameters, lora):
    model = built(name)
    assert num_parameters(model) == parameters
    assert num_lora_parameters(model, recipe) == lora


def test_gemma_has_the_published_number_of_parameters():
    model = built("gemma-4-31b")
    assert num_parameters(model) == 31_273_086_512
    assert num_parameters(model, without="vision") == 30_697_345_280
    assert num_lora_parameters(model, "gemma31b_peft.yaml") == 122_429_440
