"""A recipe that validates every two steps and saves every three, on weights and questions from disk."""

from pathlib import Path

import torch
import yaml

from cctrain.packaged import RECIPES

_DATASET = "nemo_automodel.components.datasets.llm.column_mapped_text_instruction_dataset"


def write_recipe(folder: Path) -> Path:
    """Weights (`base`), questions of nine lengths and the recipe, in `folder`; the recipe's path."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_pretrained(RECIPES / "models" / "tiny-llama")).save_pretrained(folder / "base")
    loader = {
        "_target_": "torchdata.stateful_dataloader.StatefulDataLoader",
        "collate_fn": "nemo_automodel.components.datasets.utils.default_collater",
    }
    recipe = yaml.safe_load((RECIPES / "tiny_llama_peft.yaml").read_text())
    recipe["model"] = {
        "_target_": "nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained",
        "pretrained_model_name_or_path": str(folder / "base"),
        "torch_dtype": "float32",
        "attn_implementation": "sdpa",
    }
    recipe |= {"dataset": _data(folder, "train", 0), "validation_dataset": _data(folder, "validation", 500)}
    recipe |= {"dataloader": loader, "validation_dataloader": loader}
    recipe["step_scheduler"] |= {"ckpt_every_steps": 3, "val_every_steps": 2}
    recipe["checkpoint"] = {"enabled": True, "model_save_format": "safetensors"}
    path = folder / "questions.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def _data(folder: Path, name: str, first: int) -> dict[str, object]:
    questions = ((n, " and nothing" * (4 * (n % 9))) for n in range(first, first + 40))
    rows = [f'{{"q": "What is {n} + {n}{more}?", "a": "It is {2 * n}."}}\n' for n, more in questions]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(rows))
    return {
        "_target_": f"{_DATASET}.ColumnMappedTextInstructionDataset",
        "path_or_dataset_id": str(path),
        "column_mapping": {"question": "q", "answer": "a"},
        "tokenizer": {"pretrained_model_name_or_path": str(RECIPES / "models" / "tokenizer-llama")},
    }
