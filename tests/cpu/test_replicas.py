"""What ranks exchange in a graphed step besides AutoModel's own: gradients of replicas, and whether to replay."""

import os
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from cctrain.engines.replicas import average_gradients, buckets, rebuild_reducer, unwrapped, without_reducer

# Those of the libraries, when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


class TestBuckets:
    def test_every_gradient_is_in_one_with_others_of_its_type_in_order(self):
        gradients = [torch.zeros(2, dtype=dtype) for dtype in (torch.float32, torch.bfloat16) * 3]
        found = list(buckets(gradients, most_bytes=1 << 20))
        assert [[one.dtype for one in bucket] for bucket in found] == [[torch.float32] * 3, [torch.bfloat16] * 3]
        assert [id(one) for one in found[0]] == [id(one) for one in gradients[::2]]

    def test_none_is_larger_than_allowed_but_for_one_large_gradient(self):
        gradients = [torch.zeros(size) for size in (10, 10, 10, 100, 10)]
        sizes = [[len(one) for one in bucket] for bucket in buckets(gradients, most_bytes=80)]
        assert sizes == [[10, 10], [10], [100], [10]]


class Model(torch.nn.Module):
    """Half of it in bfloat16, a part of it frozen, and one that may be left out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = torch.nn.Linear(4, 4).requires_grad_(False)
        self.narrow = torch.nn.Linear(4, 4).bfloat16()
        self.single = torch.nn.Linear(4, 4)
        self.is_left_out = False

    def forward(self, x):
        y = self.narrow(self.frozen(x).bfloat16()).float()
        return y if self.is_left_out else self.single(y)


@contextmanager
def one_of_two(rank, folder):
    """Ends the process after the block: nothing that follows runs. Gloo's threads outlive a group that DDP holds, and
    one that lets go of a tensor after the interpreter has ended aborts the process."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    yield
    torch.distributed.destroy_process_group()
    os._exit(0)


def node_that_accumulates(parameter):
    return parameter.expand_as(parameter).grad_fn.next_functions[0][0]


def beginning_anew(rank, folder):
    with one_of_two(rank, folder):
        model = DistributedDataParallel(Model())
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            node_that_accumulates(parameter).metadata["is_of_before"] = True
        assert all(node_that_accumulates(parameter).metadata for parameter in trained)  # the reducer keeps them
        rebuild_reducer(model)
        assert not any(node_that_accumulates(parameter).metadata for parameter in trained)


def replicas(rank, folder):
    with one_of_two(rank, folder):
        check_gradients(rank)


def check_gradients(rank):
    batches = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(rank))
    models = [DistributedDataParallel(Model()) for _ in range(3)]
    for model in models[1:]:
        rebuild_reducer(model)
    last_of_each = (nullcontext(), nullcontext(), without_reducer(models[2]))  # DDP averages with the last micro-batch
    for model, last in zip(models, last_of_each, strict=True):
        for batch in batches[:-1]:
            with model.no_sync():
                model(batch).square().sum().backward()
        with last:
            model(batches[-1]).square().sum().backward()
    average_gradients(models[2])
    gradients = [[one.grad for one in model.parameters() if one.requires_grad] for model in models]
    assert len(gradients[0]) == 4
    for expected, *found in zip(*gradients, strict=True):
        for one in found:
            torch.testing.assert_close(one, expected)
    models[2].module.is_left_out = True
    models[2].zero_grad()
    with without_reducer(models[2]):
        models[2](batches[0]).sum().backward()
    with pytest.raises(RuntimeError, match=r"^single\.weight got no gradient: .*strategy=ddp"):
        average_gradients(models[2])


def agreeing(rank, folder):
    from cctrain.engines.automodel_graphed import _Engine

    recipe = SimpleNamespace(
        dist_env=SimpleNamespace(world_size=2),
        _get_dp_group=lambda **_: None,
        _get_dp_group_size=lambda **_: 2,
        _get_cp_group_size=lambda: 1,
        _get_tp_rank=lambda: 0,
    )
    with one_of_two(rank, folder):
        engine = _Engine(recipe)
        assert engine.agree(bytes(range(64)))
        assert not engine.agree(bytes([*range(63), rank]))
        assert not engine.agree(bytes([255 * rank] * 64))
        assert engine.agree(bytes([255] * 64))


def test_gradients_are_those_of_ddp_and_a_missing_one_is_named(tmp_path):
    spawn(replicas, args=(tmp_path,), nprocs=2)


def test_a_reducer_that_begins_anew_leaves_no_node_of_before(tmp_path):
    """Nodes keep the stream on which they were made."""
    spawn(beginning_anew, args=(tmp_path,), nprocs=2)


def test_ranks_agree_only_if_all_have_the_same_in_mind(tmp_path):
    spawn(agreeing, args=(tmp_path,), nprocs=2)


def test_a_model_alone_is_left_as_it_is():
    model = Model()
    assert unwrapped(model) is model
    rebuild_reducer(model)
    with without_reducer(model):
        model(torch.ones(1, 4)).sum().backward()
    before = model.single.weight.grad.clone()
    average_gradients(model)
    assert torch.equal(model.single.weight.grad, before)
