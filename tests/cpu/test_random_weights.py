"""Whether random weights are drawn by the GPU, where AutoModel would do it on one CPU core."""

import pytest

from cctrain.engines.automodel import _is_built_on_cpu

RANDOM = {"_target_": "nemo_automodel.NeMoAutoModelForCausalLM.from_config"}
PRETRAINED = {"_target_": "nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained"}
OF_HUGGING_FACE = RANDOM | {"force_hf": True}


@pytest.mark.parametrize(
    ("model", "strategy", "num_ranks", "is_on_cpu"),
    [
        (RANDOM, "ddp", 2, True),
        (RANDOM, "DDP", 2, True),
        (RANDOM, "fsdp2", 2, False),
        (RANDOM, "fsdp2", 1, False),
        (OF_HUGGING_FACE, "fsdp2", 1, True),
        (OF_HUGGING_FACE, "fsdp2", 2, False),
        (PRETRAINED, "ddp", 2, False),
        (PRETRAINED | {"force_hf": True}, "fsdp2", 1, False),
    ],
)
def test_it_is_for_replicas_and_for_hugging_faces_class_alone(model, strategy, num_ranks, is_on_cpu):
    assert _is_built_on_cpu({"model": model, "distributed": {"strategy": strategy}}, num_ranks) is is_on_cpu
