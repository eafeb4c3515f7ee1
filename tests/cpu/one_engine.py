"""What tests/cpu/test_engine_hf.py runs in processes of their own: `python one_engine.py hf|automodel FOLDER ADAPTER`.

Loads the LoRA adapter of the directory ADAPTER (in PEFT's form; for hf it may be missing, and is made then) into the
model of FOLDER/weights, and writes FOLDER/ENGINE.json: how many parameters train, logits of a fixed row before and
after training, and the samples of six steps. The adapter as trained goes to FOLDER/ENGINE/model. hf runs without most
of AutoModel's modules, and says which others it has.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",  # a world of one listens on none
}

import torch

from cctrain.request.compose import compose_config
from cctrain.request.data_files import prepare_data
from cctrain.request.recipe import located
from cctrain.samples import SampleFile

OF_DATA = (
    *("package_info", "shared", "components.config", "components.datasets", "components._peft.module_matcher"),
    *("recipes._typed_config", "components.loggers", "components.optim", "components.training"),
    *("components.distributed", "_transformers.auto_tokenizer", "_transformers.tokenization"),
    "_transformers.v4_patches",
)
"""Modules of AutoModel that engine=hf imports: those that read data sections, with what they import, and tokenizers."""


class OnlyOfData:
    """An AutoModel of which nothing else can be imported."""

    def find_spec(self, name, path=None, target=None):
        module = name.removeprefix("nemo_automodel.")
        is_needed = any(f"{one}.".startswith(f"{module}.") or f"{module}.".startswith(f"{one}.") for one in OF_DATA)
        if module != name and not is_needed:
            raise ImportError(f"{name} is broken here")


def recipe_in(folder, weights):
    config = compose_config(
        [
            *("recipe=tiny_llama_peft", "weights=pretrained", f"weights.path={weights}", "data=pydoc"),
            *("data.seq_len=64", "measure.warmup=2", "measure.steps=4"),
        ],
    )
    folder.mkdir()
    (folder / "samples").mkdir()
    prepare_data(config.data, folder, is_vlm=False)
    return located(config.train, folder), SampleFile(folder / "samples" / "rank0.jsonl")


def hf(train, samples, folder, adapter):
    sys.meta_path.insert(0, OnlyOfData())
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    from cctrain.engines import hf as engine

    trainer = engine.build(train, samples, output=folder / "trainer")
    model = trainer.model
    if adapter.exists():
        found = set_peft_model_state_dict(model, load_file(adapter / "adapter_model.safetensors"))
        assert not found.unexpected_keys, found.unexpected_keys
    else:
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zeros would hide what of an adapter is lost
                torch.nn.init.normal_(parameter.data, std=0.05)
        model.save_pretrained(adapter)
    before = logits(model)

    def run():
        trainer.train()
        trainer.observer.end(is_complete=True)
        model.save_pretrained(folder / "model")

    return model, before, run


def automodel(train, samples, folder, adapter):
    from cctrain.engines import automodel as engine

    recipe, _ = engine.build(train, samples)
    recipe.setup()
    model = recipe.model_parts[0]
    recipe.checkpointer.load_model(model, str(adapter))
    before = logits(model)

    def run():
        recipe.run_train_validation_loop()
        recipe.checkpointer.save_model(model, str(folder), peft_config=recipe.peft_config)

    return model, before, run


@torch.no_grad()
def logits(model):
    out = model(input_ids=torch.arange(3, 35).view(1, -1))
    return getattr(out, "logits", out)[0, -1].tolist()


name, root, adapter = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
train, samples = recipe_in(root / name, root / "weights")
model, before, run = {"hf": hf, "automodel": automodel}[name](train, samples, root / name, adapter)
trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
run()
loaded = [module for module in sys.modules if module.startswith("nemo_automodel.")]
lines = [json.loads(line) for line in samples.path.read_text().splitlines()]
steps = [line for line in lines if "step" in line]
(root / f"{name}.json").write_text(
    json.dumps({"trained": trained, "before": before, "after": logits(model), "steps": steps, "loaded": loaded})
)
os._exit(0)  # AutoModel's exit handlers wait for process groups that have no peers here
