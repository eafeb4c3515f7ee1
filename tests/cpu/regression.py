"""A training small enough to be held against a plain loop: one linear layer, squared error over the step's rows; and a
recorder that needs no GPU."""

import pytest
import torch
from torch.utils import _pytree as pytree

from cctrain.steps.graphed import GraphedStep


class NoMarks:
    """No clock."""

    def phase_end(self, name):
        pass

    def record_marks(self):
        return []

    def end_record(self):
        pass

    def replayed(self, names):
        pass


class OneRank:
    """What `steps.graphed.Engine` has to do with other ranks: nothing."""

    def agree(self, digest):
        raise AssertionError("there is one rank")

    first_failure = agree

    def sum_over_all_ranks(self, values):
        pass

    def sum_over_samples(self, values):
        pass


class Regression(OneRank):
    """As `steps.graphed.Engine`."""

    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer
        self.gradients_at_start = []
        self.indices = []

    def forward_backward(self, batch, index, num_batches, label_tokens):
        if index == 0:
            self.gradients_at_start.append([parameter.grad for parameter in self.model.parameters()])
        self.indices.append((index, num_batches))
        loss = (self.model(batch["x"]) - batch["y"]).square().sum() / label_tokens
        loss.backward()
        return loss.detach()

    def update(self):
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return norm


class Way:
    """A micro-batch's place in memory."""

    def __init__(self, example):
        self.batch = pytree.tree_map_only(torch.Tensor, lambda one: torch.empty(one.shape, dtype=one.dtype), example)

    def send(self, batch):
        for place, leaf in zip(pytree.tree_leaves(self.batch), pytree.tree_leaves(batch), strict=True):
            if isinstance(leaf, torch.Tensor):
                assert place.shape == leaf.shape  # copy_ would broadcast
                place.copy_(leaf)


class Kept:
    """Recorded work, which knows the memory that it reads."""

    def __init__(self, work, tensors):
        self._work, self._tensors = work, tensors
        self._addresses = self._read()

    def _read(self):
        return [tensor.data_ptr() for tensor in self._tensors]

    def replay(self):
        assert self._read() == self._addresses, "a replay reads memory that the model has left"
        self._work()


class FakeRecorder:
    """`steps.capture.Recorder`: recorded work of `model` is kept, and runs whenever it is replayed; `work` is done
    while it is recorded. `failures` are raised by the first calls of `stage` and `record`, by the name of the call,
    None by those that go well."""

    def __init__(self, model, work=lambda: None, **failures):
        self._work = work
        self._tensors = list(model.parameters())
        self._failures = {name: list(errors) for name, errors in failures.items()}
        self.num_recorded = 0

    def _fail(self, name):
        error = self._failures[name].pop(0) if self._failures.get(name) else None
        if error:
            raise error

    def begin(self):
        pass

    def stage(self, example):
        self._fail("stage")
        way = Way(example)
        way.send(example)
        return way

    def record(self, work):
        self._fail("record")
        self._work()
        self.num_recorded += 1
        return Kept(work, self._tensors)

    def begin_anew(self):
        pass

    def prepare(self, optimizer):
        return True

    def waits(self, work):
        work()
        return ["model.py:7"]


def make_model():
    torch.manual_seed(3)
    model = torch.nn.Linear(4, 1)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def steps_of(*rows):
    """A step each: its micro-batches, of so many rows."""
    draw = torch.Generator().manual_seed(1)
    return [
        [{"x": torch.randn(num, 4, generator=draw), "y": torch.randn(num, 1, generator=draw)} for num in step]
        for step in rows
    ]


def num_rows(batches):
    return sum(len(batch["x"]) for batch in batches)


def learning_rate(number):
    return 0.1 / (1 + number)


def plain_step(model, optimizer, batches, number):
    """Step `number`, from 0, of a plain training loop: its loss and gradient norm."""
    optimizer.param_groups[0]["lr"] = learning_rate(number)
    losses = [(model(one["x"]) - one["y"]).square().sum() / num_rows(batches) for one in batches]
    torch.stack(losses).sum().backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(sum(losses).detach()), float(norm)


def plain_loop(steps):
    """Each step's loss and gradient norm, and the model in the end."""
    model, optimizer = make_model()
    return [plain_step(model, optimizer, batches, number) for number, batches in enumerate(steps)], model


class Training:
    """A GraphedStep of `num_ranks`, and what it delivered."""

    def __init__(
        self,
        *,
        accumulates=False,
        num_ranks=1,
        is_sharded=False,
        engine=Regression,
        buffers=None,
        marks=None,
        **recorder,
    ):
        self.model, self.optimizer = make_model()
        for name, tensor in (buffers or {}).items():
            self.model.register_buffer(name, tensor)
        self.engine, self.delivered = engine(self.model, self.optimizer), {}
        self.recorder = FakeRecorder(self.model, **recorder)
        self.step = GraphedStep(
            self.engine,
            self.model,
            [self.optimizer],
            marks=marks or NoMarks(),
            recorder=self.recorder,
            accumulates=accumulates,
            num_ranks=num_ranks,
            is_sharded=is_sharded,
            deliver=self.delivered.__setitem__,
        )
        self.step.begin()

    def run(self, steps, first=0):
        """Those of `steps` from `first` on."""
        for number, batches in enumerate(steps[first:], start=first):
            self.optimizer.param_groups[0]["lr"] = learning_rate(number)
            self.step.run(number + 1, batches, num_rows(batches), is_asked_to_stop=False)
        self.step.drain()

    @property
    def counts(self):
        facts = self.step.facts
        return facts["eager_micro_batches"], facts["replayed_micro_batches"]

    def assert_as_a_plain_loop(self, steps):
        rows, model = plain_loop(steps)
        assert list(self.delivered) == list(range(1, len(steps) + 1))
        assert [values[:2] for values in self.delivered.values()] == [pytest.approx(row, rel=1e-5) for row in rows]
        self.assert_weights_of(model)

    def assert_weights_of(self, model):
        for trained, plain in zip(self.model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(trained, plain)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
FAILURES = {
    "a place for the batch": {"stage": [OUT_OF_MEMORY]},
    "a micro-batch": {"record": [OUT_OF_MEMORY]},
    "an update": {"record": [None, OUT_OF_MEMORY]},
}
"""Of a FakeRecorder, by what memory is short for."""
