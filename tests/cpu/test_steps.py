"""What a graphed step is made of, on a CPU, where the same steps run unrecorded."""

import threading
import time

import pytest
import torch
from regression import NoMarks, Regression, learning_rate, make_model, plain_loop, steps_of

from cctrain.steps.graphed import GraphedStep
from cctrain.steps.number import OnDevice
from cctrain.steps.readback import MOST_AHEAD, Readback

CPU = torch.device("cpu")
SHORT_S = 0.3
"""Long enough for a thread that could go on to do so."""


class TestOnDevice:
    def test_arithmetic_has_the_tensors_value(self):
        four, ten = OnDevice(torch.tensor(4.0)), torch.tensor(10.0)
        results = [ten / four, four / ten, ten * four, four * ten, ten - four, four - ten, ten + four]
        assert [one.item() for one in results] == pytest.approx([2.5, 0.4, 40, 40, 6, -6, 14])

    def test_torchs_functions_take_it(self):
        four = OnDevice(torch.tensor(4.0))
        assert torch.div(torch.tensor(10.0), four).item() == 2.5
        assert torch.div(input=torch.tensor(10.0), other=four).item() == 2.5

    def test_what_is_computed_later_uses_the_value_of_then(self):
        value = torch.tensor(4.0)
        number = OnDevice(value)
        value.fill_(5.0)
        assert (torch.tensor(10.0) / number).item() == 2.0

    def test_gradients_flow_past_it(self):
        weight = torch.tensor(3.0, requires_grad=True)
        (weight / OnDevice(torch.tensor(4.0))).backward()
        assert weight.grad.item() == 0.25

    def test_it_equals_no_number_and_can_be_a_key(self):
        zero = OnDevice(torch.tensor(0.0))
        assert not zero == 0  # noqa: SIM201 - both operators are asked
        assert zero != 0
        assert zero != OnDevice(zero.value)
        assert zero in {zero}


@pytest.fixture
def readback():
    """Make a Readback of one value a row; all are closed in the end."""
    made = []

    def make(deliver):
        made.append(Readback(1, CPU, deliver))
        return made[-1]

    yield make
    for one in made:
        one.close()


def queue_step(readback, step):
    readback.admit()
    readback.store(torch.tensor([float(step)], dtype=torch.float64))
    readback.stored(step)


class TestReadback:
    def test_every_row_is_delivered_once_and_in_order(self, readback):
        seen = []
        back = readback(lambda step, values: seen.append((step, values)))
        for step in range(100):  # several times around the ring
            queue_step(back, step)
        back.drain()
        assert seen == [(step, [float(step)]) for step in range(100)]

    def test_the_caller_gets_no_further_ahead_than_allowed(self, readback):
        may_go_on, seen, queued = threading.Event(), [], []

        def deliver(step, _):
            may_go_on.wait()
            seen.append(step)

        back = readback(deliver)

        def train():
            for step in range(3 * MOST_AHEAD):
                queue_step(back, step)
                queued.append(step)

        training = threading.Thread(target=train, daemon=True)
        training.start()
        while len(queued) < MOST_AHEAD:
            time.sleep(0.01)
        training.join(SHORT_S)
        assert len(queued) == MOST_AHEAD
        may_go_on.set()
        training.join()
        back.drain()
        assert seen == list(range(3 * MOST_AHEAD))

    def test_a_drain_waits_for_what_is_queued_and_steps_go_on_after_it(self, readback):
        seen = []

        def deliver(step, _):
            time.sleep(0.02)
            seen.append(step)

        back = readback(deliver)
        for round_of in range(3):
            for step in range(4):
                queue_step(back, 4 * round_of + step)
            back.drain()
            assert len(seen) == 4 * (round_of + 1)

    def test_an_error_is_raised_in_the_caller_at_most_that_many_steps_later(self, readback):
        def deliver(step, _):
            if step == 5:
                raise ArithmeticError("step 5")

        back, queued = readback(deliver), []

        def train():
            for step in range(100):
                queue_step(back, step)
                queued.append(step)

        with pytest.raises(ArithmeticError, match="step 5"):
            train()
        assert 5 <= queued[-1] < 5 + MOST_AHEAD

    def test_nothing_is_delivered_after_an_error(self, readback):
        seen = []

        def deliver(step, _):
            seen.append(step)
            if step == 2:
                raise ArithmeticError("step 2")

        back = readback(deliver)
        for _ in range(4):
            back.admit()
        for step in range(4):
            back.store(torch.zeros(1, dtype=torch.float64))
            back.stored(step)
        with pytest.raises(ArithmeticError, match="step 2"):
            back.drain()
        assert seen == [0, 1, 2]

    def test_closing_ends_the_thread_after_the_last_row(self):
        seen = []
        before = set(threading.enumerate())
        back = Readback(1, CPU, lambda step, _: seen.append(step))
        (thread,) = set(threading.enumerate()) - before
        for step in range(5):
            queue_step(back, step)
        back.close()
        thread.join(5)
        assert not thread.is_alive()
        assert seen == list(range(5))


@pytest.fixture
def graphed():
    """Train the same with GraphedStep: what was delivered, the model and the engine."""
    made = []

    def train(num_steps, num_batches, asked_at=None):
        model, optimizer = make_model()
        engine, delivered = Regression(model, optimizer), {}
        step = GraphedStep(
            engine,
            model,
            [optimizer],
            marks=NoMarks(),
            recorder=None,
            accumulates=num_batches > 1,
            num_ranks=1,
            is_sharded=False,
            deliver=delivered.__setitem__,
        )
        made.append(step)
        step.begin()
        for number, batches in enumerate(steps_of(*num_steps * [num_batches * [2]])):
            optimizer.param_groups[0]["lr"] = learning_rate(number)
            step.run(number + 1, batches, 2 * num_batches, is_asked_to_stop=number + 1 == asked_at)
        step.drain()
        return delivered, engine, step

    yield train
    for one in made:
        one.close()


@pytest.mark.parametrize("num_batches", [1, 4])
class TestGraphedStep:
    def test_losses_norms_and_weights_are_those_of_a_plain_loop(self, graphed, num_batches):
        """Under a learning rate that is another with each step."""
        rows, model = plain_loop(steps_of(*20 * [num_batches * [2]]))
        delivered, engine, _ = graphed(20, num_batches)
        assert list(delivered) == list(range(1, 21))
        assert {values[2] for values in delivered.values()} == {2 * num_batches}
        assert [values[:2] for values in delivered.values()] == [pytest.approx(row, rel=1e-5) for row in rows]
        for trained, plain in zip(engine.model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(trained, plain)

    def test_every_step_begins_without_gradients(self, graphed, num_batches):
        _, engine, _ = graphed(5, num_batches)
        assert len(engine.gradients_at_start) == 5
        for gradients in engine.gradients_at_start:
            assert all(gradient is None or not gradient.any() for gradient in gradients)

    def test_the_engine_is_told_which_micro_batch_it_is(self, graphed, num_batches):
        _, engine, _ = graphed(2, num_batches)
        assert engine.indices == 2 * [(index, num_batches) for index in range(num_batches)]

    def test_a_wish_to_stop_is_delivered_with_its_step(self, graphed, num_batches):
        delivered, _, _ = graphed(6, num_batches, asked_at=4)
        assert [values[3] for values in delivered.values()] == [0, 0, 0, 1, 0, 0]

    def test_micro_batches_are_counted_as_eager(self, graphed, num_batches):
        _, _, step = graphed(3, num_batches)
        counts = {name: step.facts[name] for name in ("num_graphs", "replayed_micro_batches", "eager_micro_batches")}
        assert counts == {"num_graphs": 0, "replayed_micro_batches": 0, "eager_micro_batches": 3 * num_batches}
        assert step.facts["eager_updates"] == 3
