"""step=graphed is the same training as step=stock: AutoModel's recipes, tiny, in float32, trained with both.

On a CPU nothing is recorded, but the micro-batches are padded, the counts summed, the loss read back and the ranks
stopped as on GPUs. Runs that are only compared are trained one after the other by the same ranks.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cctrain.packaged import RECIPES
from cctrain.reduce import Reduction, reduce_samples
from cctrain.request.compose import compose_config
from cctrain.request.data_files import prepare_data
from cctrain.request.graphed import recipe_run
from cctrain.request.recipe import VLM, located
from cctrain.request.startable import check_request
from cctrain.steps.lengths import next_length
from tests.questions import write_recipe

SHORT = ("track=none", "measure.warmup=1", "measure.steps=5")
TWO_RANKS = "launch.nproc_per_node=2"
TWO_PAIRS = ("launch.nproc_per_node=4", "train.distributed.tp_size=2")
ONE_RANK = "launch.nproc_per_node=1"
ENDLESS = ("track=none", "measure.warmup=5", "measure.steps=5000")
REPLICAS = ("train.distributed.strategy=ddp", "~train.distributed.sequence_parallel", "~train.distributed.mp_policy")


@dataclass(frozen=True)
class Case:
    """A training on `num_ranks`, of `num_micro_batches` a step."""

    num_ranks: int
    num_micro_batches: int
    overrides: tuple[str, ...]


CASES = {
    "sft": Case(1, 1, ("recipe=tiny_llama_sft", "data=pydoc", "train.step_scheduler.local_batch_size=4")),
    "sft_accumulated_fused_and_checkpointed": Case(
        *(1, 4),
        (
            *("recipe=tiny_llama_sft", "data=pydoc", "train.step_scheduler.local_batch_size=1"),
            *("+train.optimizer.fused=true", "+train.distributed.activation_checkpointing=true"),
        ),
    ),
    # Of one length: dropout draws a number for each token of padding too.
    "lora_with_dropout_accumulated_on_two_ranks": Case(
        *(2, 4),
        (
            *("recipe=tiny_llama_peft", "data=synthetic", "data.seq_len=64", "+train.peft.dropout=0.1"),
            *("train.step_scheduler.local_batch_size=1", "train.step_scheduler.global_batch_size=8"),
        ),
    ),
    "lora_on_two_ranks": Case(2, 1, ("recipe=tiny_llama_peft", "data=pydoc", "+train.optimizer.fused=true")),
    "lora_on_two_replicas": Case(2, 1, ("recipe=tiny_llama_peft", "data=pydoc", *REPLICAS)),
    "sft_accumulated_on_two_replicas": Case(
        *(2, 2),
        (
            *("recipe=tiny_llama_sft", "data=pydoc", *REPLICAS),
            *("train.step_scheduler.local_batch_size=1", "train.step_scheduler.global_batch_size=4"),
        ),
    ),
    # With AutoModel's own exchanges; of one length, as rows are split.
    "sequence_parallel": Case(
        *(2, 2),
        (
            *("recipe=tiny_llama_peft", "data=synthetic", "data.seq_len=64"),
            *("train.distributed.tp_size=2", "train.distributed.sequence_parallel=true"),
        ),
    ),
    # Of one length: with others, rounding alone differs by 1e-5 of a gradient (test_image_places.py: 1e-6 in float64).
    "gemma_with_images_on_two_ranks": Case(2, 2, ("recipe=tiny_gemma_peft", "data=synthetic", "data.seq_len=160")),
}
KINDS = ("stock", "graphed")


class Trained:
    """What the ranks of one training left in `run_dir`, and what a record would say of it."""

    def __init__(self, run_dir):
        self.run_dir = run_dir
        reduced = reduce_samples(run_dir, Reduction(1))
        steps = [dataclasses.asdict(step) for step in reduced.steps]
        self.record = {"steps": steps, "graphs": reduced.ranks[0].end["graphs"]}


def prepare(case, kind, run_dir):
    """All that ranks need."""
    config = compose_config([*case.overrides, *SHORT, f"step={kind}"])
    recipe = located(recipe_run(config, check_request(config, case.num_ranks)), run_dir)
    for name in ("samples", "logs"):
        (run_dir / name).mkdir(parents=True)
    prepare_data(config.data, run_dir, is_vlm=config.train["recipe"] == VLM)
    step = {"kind": kind, "compile": config.step.compile}
    plain = {"engine": {"name": "automodel"}, "tolls": None, "measure": {"crossings": False}}
    (run_dir / "config.json").write_text(json.dumps(plain | {"train": recipe, "step": step}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, clean_environment):
    """By case, what training with step=stock and step=graphed left; the two worlds, of one rank and of two, side by
    side."""
    root = tmp_path_factory.mktemp("trained")
    processes = {}
    for num_ranks in (1, 2):
        run_dirs = [root / name / kind for name, case in CASES.items() if case.num_ranks == num_ranks for kind in KINDS]
        for run_dir in run_dirs:
            prepare(CASES[run_dir.parent.name], run_dir.name, run_dir)
        script = Path(__file__).with_name("several_trainings.py")
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
        command = [sys.executable, *torchrun, script, *run_dirs]
        processes[num_ranks] = subprocess.Popen(map(str, command), env=clean_environment, cwd=root)
    try:
        for process in processes.values():
            assert process.wait(timeout=300) == 0, last_words(root)
    finally:
        for process in processes.values():
            process.kill()  # its ranks end with it
            process.wait()
    return {name: [Trained(root / name / kind) for kind in KINDS] for name in CASES}


def last_words(root):
    """Of the training that failed."""
    return "".join(log.read_text()[-3000:] for log in root.glob("*/*/logs/rank*.log") if "Traceback" in log.read_text())


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


@pytest.fixture(scope="module", params=CASES)
def both(request, trained):
    """The same training with step=stock and step=graphed, and the micro-batches of a step."""
    return *trained[request.param], CASES[request.param].num_micro_batches


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
        graphs = graphed.record["graphs"]
        assert (stock.record["graphs"], graphs["kind"]) == ({"kind": "stock"}, "graphed")
        assert graphs["why"] == "asked for; on a CPU, which has no CUDA graphs, the steps ran unrecorded"
        assert graphs["eager_micro_batches"] == 6 * num_micro_batches
        assert (graphs["num_graphs"], graphs["recaptures"]) == (0, 0)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.num_micro_batches == 1])
def test_each_micro_batch_has_the_next_buckets_length(trained, name):
    stock, graphed = trained[name]
    buckets = graphed.record["graphs"]["lengths"]
    padded, plain = padded_lengths(graphed), padded_lengths(stock)
    assert len(padded) == len(plain) > 0
    assert padded == [next_length(length, buckets) for length in plain]


def padded_lengths(run):
    """Of each step's one micro-batch, rank by rank."""
    rows = json.loads((run.run_dir / "config.json").read_text())["train"]["step_scheduler"]["local_batch_size"]
    lines = [json.loads(line) for path in sorted(run.run_dir.glob("samples/rank*.jsonl")) for line in path.open()]
    return [line["padded_tokens"] // rows for line in lines if "step" in line]


@pytest.fixture(scope="module")
def checkpointing(tmp_path_factory):
    """A recipe on weights and questions from disk that validates every two steps and saves every three."""
    return write_recipe(tmp_path_factory.mktemp("checkpointing"))


def keeping(recipe, *ranks):
    return (f"recipe={recipe}", *(ranks or (ONE_RANK,)), *SHORT, "measure.validation=true", "measure.checkpoint=true")


@pytest.fixture(scope="module")
def saved(start_cctrain, checkpointing):
    """With step=stock and step=graphed."""
    started = [start_cctrain(*keeping(checkpointing), f"step={kind}") for kind in ("stock", "graphed")]
    runs = [run.finish() for run in started]
    assert_complete(*runs)
    return runs


def after_three_steps_of(run):
    """The same, graphed."""
    return (f"+train.checkpoint.restore_from={run.run_dir}/checkpoints/epoch_0_step_2", "step=graphed")


@pytest.fixture(scope="module")
def resumed(run_cctrain, checkpointing, saved):
    return run_cctrain(*keeping(checkpointing), *after_three_steps_of(saved[1]))


@pytest.fixture(scope="module")
def tensor_parallel(run_cctrain, checkpointing):
    """AutoModel's own training on two pairs of ranks, and graphed, with few exchanges, from its third step on."""
    stock = run_cctrain(*keeping(checkpointing, *TWO_PAIRS))
    assert_complete(stock)
    return stock, run_cctrain(*keeping(checkpointing, *TWO_PAIRS), *after_three_steps_of(stock))


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

    def test_tensor_parallel_ranks_with_few_collectives_go_on_as_automodels_do(self, tensor_parallel):
        stock, resumed = tensor_parallel
        assert resumed.record["graphs"]["few_collectives"], resumed.stderr
        assert losses(resumed) == pytest.approx(losses(stock)[3:], rel=1e-6)
        expected, found = adapters(stock), adapters(resumed)
        assert len(found) == 28
        assert found.keys() == expected.keys()
        for name, adapter in found.items():
            torch.testing.assert_close(adapter, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_two_pairs_of_tensor_parallel_ranks_train_all_of_a_model_as_one_rank_does(start_cctrain, checkpointing):
    """AutoModel's own do not, where its norms are compiled, as here: test_tensor_parallel.py."""
    recipe = (f"recipe={checkpointing}", "~train.peft", *SHORT)
    ways = ((ONE_RANK,), (*TWO_PAIRS, "step=graphed"))
    started = [start_cctrain(*recipe, *way, TORCHDYNAMO_DISABLE="") for way in ways]
    alone, parallel = (run.finish() for run in started)
    assert_complete(alone, parallel)
    assert losses(alone)[0] > 1.5 * losses(alone)[-1]
    assert parallel.record["graphs"]["few_collectives"]
    assert losses(parallel) == pytest.approx(losses(alone), rel=1e-5)


def adapters(run):
    """As the last checkpoint has them."""
    return load_file(run.run_dir / "checkpoints" / "epoch_0_step_5" / "model" / "adapter_model.safetensors")


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


@pytest.fixture
def mixture(tmp_path):
    """A tiny model with experts."""
    config = json.loads((RECIPES / "models" / "tiny-llama" / "config.json").read_text())
    config |= {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "rope_scaling": None}
    config |= {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = (f"train.model.config.pretrained_model_name_or_path={tmp_path}", "+train.model.force_hf=true")
    return ("recipe=tiny_llama_sft", *model, ONE_RANK, *SHORT)


def test_auto_goes_on_with_the_stock_step_where_no_graph_can_be_and_says_why(run_cctrain, mixture):
    run = run_cctrain(*mixture, "step=auto")
    assert_complete(run)
    assert run.record["step_kind"] == "stock"
    assert run.record["graphs"]["why"].startswith("step=auto: a model with 4 experts routes its tokens by their values")
    assert len(log_of(run)) == len(run.record["steps"]) == 6
    assert all(step["loss"] for step in run.record["steps"])


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


def test_ranks_that_are_told_to_stop_do_so_with_the_same_step(start_cctrain):
    run = start_cctrain("recipe=tiny_llama_peft", "data=recipe", TWO_RANKS, *ENDLESS, "step=graphed")
    run.wait_for_steps(1.0)
    (run.run_dir / "stop.json").write_text('{"why": "enough"}')
    run.finish()
    assert_complete(run)
    assert run.record["notes"] == ["enough"]
    first, second = last_steps(run)
    assert first == second == len(losses(run)) > 0
