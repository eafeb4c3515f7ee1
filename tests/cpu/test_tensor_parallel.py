"""Two tensor-parallel gloo ranks with few exchanges: gradients of one process that has all of the model, and how often
the ranks exchange something. As part of a training: tests/cpu/test_graphed.py."""

import pytest
import torch
from test_replicas import one_of_two
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module
from torch.multiprocessing import spawn

from cctrain.packaged import RECIPES

# Those of the libraries, when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

LAYERS = 2
TOKENS = torch.arange(3, 83).reshape(2, 40)


def llama(targets=("*_proj",), *, is_hf=False, has_biases=False, **peft):
    """The same on all ranks, with adapters that do something; all of it is trained where there are none. `is_hf`:
    Hugging Face's own."""
    from nemo_automodel.components._peft.lora import PeftConfig, apply_lora_to_linear_modules
    from nemo_automodel.components.models.llama.model import LlamaForCausalLM as Automodels
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(RECIPES / "models" / "tiny-llama")
    config.attention_bias = config.mlp_bias = has_biases
    model = (LlamaForCausalLM if is_hf else Automodels)(config).float()
    assert len(model.model.layers) == LAYERS
    if targets:
        apply_lora_to_linear_modules(model, PeftConfig(target_modules=list(targets), **peft))
    for name, parameter in model.named_parameters():
        if "lora_" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter.data, std=0.1)
    return model


def split(model, mesh, *, is_sequence_parallel=False, own_plan=None):
    """As AutoModel does it."""
    from nemo_automodel.components.distributed import parallelizer

    planned = parallelizer._get_parallel_plan(model, is_sequence_parallel, own_plan, tp_size=2)
    plan = {name: parallelizer.translate_to_lora(style) for name, style in planned.items()}
    return parallelize_module(model, mesh["tp"], plan)


def trained(model):
    """Its loss."""
    logits = model(TOKENS)
    logits = whole(getattr(logits, "logits", logits))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), TOKENS.flatten())
    loss.backward()
    return loss.item()


def num_exchanges(model):
    """Of a micro-batch."""
    with CommDebugMode() as counted:
        trained(model)
    return counted.get_total_counts()


def whole(tensor):
    """Of all ranks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gradients(model):
    return {name: whole(one.grad) for name, one in model.named_parameters() if one.requires_grad}


TRAINED = {
    "adapters": ({"targets": ("*_proj",)}, 14 * LAYERS),
    "adapters of some": ({"targets": ("*q_proj", "*o_proj")}, 4 * LAYERS),
    "adapters of Hugging Face's": ({"targets": ("*_proj",), "is_hf": True}, 14 * LAYERS),
    "all, with biases": ({"targets": (), "has_biases": True}, 16 * LAYERS + 3),
}
"""What of which model, and how many parameters these are."""


def as_one(rank, folder):
    with one_of_two(rank, folder):
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
        for model, num_trained in TRAINED.values():
            check_gradients(model, num_trained, mesh)


def check_gradients(model, num_trained, mesh):
    from cctrain.engines.compiled import compile_layers, compiler_facts
    from cctrain.engines.tensor_parallel import (
        few_collectives,
        has_few_collectives,
        reduce_replicas,
        wait_for_embedding,
    )

    with few_collectives():
        own, compiled = (split(llama(**model), mesh) for _ in range(2))
    assert has_few_collectives(own)
    assert compile_layers(compiled) == LAYERS
    compiled_before = compiler_facts()["compilations"]
    alone = llama(**model)
    expected = trained(alone)
    for parallel in (own, compiled):
        wait_for_embedding(parallel)
        assert trained(parallel) == pytest.approx(expected, rel=1e-6)
        reduce_replicas([parallel], mesh)
        found = gradients(parallel)
        assert len(found) == num_trained
        for name, gradient in gradients(alone).items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    assert compiler_facts()["compilations"] > compiled_before
    assert compiler_facts()["left_uncompiled"] == 0


def seldom(rank, folder):
    from cctrain.engines.tensor_parallel import few_collectives, has_few_collectives

    with one_of_two(rank, folder):
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
        # So often does a layer of AutoModel's, or ours is of no use any more. Beside the layers', the embedding and the
        # loss exchange something; and under LoRA the first layer's input needs no gradient.
        for targets, num_of_automodels in ((("*_proj",), 20), ((), 7)):
            with few_collectives():
                own = split(llama(targets), mesh)
            automodels = split(llama(targets), mesh)
            assert not has_few_collectives(automodels)
            assert num_exchanges(own) <= 4 * LAYERS + 3
            assert num_exchanges(automodels) >= num_of_automodels * LAYERS


def lost(rank, folder):
    """In AutoModel's norm, which is compiled. If it is not any more, there is nothing to wait for."""
    from cctrain.engines.tensor_parallel import wait_for_embedding

    with one_of_two(rank, folder):
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
        alone, automodels, waiting = llama(()), split(llama(()), mesh), split(llama(()), mesh)
        wait_for_embedding(waiting)
        for model in (alone, automodels, waiting):
            trained(model)
        expected, lossy, found = (
            gradients(model)["model.embed_tokens.weight"] for model in (alone, automodels, waiting)
        )
        assert (lossy - expected).norm() > 0.5 * expected.norm()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class Quantized(torch.nn.Linear):
    """As other libraries have them."""


def as_before(rank, folder):
    from cctrain.engines.tensor_parallel import few_collectives, has_few_collectives

    quantized, other = llama(()), llama()
    quantized.model.layers[1].mlp.up_proj.__class__ = Quantized
    other.__class__ = type("LlamaForCausalLM", (type(other),), {})
    cases = {
        "dropout": llama(dropout=0.1),
        "DoRA": llama(use_dora=True),
        "quantized": quantized,
        "another model of that name": other,
    }
    with one_of_two(rank, folder):
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
        with few_collectives():
            for name, model in cases.items():
                split(model, mesh)
                assert not has_few_collectives(model), name
            sequence_parallel = split(llama(), mesh, is_sequence_parallel=True)
            planned = split(llama(), mesh, own_plan={"model.layers.*.mlp.down_proj": RowwiseParallel()})
        assert not has_few_collectives(sequence_parallel)
        assert not has_few_collectives(planned)
        after = split(llama(), mesh)
        assert not has_few_collectives(after)


def replicated(rank, folder):
    """Of a module that computes the same on each rank, and one that computes a part: as AutoModel does it, waiting."""
    from nemo_automodel.components.distributed import tp_replicas

    from cctrain.engines.tensor_parallel import reduce_replicas

    with one_of_two(rank, folder):
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
        for reduce in (reduce_replicas, tp_replicas.synchronize_tp_replica_gradients):
            same, part = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).bfloat16()
            tp_replicas.mark_tp_replica_gradient_reduction(part, "sum")
            for module in (same, part):
                module.weight.grad = torch.full_like(module.weight, 1.0 + rank)
            reduce([torch.nn.ModuleList([same, part])], mesh)
            assert same.weight.grad.unique().tolist() == [1.5]
            assert part.weight.grad.unique().tolist() == [3.0]
            assert same.bias.grad is None
        reduce_replicas([same], init_device_mesh("cpu", (2,), mesh_dim_names=("dp",)))
        assert same.weight.grad.unique().tolist() == [1.5]


@pytest.mark.parametrize(
    "ranks",
    [
        pytest.param(as_one, id="gradients are those of one process, also of compiled layers"),
        pytest.param(seldom, id="a layer exchanges four times, where AutoModel's does more than twenty times"),
        pytest.param(lost, id="AutoModel's own lose the embedding's gradient unless it is waited for"),
        pytest.param(as_before, id="what it is not made for is split as AutoModel does it"),
        pytest.param(replicated, id="gradients of what is whole on all ranks become alike"),
    ],
)
def test_ranks(ranks, tmp_path):
    spawn(ranks, (tmp_path,), nprocs=2)
