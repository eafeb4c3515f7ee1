"""The layers and the loss of tiny models, compiled as `step=graphed` compiles them: how often, and to what losses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SIX_LAYERS = "+train.model.config.num_hidden_layers=6"
CHECKPOINTING = "+train.distributed.activation_checkpointing=true"
CASES = {
    # Under LoRA the input of the first layer needs no gradient, and that of the others does.
    "llama_lora": (2, ["recipe=tiny_llama_peft", SIX_LAYERS]),
    "llama_sft": (1, ["recipe=tiny_llama_sft", SIX_LAYERS]),
    "llama_lora, checkpointed": (2, ["recipe=tiny_llama_peft", SIX_LAYERS, CHECKPOINTING]),
    # Six layers of sliding and full attention, and two of the vision tower with its embedder.
    "gemma_lora": (
        4,
        [
            "recipe=tiny_gemma_peft",
            CHECKPOINTING,
            "train.dataset.responses=['An old stone bridge.']",
        ],
    ),
    "gemma_lora, one micro-batch a step": (
        4,
        [
            *("recipe=tiny_gemma_peft", CHECKPOINTING, "train.step_scheduler.global_batch_size=1"),
            "train.dataset.responses=['An old stone bridge.']",
        ],
    ),
}


@pytest.fixture(scope="module")
def trained(clean_environment):
    """By case, what both of its trainings gave."""
    script = Path(__file__).with_name("compiled_training.py")
    cases = {name: overrides for name, (_, overrides) in CASES.items()}
    done = subprocess.run(
        [sys.executable, script, json.dumps(cases)],
        env=clean_environment | {"TORCHDYNAMO_DISABLE": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(params=CASES)
def case(request, trained):
    """Compilations of layers to expect, and what both trainings gave."""
    return CASES[request.param][0], trained[request.param]


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
