"""Sections that nothing reads are named, and those that AutoModel reads are not."""

import re
from pathlib import Path

import pytest
import yaml

from cctrain.packaged import RECIPES
from cctrain.request.sections import SECTIONS, unread

ASKED = re.compile(r"self\.(?:cfg|_raw)\.get\(\s*\"(\w+)\"")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_have_none(path):
    assert unread(yaml.safe_load(path.read_text())) is None


def test_a_misspelt_one_is_named_with_the_nearest():
    recipe = dict.fromkeys(("model", "validation_dataset_long"))
    assert unread(recipe | {"optimiser": {}}) == (
        "AutoModel's fine-tuning reads no section optimiser of a recipe. Did you mean optimizer?"
    )
    assert "no section lora of a recipe" in unread(recipe | {"lora": {}})


def test_all_that_automodel_asks_for_are_known():
    import nemo_automodel

    folder = Path(nemo_automodel.__file__).parent / "recipes"
    files = ("llm/train_ft.py", "vlm/finetune.py", "base_recipe.py", "_typed_config.py")
    asked = {name for file in files for name in ASKED.findall((folder / file).read_text())}
    assert len(asked) > 20
    assert asked <= set(SECTIONS)
