"""What step=graphed puts around AutoModel's recipes, with AutoModel's own functions and a recipe of one layer."""

import math
from types import SimpleNamespace

import pytest
import torch
from regression import FakeRecorder, NoMarks
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import AriaConfig, DbrxConfig, Qwen3OmniMoeConfig

from cctrain.engines import automodel_graphed, automodel_unwaiting
from cctrain.engines.automodel_graphed import GraphedTraining
from cctrain.engines.observer import LossNotFiniteError
from cctrain.metrics import IGNORED_LABEL
from cctrain.steps.capture import NotCapturableError
from cctrain.steps.readback import MOST_AHEAD


class Signals:
    """AutoModel's handler, of one rank."""

    _signal_received = False

    def signals_received(self):
        return [self._signal_received]


class Recipe:
    """As much of a recipe as a graphed step takes; `extra` replaces attributes."""

    pp_enabled = False
    dataloader = device_mesh = None
    lr_scheduler = ()

    def __init__(self, **extra):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 8)
        self.model_parts = [model]
        self.optimizer = [torch.optim.AdamW(model.parameters(), lr=0.01)]
        self.dist_env = SimpleNamespace(world_size=1)
        self.checkpointer = SimpleNamespace(maybe_wait_for_staging=lambda: None)
        self.step_scheduler = SimpleNamespace(
            step=0, epoch=0, grad_acc_steps=1, is_last_step=False, sig_handler=Signals()
        )
        self.losses = {}
        self.observer = SimpleNamespace(timer=NoMarks(), loss_known=self.losses.__setitem__)
        self.cfg = {}
        vars(self).update(extra)

    def _get_dp_group(self, include_cp=False):
        return None

    num_with_other_samples, num_of_a_sample = 1, 1

    def _get_dp_group_size(self, include_cp=False):
        return self.num_with_other_samples * (self.num_of_a_sample if include_cp else 1)

    def _get_cp_group_size(self):
        return 1

    def _get_tp_rank(self):
        return 0

    def _forward_backward_step(self, index, batch, *, loss_buffer, num_label_tokens, num_batches):
        logits = self.model_parts[0](batch["x"]).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, batch["labels"].flatten(), reduction="sum") / num_label_tokens
        loss.backward()
        loss_buffer.append(loss.detach())


@pytest.fixture
def training():
    """Make the graphed training of a recipe, begun; all are closed in the end."""
    made = []

    def make(recipe, *, recorder=None, is_compiled=False, may_fall_back=True):
        made.append(GraphedTraining(recipe, recorder=recorder, is_compiled=is_compiled, may_fall_back=may_fall_back))
        made[-1].begin()
        return made[-1]

    yield make
    for one in made:
        one.close()


def train(training, recipe, *, ignored=False):
    """One step, as AutoModel's loop goes on after it. Returns the sample."""
    step = recipe.step_scheduler.step
    draw = torch.Generator().manual_seed(step)
    batch = {"x": torch.randn(2, 3, 4, generator=draw), "labels": torch.randint(8, (2, 3), generator=draw)}
    if ignored:
        batch["labels"].fill_(IGNORED_LABEL)
    return training.run([batch], 1.0)


def as_of_two_ranks(training):
    """A recipe and its training, which believes in another rank as far as stops are concerned."""
    recipe = Recipe()
    graphed = training(recipe)
    recipe.dist_env.world_size = 2
    return recipe, graphed, recipe.step_scheduler


class TestStopping:
    def test_one_rank_alone_stops_with_the_step_in_which_it_is_asked(self, training):
        recipe = Recipe()
        graphed, scheduler = training(recipe), recipe.step_scheduler
        train(graphed, recipe)
        assert not any(scheduler.sig_handler.signals_received())
        scheduler.sig_handler._signal_received = True
        assert any(scheduler.sig_handler.signals_received())

    def test_ranks_stop_when_all_of_them_must_have_heard_the_wish(self, training):
        recipe, graphed, scheduler = as_of_two_ranks(training)
        stops = {}
        for step in range(1, 20):
            if step == 3:
                scheduler.sig_handler._signal_received = True
            train(graphed, recipe)
            graphed.drain()  # a rank that heard of it as early as can be
            stops[step] = any(scheduler.sig_handler.signals_received())
            scheduler.step += 1
        assert next(step for step, is_over in stops.items() if is_over) == 3 + MOST_AHEAD

    def test_before_an_epoch_the_answer_is_that_after_the_step(self, training):
        """AutoModel asks again then, with its count one higher: one rank may know more than another by now."""
        recipe, graphed, scheduler = as_of_two_ranks(training)
        scheduler.sig_handler._signal_received = True
        for _ in range(MOST_AHEAD):  # asked in step 1: over after the next one
            train(graphed, recipe)
            scheduler.step += 1
        graphed.drain()
        assert not any(scheduler.sig_handler.signals_received())

    def test_after_falling_back_the_signal_is_automodels_again(self, training):
        recipe = Recipe()
        of_this_rank = recipe.step_scheduler.sig_handler
        graphed = training(recipe)
        assert recipe.step_scheduler.sig_handler is not of_this_rank
        graphed._fall_back(NotCapturableError("a later shape"))
        assert recipe.step_scheduler.sig_handler is of_this_rank
        assert graphed.facts() == {"kind": "stock", "why": "step=auto: a later shape", "few_collectives": False}


def test_a_loss_that_is_no_number_ends_training_within_ten_steps(training):
    recipe = Recipe()
    graphed, steps = training(recipe), []

    def train_on():
        for step in range(1, 50):
            if step == 5:
                recipe.model_parts[0].weight.data.fill_(float("nan"))
            steps.append(step)
            train(graphed, recipe)
            recipe.step_scheduler.step += 1

    with pytest.raises(LossNotFiniteError, match=r"the loss of step 5 is nan; is train\.optimizer\.lr too high"):
        train_on()
    assert 5 <= steps[-1] <= 5 + MOST_AHEAD < 5 + 10
    assert math.isfinite(recipe.losses[4])
    assert math.isnan(recipe.losses[5])


def test_a_step_without_a_label_token_learns_nothing_as_automodels_own(training):
    recipe = Recipe()
    graphed = training(recipe)
    sample = train(graphed, recipe, ignored=True)
    graphed.drain()
    (logged,) = graphed.loggable(sample)
    assert logged.metrics | {"loss": 0.0, "grad_norm": 0.0, "num_label_tokens": 0} == logged.metrics


class OfText(Recipe):
    """Its data are of two lengths."""

    def __init__(self):
        super().__init__()
        data = [{"input_ids": [0] * length} for length in (32, 64)]
        self.dataloader = SimpleNamespace(dataset=data, batch_size=2, collate_fn=None)
        model = torch.nn.Sequential(torch.nn.Embedding(8, 4), self.model_parts[0])
        self.model_parts, self.optimizer = [model], [torch.optim.AdamW(model.parameters(), lr=0.01)]

    def _forward_backward_step(self, index, batch, **options):
        return super()._forward_backward_step(index, batch | {"x": batch["input_ids"]}, **options)


def test_labels_that_the_loss_ignores_are_not_counted_and_neither_is_padding_at_the_end(training):
    recipe = Recipe(loss_fn=SimpleNamespace(ignore_index=5))
    graphed = training(recipe)
    labels = torch.tensor([[IGNORED_LABEL, 5, 1, 2, IGNORED_LABEL], [3, 5, 5, IGNORED_LABEL, IGNORED_LABEL]])
    sample = graphed.run([{"x": torch.randn(2, 5, 4), "labels": labels}], 1.0)
    graphed.drain()
    assert sample.metrics["num_tokens_per_step"] == 7
    (logged,) = graphed.loggable(sample)
    assert logged.metrics["num_label_tokens"] == 3


def test_a_length_beyond_the_largest_bucket_is_trained_on_as_it_is(training):
    recipe, plain = OfText(), OfText()
    graphed = training(recipe, recorder=FakeRecorder(recipe.model_parts[0]))
    expected = []
    for length in (20, 60, 96, 96, 50, 64):
        ids = torch.randint(8, (2, length), generator=torch.Generator().manual_seed(length))
        batch = {"input_ids": ids, "labels": ids.roll(-1, 1)}
        graphed.run(graphed.prepared([batch]), 1.0)
        recipe.step_scheduler.step += 1
        losses = []
        plain._forward_backward_step(0, batch, loss_buffer=losses, num_label_tokens=2 * length, num_batches=1)
        torch.nn.utils.clip_grad_norm_(plain.model_parts[0].parameters(), 1.0)
        plain.optimizer[0].step()
        plain.optimizer[0].zero_grad()
        expected.append(losses[0].item())
    graphed.drain()
    assert list(recipe.losses.values()) == pytest.approx(expected, rel=1e-5)
    facts = graphed.facts()
    assert facts["lengths"] == [32, 64]
    assert (facts["eager_micro_batches"], facts["replayed_micro_batches"]) == (3, 3)  # 32, 64 and 96 once each


class TestLogging:
    def test_each_sample_is_logged_once_in_order_and_with_its_own_loss(self, training):
        recipe, logged = Recipe(), []
        graphed = training(recipe)
        for _ in range(30):
            logged += graphed.loggable(train(graphed, recipe))
            recipe.step_scheduler.step += 1
        graphed.drain()
        logged += graphed.known()
        assert [sample.step for sample in logged] == list(range(30))
        assert [sample.metrics["loss"] for sample in logged] == [recipe.losses[step] for step in range(1, 31)]
        assert len(set(recipe.losses.values())) == 30
        assert {sample.metrics["num_label_tokens"] for sample in logged} == {6}

    def test_after_falling_back_earlier_samples_come_first_and_none_is_lost(self, training):
        recipe = Recipe()
        graphed = training(recipe)
        first = train(graphed, recipe)
        graphed._unlogged.append(first)  # its loss was not known yet
        graphed.drain()
        recipe.step_scheduler.step += 1
        graphed._fall_back(NotCapturableError("a later shape"))
        stock = SimpleNamespace(step=1, metrics={"loss": 1.5})
        assert graphed.loggable(stock) == [first, stock]
        assert graphed.loggable(stock) == [stock]


def model_with(config):
    model = torch.nn.Module()
    model.config = config
    return model


RECOMPUTED_WITH_DROPOUT = checkpoint_wrapper(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.1)))
RECOMPUTED_BY_TRANSFORMERS = torch.nn.Dropout(0.1)
RECOMPUTED_BY_TRANSFORMERS.gradient_checkpointing = True
REFUSALS = [
    ({"te_fp8": object()}, "Transformer Engine's FP8"),
    ({"partial_cuda_graph_manager": object()}, "a model with graphs of its own (train.model.backend)"),
    *(
        ({"model_parts": [model_with(SimpleNamespace(**{name: 8}))]}, "a model with 8 experts")
        for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    ),
    *(
        ({"model_parts": [model_with(config)]}, f"a model with {num_experts} experts")
        for config, num_experts in (
            (SimpleNamespace(text_config=SimpleNamespace(num_experts=8)), 8),
            (DbrxConfig(), 4),  # its feed-forward layers'
            (AriaConfig(), 8),  # its text's
            (Qwen3OmniMoeConfig(), 128),  # the text's of one of its models
        )
    ),
    *(
        ({"model_parts": [model]}, "activation checkpointing draws dropout's numbers again")
        for model in (RECOMPUTED_WITH_DROPOUT, RECOMPUTED_BY_TRANSFORMERS)
    ),
]


class TestRefusing:
    @pytest.mark.parametrize(("extra", "why"), REFUSALS)
    def test_auto_goes_on_with_the_stock_step_and_says_why(self, training, extra, why):
        graphed = training(Recipe(**extra))
        assert not graphed.is_active
        assert graphed.facts()["kind"] == "stock"
        assert graphed.facts()["why"].startswith(f"step=auto: {why}")

    @pytest.mark.parametrize(("extra", "why"), REFUSALS)
    def test_graphed_is_an_error_that_names_the_way_out(self, training, extra, why):
        with pytest.raises(NotCapturableError) as refused:
            training(Recipe(**extra), may_fall_back=False)
        assert str(refused.value).startswith(f"step=graphed: {why}")
        assert "use step=stock, or step=auto" in str(refused.value)

    def test_a_dense_model_whose_configuration_could_have_experts_is_not_refused(self, training):
        recipe = Recipe()
        recipe.model_parts[0].config = SimpleNamespace(num_experts=None, text_config=SimpleNamespace(num_experts=0))
        assert training(recipe).is_active


class OneLayer(torch.nn.Sequential):
    _no_split_modules = ("Linear",)


RANKS = {
    "one": (1, {}),
    "in parts": (2, {}),
    "a sample each": (2, {"num_with_other_samples": 2}),
    "a sample in parts": (2, {"num_of_a_sample": 2}),
}


class TestCompiling:
    LAYERS = (torch.nn.Linear(4, 8), checkpoint_wrapper(torch.nn.Linear(4, 8)))

    @pytest.mark.parametrize("ranks", RANKS)
    @pytest.mark.parametrize("layer", LAYERS, ids=["kept", "recomputed"])
    def test_layers_are_compiled_unless_they_are_recomputed_and_in_parts_at_once(self, training, layer, ranks):
        model = OneLayer(layer)
        num_ranks, sizes = RANKS[ranks]
        recipe = Recipe(model_parts=[model], loss_fn=None, dist_env=SimpleNamespace(world_size=num_ranks), **sizes)
        facts = training(recipe, recorder=FakeRecorder(model), is_compiled=True).facts()
        assert facts["compiled"] == (type(layer) is torch.nn.Linear or ranks != "in parts")
        assert ("layers stay uncompiled" in facts["why"]) == (not facts["compiled"])


@pytest.mark.parametrize(("tp_rank", "cp_rank", "counts"), [(0, 0, True), (1, 0, False), (0, 1, False), (1, 1, False)])
def test_of_the_ranks_with_the_same_samples_one_counts_their_tokens(tp_rank, cp_rank, counts):
    recipe = Recipe(device_mesh=SimpleNamespace(get_local_rank={"cp": cp_rank}.__getitem__))
    recipe._get_tp_rank, recipe._get_cp_group_size = lambda: tp_rank, lambda: 2
    assert automodel_graphed._Engine(recipe).counts_tokens is counts


class TestClippingByTheOptimizer:
    def steps(self, *, by_optimizer):
        """Three steps, the last one without clipping; gradients under the norm, then far over it."""
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(5))
        optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
        for size, max_norm in ((0.01, 1.0), (100.0, 1.0), (3.0, None)):
            weight.grad = size * torch.randn(5)
            if max_norm is None:
                optimizer.step()
            elif by_optimizer:
                with automodel_unwaiting.clipping_by([optimizer]):
                    norm = torch.linalg.vector_norm(weight.grad.double())
                    torch.nn.utils.clip_grads_with_norm_([weight], max_norm, norm)
                    optimizer.step()
            else:
                torch.nn.utils.clip_grad_norm_([weight], max_norm)
                optimizer.step()
        return weight.detach()

    def test_weights_are_those_of_clipped_gradients_also_in_a_step_after_it(self):
        torch.testing.assert_close(self.steps(by_optimizer=True), self.steps(by_optimizer=False))

    def test_torchs_own_clipping_is_back_after_it(self):
        before = torch.nn.utils.clip_grads_with_norm_
        self.steps(by_optimizer=True)
        assert torch.nn.utils.clip_grads_with_norm_ is before


def test_the_squares_of_a_ranks_gradients_are_summed_also_where_it_has_none():
    from nemo_automodel.components.training import utils

    with automodel_unwaiting.sum_squares_on_the_device():
        assert float(utils.multi_tensor_sumsq([torch.ones(3), 2 * torch.ones(2)])) == pytest.approx(11)
        nothing = utils.multi_tensor_sumsq([])
    assert (float(nothing), nothing.dtype) == (0.0, torch.float64)


def rotating(**changes):
    """Of a model no more than what rotates its tiny Llama's positions."""
    from nemo_automodel.components.models.llama.rope_utils import LlamaRotaryEmbedding
    from transformers import LlamaConfig

    from cctrain.packaged import RECIPES

    config = LlamaConfig.from_pretrained(RECIPES / "models" / "tiny-llama", **changes)
    return torch.nn.ModuleDict({"rotary": LlamaRotaryEmbedding(config), "layer": torch.nn.Linear(1, 1)})


def test_the_rotary_table_gives_what_automodels_own_does():
    model = rotating()
    rotary, x = model["rotary"], torch.zeros(2, 6, 128)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5], [7, 8, 0, 1, 9000, 2]])
    expected = rotary(x, positions)
    automodel_unwaiting.free_rotary_of_waits(model)
    for found, own in zip(rotary(x, positions), expected, strict=True):
        torch.testing.assert_close(found, own, rtol=0, atol=0)


def test_the_rotary_table_takes_rows_longer_than_the_model_says_and_names_those_that_it_does_not(monkeypatch):
    monkeypatch.setattr(automodel_unwaiting, "_FEWEST_POSITIONS", 128)
    model = rotating(max_position_embeddings=64)
    automodel_unwaiting.free_rotary_of_waits(model)
    rotary, x = model["rotary"], torch.zeros(1, 128, 128)
    assert rotary(x, torch.arange(128)[None])[0].shape[1] == 128
    with pytest.raises(ValueError, match="rows of 129 tokens: step=graphed takes up to 128"):
        rotary(x, torch.arange(129)[None])
