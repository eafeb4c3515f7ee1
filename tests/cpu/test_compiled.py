"""The layers and the loss of tiny models, compiled as `step=graphed` compiles them: how often, and to what losses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SIX_LAYERS = "+train.model.config.num_hidden_layers=6"
CHECKPOINTING = "+train.distributed.activation_checkpointing=true"
IN_SINGLE_OPERATIONS = "train.model.attn_implementation=eager"
GEMMA = ("recipe=tiny_gemma_peft", CHECKPOINTING, "train.dataset.responses=['An old stone bridge.']")
REPLICAS = ("train.distributed.strategy=ddp", "~train.distributed.mp_policy", "~train.distributed.sequence_parallel")
TENSOR_PARALLEL = ("train.distributed.tp_size=2", "train.step_scheduler.global_batch_size=2")
OWN_PLAN = "+train.distributed.tp_plan=llama_nemotron_super_tp_plan"
CASES = {
    # Under LoRA the input of the first layer needs no gradient, and that of the others does.
    "llama_lora": (1, 2, ["recipe=tiny_llama_peft", SIX_LAYERS]),
    "llama_sft": (1, 1, ["recipe=tiny_llama_sft", SIX_LAYERS]),
    "llama_lora, checkpointed": (1, 2, ["recipe=tiny_llama_peft", SIX_LAYERS, CHECKPOINTING]),
    # Six layers of sliding and full attention, and two of the vision tower with its embedder.
    "gemma_lora": (1, 4, [*GEMMA]),
    "gemma_lora, one micro-batch a step": (1, 4, [*GEMMA, "train.step_scheduler.global_batch_size=1"]),
    "gemma_sft, in single operations": (1, 4, ["recipe=tiny_gemma_sft", *GEMMA[1:], IN_SINGLE_OPERATIONS]),
    # As many places as the processor allows: the vision tower has no padding to mask.
    "gemma_lora, images of full size": (1, 4, [*GEMMA, "train.dataset.image_size=[480,336]"]),
    "llama_lora, FSDP2": (2, 2, ["recipe=tiny_llama_peft", SIX_LAYERS]),
    # One less: the loss of tensor-parallel ranks is AutoModel's.
    "llama_lora, tensor parallel": (2, 1, ["recipe=tiny_llama_peft", SIX_LAYERS, *TENSOR_PARALLEL]),
    "llama_sft, tensor parallel": (2, 0, ["recipe=tiny_llama_sft", SIX_LAYERS, *TENSOR_PARALLEL]),
    "llama_sft, as AutoModel splits it": (2, 0, ["recipe=tiny_llama_sft", SIX_LAYERS, *TENSOR_PARALLEL, OWN_PLAN]),
    "gemma_lora, FSDP2": (2, 5, [*GEMMA, "train.step_scheduler.global_batch_size=2"]),
    "gemma_lora, replicas": (2, 5, [*GEMMA, *REPLICAS, "train.step_scheduler.global_batch_size=2"]),
}
"""Ranks, compilations of layers to expect, and overrides."""


@pytest.fixture(scope="module")
def trained(clean_environment):
    """By case, what both of its trainings gave."""
    script, found = Path(__file__).with_name("compiled_training.py"), {}
    for num_ranks in (1, 2):
        cases = {name: overrides for name, (ranks, _, overrides) in CASES.items() if ranks == num_ranks}
        torchrun = [*("-m", "torch.distributed.run", "--standalone", "--nproc-per-node"), str(num_ranks)]
        done = subprocess.run(
            [sys.executable, *torchrun, script, json.dumps(cases)],
            env=clean_environment | {"TORCHDYNAMO_DISABLE": ""},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found |= json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(params=CASES)
def case(request, trained):
    """Compilations of layers to expect, and what both trainings gave."""
    return CASES[request.param][1], trained[request.param]


def test_layers_that_are_alike_are_compiled_once_and_whole_and_so_is_the_loss(case):
    expected, found = case
    assert (found["compilations"], found["left_uncompiled"]) == (expected + 1, 0)


def test_what_is_recorded_runs_again_as_it_was_compiled(case):
    _, found = case
    assert found["replayed_micro_batches"] == 2 * found["eager_micro_batches"] > 0


def test_both_compiled_give_the_same_losses(case):
    _, found = case
    assert len(found["losses"]) == 3
    assert found["losses"] == pytest.approx(found["uncompiled_losses"], rel=1e-5)
