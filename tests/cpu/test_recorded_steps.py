"""GraphedStep with a recorder: what is replayed, and what bad input comes to, held against a plain loop."""

from types import SimpleNamespace

import pytest
import torch
from regression import (
    FAILURES,
    Regression,
    learning_rate,
    make_model,
    num_rows,
    plain_loop,
    plain_step,
    steps_of,
)

from cctrain.steps.capture import NotCapturableError, draws_random_numbers


@pytest.mark.parametrize("num_batches", [1, 4])
class TestReplaying:
    def test_replayed_steps_train_as_a_plain_loop_does(self, training, num_batches):
        steps = steps_of(*20 * [num_batches * [2]])
        graphed = training(accumulates=num_batches > 1)
        graphed.run(steps)
        graphed.assert_as_a_plain_loop(steps)
        assert graphed.counts == (num_batches, 19 * num_batches)
        assert graphed.step.facts["eager_updates"] == 1

    def test_a_parameter_that_was_moved_is_noticed_and_what_read_it_is_recorded_anew(self, training, num_batches):
        steps = steps_of(*20 * [num_batches * [2]])
        graphed = training(accumulates=num_batches > 1)
        graphed.run(steps[:10])
        weight = graphed.model.weight
        weight.data, old = weight.data.clone(), weight.data
        old.fill_(float("nan"))
        graphed.run(steps, first=10)
        graphed.assert_as_a_plain_loop(steps)
        assert graphed.step.facts["recaptures"] == 1
        assert graphed.counts == (2 * num_batches, 18 * num_batches)


class NamedMarks:
    """A timer's marks in their order."""

    def __init__(self):
        self.names, self._recorded = [], None

    def phase_end(self, name):
        (self.names if self._recorded is None else self._recorded).append(name)

    def record_marks(self):
        self._recorded = []
        return self._recorded

    def end_record(self):
        self._recorded = None

    def replayed(self, names):
        self.names += names


@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize("num_batches", [1, 4])
def test_each_step_has_the_same_phases_replayed_or_not(training, num_batches, is_sharded):
    marks = NamedMarks()

    class Marking(Regression):
        def forward_backward(self, *args):
            loss = super().forward_backward(*args)
            marks.phase_end("backward")
            return loss

    graphed = training(accumulates=num_batches > 1, is_sharded=is_sharded, engine=Marking, marks=marks)
    graphed.run(steps_of(*5 * [num_batches * [2]]))
    assert graphed.counts[1] == 4 * num_batches
    assert marks.names == 5 * ["other", *num_batches * ["backward"]]


def test_another_tensor_in_the_place_of_one_that_is_not_trained_is_noticed(training):
    steps = steps_of(*20 * [[2]])
    graphed = training()
    graphed.model.bias.requires_grad_(False)
    graphed.run(steps[:10])
    old = graphed.model.bias
    graphed.model.bias = torch.nn.Parameter(old.detach() + 1, requires_grad=False)
    old.data.fill_(float("nan"))
    graphed.run(steps, first=10)
    assert graphed.step.facts["recaptures"] == 1
    assert graphed.model.weight.isfinite().all()


def test_in_the_name_of_a_sharded_parameter_the_whole_one_may_stand_at_times(training):
    """As FSDP2 has it after a forward pass without a backward one."""
    graphed = training(is_sharded=True)
    steps = steps_of(*6 * [[2]])
    graphed.run(steps[:5])
    graphed.model.weight = torch.nn.Parameter(graphed.model.weight.detach().clone())
    graphed.run(steps, first=5)
    assert graphed.step.facts["recaptures"] == 0


def test_what_a_rank_holds_of_a_sharded_parameter_may_move_as_well(training):
    graphed = training()
    weight = graphed.model.weight
    weight._local_tensor = weight.detach().clone()  # as a DTensor has it
    graphed.run(steps_of(*5 * [[2]]))
    weight._local_tensor = weight._local_tensor.clone()
    graphed.run(steps_of(*10 * [[2]]), first=5)
    assert graphed.step.facts["recaptures"] == 1


@pytest.mark.parametrize("num_batches", [1, 4])
def test_a_schedule_of_more_than_the_learning_rate_has_all_recorded_once_more_but_the_update(training, num_batches):
    steps = steps_of(*20 * [num_batches * [2]])
    graphed = training(accumulates=num_batches > 1)
    for number in range(20):
        graphed.optimizer.param_groups[0]["momentum"] = 0.01 * number
        graphed.run(steps[: number + 1], first=number)
    facts = graphed.step.facts
    assert (facts["recaptures"], facts["eager_updates"]) == (1, 20)
    assert graphed.counts == (2 * num_batches, 18 * num_batches)


def test_of_sharded_steps_that_have_the_updates_graph_alone_it_is_dropped_too(training):
    steps = steps_of(*6 * [[2, 3]])
    graphed = training(accumulates=True, is_sharded=True)
    for number in range(6):
        graphed.optimizer.param_groups[0]["momentum"] = 0.01 * number
        graphed.run(steps[: number + 1], first=number)
    facts = graphed.step.facts
    assert (facts["num_graphs"], facts["recaptures"], facts["eager_updates"]) == (1, 1, 6)


def test_the_last_batch_of_an_epoch_may_have_fewer_samples(training):
    """Ten, in batches of four."""
    steps = steps_of(*3 * [[4], [4], [2]])
    graphed = training()
    graphed.run(steps)
    graphed.assert_as_a_plain_loop(steps)
    assert graphed.counts == (2, 7)  # each size once as the engine runs it


def test_the_last_step_of_an_epoch_may_have_fewer_micro_batches(training):
    """Ten samples, in two micro-batches of four a step."""
    steps = steps_of(*3 * [[4, 4], [2]])
    graphed = training(accumulates=True)
    graphed.run(steps)
    graphed.assert_as_a_plain_loop(steps)
    assert graphed.counts == (3, 6)


def test_shapes_beyond_the_limit_run_as_the_engine_would_and_are_counted(training):
    steps = steps_of(*3 * [[rows] for rows in range(1, 11)])
    graphed = training()
    graphed.run(steps)
    graphed.assert_as_a_plain_loop(steps)
    assert graphed.counts == (10 + 2 * 2, 2 * 8)
    assert graphed.recorder.num_recorded == 8 * 2  # with an update each


def test_a_step_is_new_where_any_of_its_micro_batches_is(training):
    graphed = training(accumulates=True)
    graphed.run(steps_of(*[[rows, rows] for rows in range(1, 9)]))  # as many shapes as are recorded
    graphed.run(steps_of([1, 2]))
    assert not graphed.step.is_new
    graphed.run(steps_of([9, 1]))
    assert graphed.step.is_new


class SometimesBiased(Regression):
    """Not every micro-batch has a use for the bias."""

    def forward_backward(self, batch, index, num_batches, label_tokens):
        y = torch.nn.functional.linear(batch["x"], self.model.weight, self.model.bias if batch["is_biased"] else None)
        loss = (y - batch["y"]).square().sum() / label_tokens
        loss.backward()
        return loss.detach()


@pytest.mark.parametrize("num_batches", [1, 2])
def test_a_step_without_a_use_for_a_parameter_leaves_it_as_it_is(training, num_batches):
    """Momentum and weight decay would move it, had it a gradient of zeros."""
    uses = [[True, True], [False, False], [True, False], [False, False], [False, True], [True, True], [False, False]]
    steps = steps_of(*2 * len(uses) * [num_batches * [2]])
    for batches, used in zip(steps, 2 * uses, strict=True):
        for batch, is_biased in zip(batches, used, strict=False):
            batch["is_biased"] = is_biased
    graphed = training(accumulates=num_batches > 1, engine=SometimesBiased)
    graphed.run(steps)
    model, optimizer = make_model()
    plain = SometimesBiased(model, optimizer)
    for number, batches in enumerate(steps):
        optimizer.param_groups[0]["lr"] = learning_rate(number)
        for index, batch in enumerate(batches):
            plain.forward_backward(batch, index, num_batches, num_rows(batches))
        plain.update()
        optimizer.zero_grad()
    graphed.assert_weights_of(model)
    assert graphed.counts[1] > graphed.counts[0]


class Strides(Regression):
    """Knows how its micro-batches lay in memory."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seen = []

    def forward_backward(self, batch, *arguments):
        self.seen.append(batch["x"].stride())
        return super().forward_backward(batch, *arguments)


def test_a_micro_batch_has_no_gaps_before_it_is_recorded_either(training):
    """AutoModel's labels are a slice of longer rows, and what is compiled knows strides."""
    steps = [[{"x": torch.randn(1, 5)[:, 1:], "y": torch.randn(1, 1)}] for _ in range(3)]
    graphed = training(engine=Strides)
    graphed.run(steps)
    assert graphed.counts == (1, 2)
    assert graphed.engine.seen == [(4, 1)] * 3


class OneOfTwo(Regression):
    """Of two ranks that disagree in the steps `apart`, from 1; `other` is what keeps the other one from recording."""

    apart = ()
    other = ""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.num_asked = 0
        self.told = []

    def agree(self, digest):
        self.num_asked += 1
        return self.num_asked not in self.apart

    def first_failure(self, own):
        self.told.append(own)
        return own or self.other


class Apart(OneOfTwo):
    apart = (1, 2, 6)


class OtherFails(OneOfTwo):
    other = "rank 1: out of GPU memory"


class TestTwoRanks:
    def test_they_record_and_replay_only_where_they_agree(self, training):
        steps = steps_of(*10 * [[2]])
        graphed = training(num_ranks=2, engine=Apart)
        graphed.run(steps)
        graphed.assert_as_a_plain_loop(steps)
        assert graphed.counts == (4, 6)
        assert graphed.engine.told == [""]  # asked after the one step in which both recorded

    def test_what_the_other_cannot_record_this_one_does_not_replay(self, training):
        steps = steps_of(*5 * [[2]])
        graphed = training(num_ranks=2, engine=OtherFails)
        with pytest.raises(NotCapturableError, match=r"^rank 1: out of GPU memory$"):
            graphed.run(steps)
        assert graphed.engine.told == [""]
        graphed.step.drain()
        assert list(graphed.delivered) == [1]
        for number, batches in list(enumerate(steps))[1:]:
            plain_step(graphed.model, graphed.optimizer, batches, number)
        graphed.assert_weights_of(plain_loop(steps)[1])

    @pytest.mark.parametrize("failures", FAILURES.values(), ids=FAILURES)
    def test_one_that_cannot_record_tells_the_other_when_its_step_is_done(self, training, failures):
        graphed = training(num_ranks=2, engine=OneOfTwo, **failures)
        with pytest.raises(NotCapturableError, match="out of GPU memory"):
            graphed.run(steps_of([2]))
        (told,) = graphed.engine.told
        assert told.startswith("out of GPU memory while the step was recorded")
        graphed.step.drain()
        assert list(graphed.delivered) == [1]

    def test_the_other_is_not_waited_for_to_find_the_lines(self, training):
        graphed = training(num_ranks=2, engine=OneOfTwo, record=[RuntimeError("not permitted")])
        with pytest.raises(NotCapturableError) as refused:
            graphed.run(steps_of([2]))
        assert "model.py:7" not in str(refused.value)
        assert len(graphed.engine.indices) == 1


@pytest.mark.parametrize(
    ("config", "layers", "draws"),
    [
        ({}, [torch.nn.Linear(2, 2)], False),
        ({}, [torch.nn.Linear(2, 2), torch.nn.Dropout(0.1)], True),
        ({"attention_dropout": 0.0, "hidden_act": "silu"}, [torch.nn.Dropout(0.0)], False),
        ({"layerdrop": 0.1}, [], True),
        ({"attn_pdrop": 0.1}, [], True),
        ({"vision_config": SimpleNamespace(activation_dropout=0.1)}, [], True),
    ],
)
def test_a_model_with_any_dropout_draws_random_numbers(config, layers, draws):
    model = torch.nn.Sequential(*layers)
    model.config = SimpleNamespace(**config)
    assert draws_random_numbers(model) == draws
