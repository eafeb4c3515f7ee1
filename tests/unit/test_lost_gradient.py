"""Who is told that AutoModel trains the embedding by a part of its gradient."""

import pytest

from cctrain.request.compose import compose_config
from cctrain.request.lost_gradient import lost_gradient
from cctrain.request.recipe import build_recipe
from cctrain.request.startable import check_request

PARALLEL = ("recipe=tiny_llama_sft", "train.distributed.tp_size=2")


def note(*overrides):
    config = compose_config(overrides, build_recipe)
    return lost_gradient(config, check_request(config, 2))


def test_full_fine_tuning_under_tensor_parallelism_is():
    assert "step=graphed" in note(*PARALLEL)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("recipe=tiny_llama_sft",), id="whole weights on each rank"),
        pytest.param(("recipe=tiny_llama_peft", "train.distributed.tp_size=2"), id="a frozen embedding"),
        pytest.param((*PARALLEL, "train.distributed.sequence_parallel=true"), id="sequence parallelism"),
        pytest.param((*PARALLEL, "step=graphed"), id="a step that waits for the embedding"),
    ],
)
def test_nobody_else_is(overrides):
    assert note(*overrides) is None
