"""The second engine beside the first: the same weights and the same data through both."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cctrain.packaged import RECIPES

COUNTS = ("padded_tokens", "real_tokens", "label_tokens")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint that both engines load."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("both") / "weights"
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(RECIPES / "models" / "tiny-llama")
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(RECIPES / "models" / "tokenizer-llama" / name, folder)
    return folder


@pytest.fixture(scope="module")
def of_two_ranks(weights):
    """The same weights on two ranks with two micro-batches a step, by recipe and engine."""

    def overrides(recipe, engine):
        given = (f"recipe={recipe}", f"engine={engine}", "weights=pretrained", f"weights.path={weights}", "track=none")
        return (*given, "train.step_scheduler.local_batch_size=1", "measure.warmup=2")

    return overrides


@pytest.fixture(scope="module")
def sft(run_cctrain, of_two_ranks):
    """Full fine-tuning, by engine."""

    def run(engine, *more):
        return run_cctrain(*of_two_ranks("tiny_llama_sft", engine), "measure.steps=10", *more)

    return {"automodel": run("automodel"), "hf": run("hf"), "ddp": run("hf", "train.distributed.strategy=ddp")}


@pytest.mark.parametrize("kind", ["hf", "ddp"])
def test_full_fine_tuning_sees_the_same_tokens_and_comes_to_the_same_losses(sft, kind):
    for run in sft.values():
        assert run.code == 0, run.stderr
    theirs, ours = (sft[name].record["steps"] for name in ("automodel", kind))
    assert [[step[name] for name in COUNTS] for step in ours] == [[step[name] for name in COUNTS] for step in theirs]
    assert [step["loss"] for step in ours] == pytest.approx([step["loss"] for step in theirs], rel=1e-5)


def test_full_fine_tuning_trains_as_many_parameters(sft, weights):
    from cctrain.engines.hf_model import build_model

    recipe = {"_target_": "", "pretrained_model_name_or_path": str(weights), "torch_dtype": "float32"}
    model = build_model({"recipe": "", "model": recipe})
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert f"Trainable parameters: {trained:,}\n" in (sft["automodel"].run_dir / "logs" / "rank0.log").read_text()


def test_another_device_draws_what_lies_on_the_cpu():
    import torch

    from cctrain.engines.hf_model import DrawnBy, build_model

    where = {"pretrained_model_name_or_path": str(RECIPES / "models" / "tiny-llama")}
    recipe = {"recipe": "", "model": {"_target_": "transformers.AutoModelForCausalLM.from_config", "config": where}}
    torch.manual_seed(0)
    drawn = build_model(recipe).state_dict()
    torch.manual_seed(0)
    with DrawnBy(torch.device("cpu")):
        again = build_model(recipe).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in drawn.items())
    with DrawnBy(torch.device("meta")), pytest.raises(NotImplementedError, match="meta"):  # whose numbers are none
        build_model(recipe)
    with DrawnBy(torch.device("meta")):  # but whoever brings a generator has its numbers
        assert torch.empty(8).normal_(generator=torch.Generator()).isfinite().all()


def test_the_record_names_its_engine_and_the_packages_that_make_it(sft):
    record, other = sft["hf"].record, sft["automodel"].record
    assert (record["engine"], other["engine"]) == ("hf", "automodel")
    assert {"peft", "accelerate"} <= record["identity"]["versions"].keys() - other["identity"]["versions"].keys()
    assert record["identity"]["recipe_hash"] == other["identity"]["recipe_hash"]


def test_phases_of_both_micro_batches_add_up_to_the_step(sft):
    for step in sft["hf"].record["steps"]:
        assert set(step["phases_s"]) == {"data_wait", "other", "forward", "backward", "optimizer"}
        assert min(step["phases_s"].values()) >= 0
        assert sum(step["phases_s"].values()) == pytest.approx(step["step_time_s"], rel=1e-6)


@pytest.fixture(scope="module")
def lora(weights, clean_environment):
    """LoRA on one rank: Hugging Face's engine makes and trains an adapter, AutoModel's starts from the same one."""
    root = weights.parent
    script = Path(__file__).with_name("one_engine.py")
    results = {}
    for engine in ("hf", "automodel"):
        done = subprocess.run(
            [sys.executable, script, engine, root, root / "first"],
            env=clean_environment,
            cwd=root,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results[engine] = json.loads((root / f"{engine}.json").read_text())
    return results


def test_lora_trains_as_many_parameters_on_the_same_tokens_to_the_same_losses(lora):
    ours, theirs = lora["hf"], lora["automodel"]
    assert ours["trained"] == theirs["trained"] > 0
    assert len(ours["steps"]) == 6
    for name in COUNTS:
        assert [step[name] for step in ours["steps"]] == [step[name] for step in theirs["steps"]]
    losses = [[step["loss"] for step in result["steps"]] for result in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_it_trains_where_automodels_models_and_recipes_cannot_be_imported(lora):
    for broken in ("components.models", "recipes.llm", "_transformers.auto_model", "components._peft.lora"):
        assert f"nemo_automodel.{broken}" in lora["automodel"]["loaded"]  # which cannot do without
        assert f"nemo_automodel.{broken}" not in lora["hf"]["loaded"]
    assert len(lora["hf"]["steps"]) == 6


def test_automodel_computes_with_an_adapter_of_peft_as_peft_does(lora):
    assert lora["automodel"]["before"] == pytest.approx(lora["hf"]["before"], abs=1e-5)


def test_peft_computes_with_an_adapter_of_automodel_as_automodel_does(lora, weights):
    import torch
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM.from_pretrained(weights)
    model = PeftModel.from_pretrained(base, weights.parent / "automodel" / "model")
    with torch.no_grad():
        found = model(input_ids=torch.arange(3, 35).view(1, -1)).logits[0, -1].tolist()
    assert found == pytest.approx(lora["automodel"]["after"], abs=1e-5)
    assert found != pytest.approx(lora["hf"]["before"], abs=1e-3)  # training has changed it


@pytest.mark.parametrize(
    ("recipe", "base"),
    [
        ({}, 1e-3),
        ({}, 0.0),
        ({"lr_decay_style": "linear", "min_lr": 1e-5}, 1e-3),
        ({"lr_decay_style": "constant"}, 1e-3),
        ({"lr_warmup_steps": 0}, 1e-3),
        ({"lr_warmup_steps": 7, "lr_decay_steps": 20, "init_lr": 0.0, "max_lr": 2e-3}, 1e-3),
        ({"max_lr": 2e-3}, 0.0),
    ],
)
def test_the_learning_rate_is_automodels_at_every_step(recipe, base):
    import torch
    from nemo_automodel.components.optim.optimizer import LRSchedulerConfig

    from cctrain.engines.hf import TimedTrainer

    class Steps:
        epoch_len, num_epochs, max_steps = None, 1, 30

    optimizer, ours = (torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base) for _ in range(2))
    (theirs,) = LRSchedulerConfig(**recipe).build(optimizer, Steps())
    trainer = SimpleNamespace(_train={"lr_scheduler": recipe}, optimizer=ours)
    schedule = TimedTrainer.create_scheduler(trainer, 30)
    for _ in range(30):
        assert ours.param_groups[0]["lr"] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        theirs.step(1)
        ours.step()
        schedule.step()


def test_a_rate_without_a_schedule_stays_as_it_is():
    import torch

    from cctrain.engines.hf import TimedTrainer

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.25)
    TimedTrainer.create_scheduler(SimpleNamespace(_train={}, optimizer=optimizer), 30)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_a_step_without_labels_has_no_nan_for_a_loss():
    import torch

    from cctrain.engines.hf import TimedTrainer

    none = {"input_ids": torch.ones(1, 4, dtype=torch.long), "labels": torch.full((1, 4), -100)}
    trainer = SimpleNamespace(_keys=("input_ids", "labels"), _get_num_items_in_batch=lambda *_: torch.tensor(0))
    _, num_labels = TimedTrainer.get_batch_samples(trainer, iter([none]), 1, torch.device("cpu"))
    assert num_labels == 1


def test_ranks_wait_longer_for_the_one_that_loads_than_a_recipe_lets_them_wait_for_each_other(monkeypatch, tmp_path):
    from cctrain.engines.hf import training_arguments

    monkeypatch.setenv("WORLD_SIZE", "1")
    recipe = {"step_scheduler": {"max_steps": 1}, "dist_env": {"backend": "gloo", "timeout_minutes": 1}, "model": {}}
    assert training_arguments(recipe, tmp_path).ddp_timeout >= 3600


@pytest.fixture(scope="module")
def sharded(start_cctrain, of_two_ranks):
    """LoRA with FSDP2, until it is told to stop."""
    run = start_cctrain(*of_two_ranks("tiny_llama_peft", "hf"), "measure.steps=auto", "measure.max_steps=100000")
    run.wait_until(lambda: bool(run.run_dirs) and min(map(len, samples(run)), default=0) > 20, "no steps")
    (run.run_dir / "stop.json").write_text('{"why": "enough"}')
    return run.finish()


@pytest.fixture(scope="module")
def replicated(run_cctrain, of_two_ranks):
    """LoRA with DDP, under tolls."""
    return run_cctrain(
        *(*of_two_ranks("tiny_llama_peft", "hf"), "train.distributed.strategy=ddp", "cc=emulated", "tolls=b300"),
        *("cc.blocks=2", "measure.steps=16"),
    )


def test_a_run_is_told_to_stop_and_its_ranks_do_so_with_the_same_step(sharded):
    assert sharded.code == 0, sharded.stderr
    counts = [len(lines) for lines in samples(sharded)]
    assert counts[0] == counts[1] == len(sharded.record["steps"])
    assert sharded.record["notes"] == ["enough"]


@pytest.mark.parametrize("kind", ["sharded", "replicated"])
def test_lora_on_two_ranks_sees_automodels_tokens_and_begins_at_the_loss_of_the_bare_model(kind, sft, request):
    run = request.getfixturevalue(kind)
    assert run.code == 0, run.stderr
    ours, theirs = run.record["steps"], sft["automodel"].record["steps"]
    for name in COUNTS:
        assert [step[name] for step in ours[: len(theirs)]] == [step[name] for step in theirs]
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-6)  # B is zero
    losses = [step["loss"] for step in ours[: len(theirs)]]
    assert losses[-1] < losses[0] - 0.1
    assert losses[-1] != pytest.approx(theirs[-1]["loss"], rel=1e-3)  # which trains everything


def test_sharded_and_replicated_adapters_take_the_same_first_step(sharded, replicated):
    # Not more of them: learning rates depend on the number of steps, which differs.
    losses = [[step["loss"] for step in run.record["steps"][:2]] for run in (sharded, replicated)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def samples(run):
    """The steps that each rank has written down."""
    return [
        [line for line in path.read_text().splitlines() if '"step"' in line]
        for path in run.run_dir.glob("samples/rank*.jsonl")
    ]


def test_tolls_are_injected_into_tolled_steps_only(replicated):
    tolled, injected = zip(*injections(replicated), strict=True)
    assert {True, False} <= set(tolled)
    assert all((seconds > 0) == bool(is_tolled) for is_tolled, seconds in zip(tolled, injected, strict=True))
    assert replicated.record["crossings"]["operators"] > 100


def injections(run):
    """Whether each step of rank 0 is of a tolled block (None in the warm-up), and what was injected into it."""
    lines = [json.loads(line) for line in (run.run_dir / "samples" / "rank0.jsonl").read_text().splitlines()]
    return [(one.get("is_tolled"), one["crossings"]["injected_s"]["launch"]) for one in lines if "step" in one]


def test_a_recipe_with_images_trains(run_cctrain):
    run = run_cctrain("recipe=tiny_gemma_peft", "engine=hf", "track=none", "measure.warmup=1", "measure.steps=4")
    assert run.code == 0, run.stderr
    assert all(step["num_images"] for step in run.record["steps"])


@pytest.mark.parametrize("stated", [True, None])
def test_what_of_a_vision_tower_is_frozen_has_no_adapter_that_trains(stated):
    """As AutoModel has it, for which a tower is frozen unless it is said."""
    from cctrain.engines.hf_model import build_model
    from cctrain.request.compose import compose_config
    from cctrain.request.recipe import located

    lines = ["recipe=tiny_gemma_peft", "engine=hf", "train.peft.match_all_linear=true", "~train.peft.exclude_modules"]
    train = located(compose_config(lines).train, Path())
    train["freeze_config"] = {"freeze_vision_tower": stated, "freeze_language_model": False}
    trained = [name for name, one in build_model(train).named_parameters() if one.requires_grad]
    assert trained
    assert not [name for name in trained if "vision" in name]


@pytest.mark.parametrize("stated", ["auto", None])
def test_a_type_that_is_left_to_the_model_is_that_of_its_weights_and_of_random_ones_automodels(weights, stated):
    from cctrain.engines.hf_model import build_model

    left = {"torch_dtype": stated} if stated else {}
    source = {"_target_": "transformers.AutoConfig.from_pretrained", "pretrained_model_name_or_path": str(weights)}
    drawn = {"_target_": "nemo_automodel.NeMoAutoModelForCausalLM.from_config", "config": source}
    assert str(build_model({"recipe": "", "model": drawn | left}).dtype) == "torch.bfloat16"
    stored = {"_target_": "", "pretrained_model_name_or_path": str(weights)}
    train = {"recipe": "", "model": stored | left}
    with pytest.raises(ValueError, match=r"torch_dtype=float32 with .*mp_policy\.param_dtype=bfloat16"):
        build_model(train)
    replicas = {"distributed": {"strategy": "ddp"}}
    assert str(build_model(train | replicas).dtype) == "torch.float32"


def test_what_a_recipe_changes_of_the_models_configuration_is_changed(weights):
    from cctrain.engines.hf_model import build_model

    source = {"_target_": "transformers.AutoConfig.from_pretrained", "pretrained_model_name_or_path": str(weights)}
    recipe = {
        "_target_": "nemo_automodel.NeMoAutoModelForCausalLM.from_config",
        "use_cache": True,
        "torch_dtype": "bf16",
    }
    model = build_model({"recipe": "", "model": {**recipe, "config": {**source, "num_hidden_layers": 1}}})
    assert len(model.model.layers) == 1
    assert str(model.dtype) == "torch.bfloat16"
    assert model.config.use_cache is False


@pytest.mark.parametrize(
    ("is_there", "can", "named", "chosen"),
    [
        (True, True, None, "flash_attention_2"),
        (True, False, None, None),
        (False, True, None, None),
        (True, True, "sdpa", "sdpa"),
    ],
)
def test_an_attention_that_the_recipe_does_not_name_is_automodels_choice(monkeypatch, is_there, can, named, chosen):
    from cctrain.engines import hf_model

    def made(attn_implementation=None):
        if attn_implementation == "flash_attention_2" and not can:
            raise ValueError("LlamaForCausalLM does not support Flash Attention 2 yet")
        return attn_implementation

    monkeypatch.setattr(hf_model, "is_flash_attn_2_available", lambda: is_there)
    assert hf_model._attending({"attn_implementation": named}, made, is_packed=False) == chosen
    assert hf_model._attending({"attn_implementation": named}, made, is_packed=True) == named


@pytest.fixture
def worded(run_cctrain, tmp_path):
    """A run of a recipe file that has numbers as YAML takes for words, and no rate of its optimizer's own."""
    import yaml

    recipe = yaml.safe_load((RECIPES / "tiny_llama_peft.yaml").read_text())
    recipe["model"]["config"]["pretrained_model_name_or_path"] = str(RECIPES / "models" / "tiny-llama")
    recipe["optimizer"] = {"_target_": "torch.optim.Adam"}
    recipe["lr_scheduler"] = {"lr_decay_style": "cosine", "min_lr": "1e-5", "max_lr": "none", "lr_warmup_steps": "3"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    few = ("launch.nproc_per_node=1", "measure.warmup=2", "measure.steps=6", "track=none")
    return lambda engine: run_cctrain(f"recipe={tmp_path}/mine.yaml", f"engine={engine}", *few)


def test_what_automodel_reads_as_numbers_and_takes_as_defaults_is_so_here_too(worded):
    runs = {engine: worded(engine) for engine in ("automodel", "hf")}
    for run in runs.values():
        assert run.code == 0, run.stderr
    theirs, ours = (runs[engine].record["steps"] for engine in ("automodel", "hf"))
    assert [[step[name] for name in COUNTS] for step in ours] == [[step[name] for name in COUNTS] for step in theirs]


def test_lora_targets_that_match_nothing_are_named_with_what_there_is():
    from torch import nn

    from cctrain.engines.hf_model import lora_targets

    model = nn.ModuleDict({"q_proj": nn.Linear(2, 2), "k_proj": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
    assert lora_targets(model, {"target_modules": ["q_proj"]}) == ["q_proj"]
    with pytest.raises(ValueError, match=r"target_modules=nope matches no linear layer .* end in k_proj, q_proj"):
        lora_targets(model, {"target_modules": "nope"})
