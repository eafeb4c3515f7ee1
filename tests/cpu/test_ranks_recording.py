"""Two gloo ranks, of which one cannot record its step: whether both go on, how, and to the weights of a plain loop.

The recorder is a fake, but for what breaks off: that pass runs, without its collectives, as far as it comes, on layers
sharded by FSDP2 or replicated by DDP, which remember what of it is left.
"""

import contextlib
import copy
import json
from unittest import mock

import pytest
import torch
from regression import FakeRecorder, NoMarks
from test_graphed_engine import Recipe
from test_replicas import one_of_two
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from cctrain.engines.automodel import GraphedRecipe
from cctrain.engines.automodel_graphed import GraphedTraining, _Engine
from cctrain.steps.capture import NotCapturableError

# Those of the libraries, when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

STEPS = 5
LAYOUTS = ("sharded", "replicated")
CASES = {
    f"{layout}, {num_batches} micro-batches, {broken}": (layout, num_batches, broken)
    for layout in LAYOUTS
    for num_batches in (1, 2)
    for broken in ("nothing", "forward", "backward", "memory")
}
COLLECTIVES = ("all_reduce", "all_gather_single", "reduce_scatter_single")


class Layer(torch.nn.Linear):
    """Its `broken` pass, forward or backward, cannot be recorded."""

    broken = "nothing"

    def forward(self, x):
        if self.broken == "forward":
            raise RuntimeError("operation not permitted when stream is capturing")
        y = super().forward(x)
        if self.broken == "backward":
            y.register_hook(self._break)
        return y

    def _break(self, gradient):
        raise RuntimeError("operation not permitted when stream is capturing")


class BreakingRecorder(FakeRecorder):
    """`broken` breaks off the last of a step's `num_recordings`; those before run, as they do in a capture."""

    def __init__(self, layer, broken, num_recordings):
        self.layer, self.broken, self.left = layer, broken, num_recordings
        super().__init__(layer)

    def prepare(self, optimizer):
        return False  # updates are not recorded

    def record(self, work):
        self.left -= 1
        if self.broken == "memory" and not self.left:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.layer.broken = "nothing" if self.left else self.broken
        try:
            with contextlib.ExitStack() as stack:
                for name in COLLECTIVES:
                    stack.enter_context(mock.patch.object(torch.distributed, name))
                work()
        finally:
            self.layer.broken = "nothing"
        return super().record(work)


class OfTwoRanks(Recipe):
    """Gradients are reduced with the last micro-batch of a step, as AutoModel has it."""

    def _forward_backward_step(self, index, batch, *, num_batches, **options):
        model = self.model_parts[0]
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(index == num_batches - 1)
        super()._forward_backward_step(index, batch, num_batches=num_batches, **options)


def make_recipe(layout, num_batches):
    recipe = OfTwoRanks(dist_env=mock.Mock(world_size=2))
    recipe._get_dp_group_size = lambda include_cp=False: 2
    recipe.step_scheduler.grad_acc_steps = num_batches
    recipe.observer.timer = NoMarks()
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Linear(4, 8), Layer(8, 8), torch.nn.Linear(8, 8))
    model = torch.nn.Sequential(block, torch.nn.Linear(8, 8))
    if layout == "sharded":
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float64)  # accumulated apart from the gradients
        fully_shard(block, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
    else:
        model = DistributedDataParallel(model)
    recipe.model_parts, recipe.optimizer = [model], [torch.optim.AdamW(model.parameters(), lr=0.01)]
    return recipe


def batches_of(step, num_batches, rank):
    draw = torch.Generator().manual_seed(100 * step + rank)
    return [
        {"x": torch.randn(2, 3, 4, generator=draw), "labels": torch.randint(8, (2, 3), generator=draw)}
        for _ in range(num_batches)
    ]


def plain_step(recipe, batches):
    engine = _Engine(recipe)
    engine.max_grad_norm = 1.0
    for index, batch in enumerate(batches):
        engine.forward_backward(batch, index, len(batches), 2 * 6 * len(batches))
    engine.update()
    recipe.optimizer[0].zero_grad()


def weights(recipe):
    whole = [
        getattr(parameter, "full_tensor", lambda own=parameter: own)()
        for parameter in recipe.model_parts[0].parameters()
    ]
    return torch.cat([one.detach().flatten() for one in whole])


def train(rank, layout, num_batches, broken, *, may_fall_back):
    """What one rank of a training comes to; the second one's recorder breaks."""
    recipe, plain = (make_recipe(layout, num_batches) for _ in range(2))
    layer = next(module for module in recipe.model_parts[0].modules() if isinstance(module, Layer))
    is_broken = rank == 1 and broken != "nothing"
    recorder = FakeRecorder(recipe.model_parts[0])
    if is_broken:  # replicas' micro-batches are alike, those of shards are the first or the last
        recorder = BreakingRecorder(layer, broken, num_batches if layout == "sharded" else 1)
    graphed = GraphedTraining(recipe, recorder=recorder, is_compiled=False, may_fall_back=may_fall_back)
    graphed.begin()
    was_active = []
    try:
        for step in range(STEPS):
            batches = batches_of(step, num_batches, rank)
            was_active.append(graphed.is_active)
            if graphed.is_active:
                graphed.run(batches, 1.0)
            else:
                plain_step(recipe, batches)
            plain_step(plain, batches)
            recipe.step_scheduler.step += 1
        graphed.drain()
    except NotCapturableError as error:
        return {"error": str(error)}
    finally:
        graphed.close()
    apart = (weights(recipe) - weights(plain)).abs().max().item()
    return {"facts": graphed.facts(), "was_active": was_active, "apart": apart, "losses": recipe.losses}


class Validating:
    """Of AutoModel's recipe, what looks at a model without training it."""

    def _run_validation_epoch(self):
        with torch.no_grad():
            return self.model_parts[0](torch.ones(2, 4))


class GraphedValidating(GraphedRecipe, Validating):
    pass


def validate_twice(recipe_type):
    """How far the second validation is from one of a model with the weights of then; in between the weights change as
    replayed graphs change them, of whom no hook hears."""
    torch.manual_seed(0)
    whole = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    model = copy.deepcopy(whole)
    fully_shard(model[0])
    fully_shard(model[1], reshard_after_forward=False)  # as AutoModel's last layer; so has the root the rest
    fully_shard(model)
    shards = list(model.parameters())
    recipe = recipe_type()
    recipe.model_parts, recipe.observer = [model], mock.Mock()
    recipe._run_validation_epoch()
    with torch.no_grad():
        for shard in shards:
            shard._local_tensor.mul_(2)
        for parameter in whole.parameters():
            parameter.mul_(2)
        return (recipe._run_validation_epoch() - whole(torch.ones(2, 4))).abs().max().item()


@contextlib.contextmanager
def without(owner, name):
    kept = getattr(owner, name)
    delattr(owner, name)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def one_rank(rank, folder):
    with one_of_two(rank, folder):
        found = {name: train(rank, *case, may_fall_back=True) for name, case in CASES.items()}
        found["step=graphed"] = train(rank, "sharded", 1, "forward", may_fall_back=False)
        found["validated"] = [validate_twice(kind) for kind in (Validating, GraphedValidating)]
        with without(FSDPModule, "reset_iter_state"):
            for kind in ("auto", "graphed"):
                found[f"old torch, {kind}"] = train(rank, "sharded", 1, "forward", may_fall_back=kind == "auto")
        (folder / f"rank{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank found, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(one_rank, args=(folder,), nprocs=2)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_a_plain_loop_whatever_breaks(ranks, name):
    for rank in ranks:
        assert rank[name]["apart"] < 1e-6


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[-1] != "nothing"])
def test_after_the_step_that_one_could_not_record_both_go_on_with_the_stock_step_and_say_why(ranks, name):
    why = "out of GPU memory while" if CASES[name][-1] == "memory" else "raise RuntimeError("
    for rank in ranks:
        assert rank[name]["was_active"] == [True, False, False, False, False]
        assert list(rank[name]["losses"]) == ["1"]  # its step was done
        assert rank[name]["facts"]["kind"] == "stock"
        assert rank[name]["facts"]["why"].startswith(f"step=auto: rank 1: {why}")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[-1] == "nothing"])
def test_where_both_can_record_both_replay(ranks, name):
    num_batches = CASES[name][1]
    for rank in ranks:
        assert all(rank[name]["was_active"])
        assert rank[name]["facts"]["replayed_micro_batches"] == (STEPS - 1) * num_batches


def test_with_step_graphed_both_end_with_the_reason(ranks):
    for rank in ranks:
        error = rank["step=graphed"]["error"]
        assert error.startswith("step=graphed: rank 1: raise RuntimeError(")
        assert "use step=stock, or step=auto" in error


def test_validation_between_graphed_steps_sees_the_weights_of_its_own_step(ranks):
    for rank in ranks:
        stale, apart = rank["validated"]
        assert apart < 1e-6 < stale


@pytest.mark.parametrize("kind", ["auto", "graphed"])
def test_a_torch_that_cannot_go_on_after_a_broken_pass_does_not_hide_the_reason(ranks, kind):
    for rank in ranks:
        error = rank[f"old torch, {kind}"]["error"]
        assert "rank 1: raise RuntimeError(" in error
        assert ("cannot go on after a pass of FSDP2's that broke off" in error) == (kind == "auto")
