"""step=graphed is the same training as step=stock: AutoModel's recipes, tiny, in float32, trained with both.

On a CPU nothing is recorded, but the micro-batches are padded, the counts summed, the loss read back and the ranks
stopped as on GPUs. A fixture starts the runs that belong together side by side.
"""

import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml

from cctrain.packaged import RECIPES
from cctrain.steps.lengths import next_length

SHORT = ("track=none", "measure.warmup=1", "measure.steps=5")
TWO_RANKS = "launch.nproc_per_node=2"
ONE_RANK = "launch.nproc_per_node=1"
ENDLESS = ("track=none", "measure.warmup=5", "measure.steps=5000")
REPLICAS = ("train.distributed.strategy=ddp", "~train.distributed.sequence_parallel", "~train.distributed.mp_policy")
CASES = {
    "sft": ("recipe=tiny_llama_sft", "data=pydoc", ONE_RANK, "train.step_scheduler.local_batch_size=4"),
    "sft_accumulated_fused_and_checkpointed": (
        *("recipe=tiny_llama_sft", "data=pydoc", ONE_RANK, "train.step_scheduler.local_batch_size=1"),
        *("+train.optimizer.fused=true", "+train.distributed.activation_checkpointing=true"),
    ),
    # Of one length: dropout draws a number for each token of padding too.
    "lora_with_dropout_accumulated_on_two_ranks": (
        *("recipe=tiny_llama_peft", "data=synthetic", "data.seq_len=64", TWO_RANKS, "+train.peft.dropout=0.1"),
        *("train.step_scheduler.local_batch_size=1", "train.step_scheduler.global_batch_size=8"),
    ),
    "lora_on_two_ranks": ("recipe=tiny_llama_peft", "data=pydoc", TWO_RANKS, "+train.optimizer.fused=true"),
    "lora_on_two_replicas": ("recipe=tiny_llama_peft", "data=pydoc", TWO_RANKS, *REPLICAS),
    "sft_accumulated_on_two_replicas": (
        *("recipe=tiny_llama_sft", "data=pydoc", TWO_RANKS, *REPLICAS),
        *("train.step_scheduler.local_batch_size=1", "train.step_scheduler.global_batch_size=4"),
    ),
    "tensor_parallel": ("recipe=tiny_llama_sft", "data=pydoc", TWO_RANKS, "train.distributed.tp_size=2"),
    # Of one length: with others, rounding alone differs by 1e-5 of a gradient (test_image_places.py: 1e-6 in float64).
    "gemma_with_images_on_two_ranks": ("recipe=tiny_gemma_peft", "data=synthetic", "data.seq_len=160", TWO_RANKS),
}
NUM_MICRO_BATCHES = (1, 4, 4, 1, 1, 2, 2, 2)
"""A step, by case."""


def log_of(run, name="training"):
    """AutoModel's own log."""
    lines = (run.run_dir / "checkpoints" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(run):
    return [step["loss"] for step in run.record["steps"]]


def assert_complete(*runs):
    for run in runs:
        assert run.code == 0, run.stderr
        assert run.record["status"] == "complete"


@pytest.fixture(scope="module", params=list(zip(CASES, NUM_MICRO_BATCHES, strict=True)), ids=list(CASES))
def both(request, start_cctrain):
    """The same training with step=stock and step=graphed, and the micro-batches of a step."""
    name, num_micro_batches = request.param
    started = [start_cctrain(*CASES[name], *SHORT, f"step={kind}") for kind in ("stock", "graphed")]
    stock, graphed = (run.finish() for run in started)
    assert_complete(stock, graphed)
    return stock, graphed, num_micro_batches


class TestTheSameTraining:
    def test_each_step_has_the_same_loss(self, both):
        stock, graphed, _ = both
        assert len(set(losses(stock))) == 6
        assert losses(graphed) == pytest.approx(losses(stock), rel=1e-6)

    def test_automodels_log_has_each_steps_own_numbers(self, both):
        stock, graphed, _ = both
        for ours, its in zip(log_of(graphed), log_of(stock), strict=True):
            assert {name: ours[name] for name in ("step", "epoch", "num_label_tokens")} == {
                name: its[name] for name in ("step", "epoch", "num_label_tokens")
            }
            assert ours["loss"] == pytest.approx(its["loss"], rel=1e-6)
            assert ours["grad_norm"] == pytest.approx(its["grad_norm"], rel=2e-5)
            assert ours["lr"] == its["lr"]

    def test_the_learning_rate_was_another_with_each_step(self, both):
        assert len({line["lr"] for line in log_of(both[1])}) == 6

    def test_padding_differs_at_most(self, both):
        stock, graphed, _ = both
        for ours, its in zip(graphed.record["steps"], stock.record["steps"], strict=True):
            assert (ours["real_tokens"], ours["label_tokens"]) == (its["real_tokens"], its["label_tokens"])
            assert ours["num_images"] == its["num_images"]
            assert ours["padded_tokens"] >= its["padded_tokens"]

    def test_the_record_says_which_step_it_was_and_what_it_did(self, both):
        stock, graphed, num_micro_batches = both
        assert (stock.record["step_kind"], graphed.record["step_kind"]) == ("stock", "graphed")
        graphs = graphed.record["graphs"]
        assert graphs["why"] == "asked for; on a CPU, which has no CUDA graphs, the steps ran unrecorded"
        assert graphs["eager_micro_batches"] == 6 * num_micro_batches
        assert (graphs["num_graphs"], graphs["recaptures"]) == (0, 0)

    def test_each_micro_batch_has_the_next_buckets_length(self, both):
        stock, graphed, _ = both
        buckets = graphed.record["graphs"]["lengths"]
        padded, plain = padded_lengths(graphed), padded_lengths(stock)
        assert len(padded) == len(plain) > 0
        assert padded == [next_length(length, buckets) for length in plain]


def padded_lengths(run):
    """Of each row of each step, rank by rank."""
    lines = [json.loads(line) for path in sorted(run.run_dir.glob("samples/rank*.jsonl")) for line in path.open()]
    return [length for line in lines for length, _ in line.get("rows", ())]


@pytest.fixture(scope="module")
def checkpointing(tmp_path_factory):
    """A recipe on weights and questions from disk that validates every two steps and saves every three."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("checkpointing")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_pretrained(RECIPES / "models" / "tiny-llama")).save_pretrained(folder / "base")
    for name, first in (("train", 0), ("validation", 500)):
        rows = [{"q": f"What is {n} + {n}" + "?" * (n % 9), "a": f"It is {2 * n}."} for n in range(first, first + 40)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def data(name):
        kind = "nemo_automodel.components.datasets.llm.column_mapped_text_instruction_dataset"
        return {
            "_target_": f"{kind}.ColumnMappedTextInstructionDataset",
            "path_or_dataset_id": str(folder / f"{name}.jsonl"),
            "column_mapping": {"question": "q", "answer": "a"},
            "tokenizer": {"pretrained_model_name_or_path": str(RECIPES / "models" / "tokenizer-llama")},
        }

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
    recipe |= {"dataset": data("train"), "validation_dataset": data("validation")}
    recipe |= {"dataloader": loader, "validation_dataloader": loader}
    recipe["step_scheduler"] |= {"ckpt_every_steps": 3, "val_every_steps": 2}
    recipe["checkpoint"] = {"enabled": True, "model_save_format": "safetensors"}
    path = folder / "questions.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def keeping(recipe):
    return (f"recipe={recipe}", ONE_RANK, *SHORT, "measure.validation=true", "measure.checkpoint=true")


@pytest.fixture(scope="module")
def saved(start_cctrain, checkpointing):
    """With step=stock and step=graphed."""
    started = [start_cctrain(*keeping(checkpointing), f"step={kind}") for kind in ("stock", "graphed")]
    runs = [run.finish() for run in started]
    assert_complete(*runs)
    return runs


@pytest.fixture(scope="module")
def resumed(run_cctrain, checkpointing, saved):
    """The graphed training from its third step on."""
    restore = f"+train.checkpoint.restore_from={saved[1].run_dir}/checkpoints/epoch_0_step_2"
    return run_cctrain(*keeping(checkpointing), restore, "step=graphed")


class TestBetweenGraphedSteps:
    def test_validation_sees_the_same_model(self, saved):
        stock, graphed = (log_of(run, "validation") for run in saved)
        assert [line["step"] for line in graphed] == [line["step"] for line in stock]
        assert len(graphed) > 2
        assert [line["val_loss"] for line in graphed] == pytest.approx([line["val_loss"] for line in stock], rel=1e-6)

    def test_training_goes_on_unchanged_after_validation_and_checkpoints(self, saved):
        stock, graphed = saved
        assert losses(graphed) == pytest.approx(losses(stock), rel=1e-6)
        assert [line["loss"] for line in log_of(graphed)] == losses(graphed)

    @pytest.mark.parametrize("step", [3, 6])
    def test_a_checkpoint_holds_the_loss_of_its_own_step(self, saved, step):
        _, graphed = saved
        found = json.loads((graphed.run_dir / "checkpoints" / f"epoch_0_step_{step - 1}" / "losses.json").read_text())
        assert found["train_loss"] == losses(graphed)[step - 1]

    def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(self, saved, resumed):
        _, graphed = saved
        assert resumed.record["step_kind"] == "graphed", resumed.stderr
        assert [step["step"] for step in resumed.record["steps"]] == [4, 5, 6]
        assert losses(resumed) == pytest.approx(losses(graphed)[3:], rel=1e-6)


AUTOMODELS_LOGITS = """
import sys
import torch
from cctrain.engines import cpu
cpu.install()
from nemo_automodel.components.config.loader import load_yaml_config
from nemo_automodel.recipes.llm.train_ft import TrainFinetuneRecipeForNextTokenPrediction
config, adapters, out = sys.argv[1:]
config = load_yaml_config(config)
config.set_by_dotted("checkpoint.restore_from", adapters)
recipe = TrainFinetuneRecipeForNextTokenPrediction(config)
recipe.setup()
model = recipe.model_parts[0].eval()
with torch.no_grad():
    logits = model(torch.arange(3, 83).reshape(2, 40))
torch.save(getattr(logits, "logits", logits), out)
"""


def test_adapters_give_the_same_logits_in_hugging_faces_peft_as_in_automodel(
    saved, checkpointing, clean_environment, tmp_path
):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    run = saved[1]
    adapters = run.run_dir / "checkpoints" / "epoch_0_step_5"
    job = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    arguments = [str(run.run_dir / "automodel.yaml"), str(adapters), str(tmp_path / "logits.pt")]
    automodel = subprocess.run(
        [sys.executable, "-c", AUTOMODELS_LOGITS, *arguments],
        env=clean_environment | job,
        cwd=tmp_path,
        timeout=120,
        check=False,
        capture_output=True,
        text=True,
    )
    assert automodel.returncode == 0, automodel.stderr
    expected = torch.load(tmp_path / "logits.pt")
    base = LlamaForCausalLM.from_pretrained(checkpointing.parent / "base")
    ids = torch.arange(3, 83).reshape(2, 40)
    with torch.no_grad():
        untrained = base(ids).logits
        found = PeftModel.from_pretrained(base, adapters / "model").eval()(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - untrained).abs().max() > 0.1


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A tiny model with experts."""
    config = json.loads((RECIPES / "models" / "tiny-llama" / "config.json").read_text())
    config |= {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "rope_scaling": None}
    config |= {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "config.json").write_text(json.dumps(config))
    model = (f"train.model.config.pretrained_model_name_or_path={folder}", "+train.model.force_hf=true")
    return ("recipe=tiny_llama_sft", *model, ONE_RANK, *SHORT)


@pytest.fixture(scope="module")
def mixture_runs(start_cctrain, mixture):
    """With step=auto and step=graphed."""
    return [run.finish() for run in [start_cctrain(*mixture, f"step={kind}") for kind in ("auto", "graphed")]]


EXPERTS = "a model with 4 experts routes its tokens by their values"


def test_auto_goes_on_with_the_stock_step_where_no_graph_can_be_and_says_why(mixture_runs):
    run, _ = mixture_runs
    assert_complete(run)
    assert run.record["step_kind"] == "stock"
    assert run.record["graphs"]["why"].startswith(f"step=auto: {EXPERTS}")
    assert len(log_of(run)) == len(run.record["steps"]) == 6
    assert all(step["loss"] for step in run.record["steps"])


def test_graphed_is_refused_before_the_first_step_where_no_graph_can_be(mixture_runs):
    _, run = mixture_runs
    assert run.code == 4
    assert run.record["steps"] == []
    assert f"step=graphed: {EXPERTS}" in run.last_line["error"]
    assert "step=stock, or step=auto" in run.last_line["error"]


def test_a_loss_that_is_no_number_ends_the_run_and_the_record_says_so(run_cctrain):
    too_high = ("train.optimizer.lr=1e30", "train.clip_grad_norm.max_norm=1e30")
    run = run_cctrain("recipe=tiny_llama_sft", "data=recipe", ONE_RANK, *ENDLESS, *too_high, "step=graphed")
    assert run.code == 4
    assert run.record["status"] == "partial"
    assert "is nan; is train.optimizer.lr too high?" in run.record["failure"]
    *finite, last = losses(run)
    assert last is None
    assert finite
    assert all(math.isfinite(loss) for loss in finite)


def last_steps(run):
    """Of each rank, the last step it trained."""
    paths = sorted(run.run_dir.glob("samples/rank*.jsonl"))
    return [max(json.loads(line).get("step", 0) for line in path.open()) for path in paths]


def test_sigterm_to_one_rank_stops_all_of_a_tensor_parallel_group_with_the_same_step(start_cctrain):
    two_ranks = ("recipe=tiny_llama_peft", "data=recipe", TWO_RANKS, "train.distributed.tp_size=2")
    kept = ("measure.checkpoint=true", "train.checkpoint.enabled=true", "train.step_scheduler.ckpt_every_steps=99999")
    run = start_cctrain(*two_ranks, *kept, *ENDLESS, "step=graphed")
    run.wait_for_steps(1.0)
    os.kill(run.pids()[1], signal.SIGTERM)
    run.finish()
    first, second = last_steps(run)
    assert first == second > 0
    (saved_at,) = (run.run_dir / "checkpoints").glob("epoch_*")
    assert saved_at.name == f"epoch_0_step_{first - 1}"
    assert json.loads((saved_at / "losses.json").read_text())["train_loss"] == losses(run)[-1]
    assert len(losses(run)) == len(log_of(run)) == first


def test_enough_measured_steps_end_both_ranks_with_the_same_step(run_cctrain):
    auto = ("measure.warmup=1", "measure.steps=auto", "measure.half_width=0.5", "measure.max_steps=2000")
    run = run_cctrain("recipe=tiny_llama_peft", "data=recipe", TWO_RANKS, "track=none", *auto, "step=graphed")
    assert_complete(run)
    first, second = last_steps(run)
    assert first == second < 2000
    assert len(losses(run)) == first
