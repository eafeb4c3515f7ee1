"""Who is told that AutoModel trains the embedding by a part of its gradient."""

import pytest

from cctrain.request.compose import compose_config
from cctrain.request.lost_gradient import lost_gradient
from cctrain.request.startable import check_request

PARALLEL = ("recipe=tiny_llama_sft", "train.distributed.tp_size=2")


def note(*overrides):
    config = compose_config(overrides)
    return lost_gradient(config, check_request(config, 2))


@pytest.mark.parametrize("step", ["stock", "auto"])  # which may come to stock only where ranks cannot record it
def test_full_fine_tuning_under_tensor_parallelism_is(step):
    assert "step=graphed" in note(*PARALLEL, f"step={step}")


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("recipe=tiny_llama_sft",), id="whole weights on each rank"),
        pytest.param(("recipe=tiny_llama_peft", "train.distributed.tp_size=2"), id="a frozen embedding"),
        pytest.param((*PARALLEL, "train.distributed.sequence_parallel=true"), id="sequence parallelism"),
        pytest.param((*PARALLEL, "step=graphed"), id="a step that waits for the embedding"),
        pytest.param(
            (
                *("recipe=tiny_gemma_sft", "train.distributed.tp_size=2"),
                "++train.freeze_config.freeze_language_model=true",
            ),
            id="a frozen language model",
        ),
    ],
)
def test_nobody_else_is(overrides):
    assert note(*overrides) is None
