"""GraphedStep recorded and replayed, held against a plain training loop of the same small model."""

import pytest
import torch

from tests.cpu.regression import OneRank

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

NUM_STEPS, WIDTH = 20, 64
ROWS = (8, 16)
"""Rows of micro-batches: two shapes, in turns from step to step."""


class Marks:
    """No clock, but whether a graph is being recorded, and how many were replayed."""

    def __init__(self):
        self.is_recording, self.num_replayed = False, 0

    def phase_end(self, name):
        pass

    def record_marks(self):
        self.is_recording = True
        return []

    def end_record(self):
        self.is_recording = False

    def replayed(self, names):
        self.num_replayed += 1


class Engine(OneRank):
    """Squared error over the step's rows, clipped."""

    def __init__(self, model, optimizer, marks):
        self.model, self.optimizer, self.marks = model, optimizer, marks
        self.was_recording = []

    def forward_backward(self, batch, index, num_batches, label_tokens):
        self.was_recording.append(self.marks.is_recording)
        loss = (self.model(batch["x"]) - batch["y"]).square().sum() / label_tokens
        loss.backward()
        return loss.detach()

    def update(self):
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        return norm


def make_model(dropout=0.0, lr=0.01):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU(), torch.nn.Dropout(dropout), torch.nn.Linear(WIDTH, 1)]
    model = torch.nn.Sequential(*layers).cuda()
    return model, torch.optim.AdamW(model.parameters(), lr=lr, fused=True)


def micro_batches(step, num_batches):
    """On the host, as a loader gives them."""
    draw = torch.Generator().manual_seed(step)
    rows = ROWS[step % 2]
    return [
        {"x": torch.randn(rows, WIDTH, generator=draw), "y": torch.randn(rows, 1, generator=draw)}
        for _ in range(num_batches)
    ]


def learning_rate(step):
    return 0.01 / (1 + step)


def eager(num_batches):
    """A plain loop: each step's loss and gradient norm, and the model in the end."""
    model, optimizer = make_model()
    rows = []
    for step in range(NUM_STEPS):
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        batches = micro_batches(step, num_batches)
        num_rows = sum(len(batch["x"]) for batch in batches)
        total = 0.0
        for batch in batches:
            loss = (model(batch["x"].cuda()) - batch["y"].cuda()).square().sum() / num_rows
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rows.append((total, norm.item()))
    return rows, model


class Training:
    """A GraphedStep, what it delivered, and its marks."""

    def __init__(self, model, optimizer, num_batches=1):
        from cctrain.steps.capture import CudaRecorder
        from cctrain.steps.graphed import GraphedStep

        self.model, self.optimizer, self.num_batches = model, optimizer, num_batches
        self.delivered, self.marks = {}, Marks()
        self.engine = Engine(model, optimizer, self.marks)
        self.step = GraphedStep(
            self.engine,
            model,
            [optimizer],
            marks=self.marks,
            recorder=CudaRecorder(),
            accumulates=num_batches > 1,
            num_ranks=1,
            is_sharded=False,
            deliver=self.delivered.__setitem__,
        )
        self.step.begin()

    def run(self, steps, same_data=False):
        for step in steps:
            batches = micro_batches(0 if same_data else step, self.num_batches)
            num_rows = sum(len(batch["x"]) for batch in batches)
            self.step.run(step + 1, batches, num_rows, is_asked_to_stop=False)
        self.step.drain()

    def run_scheduled(self, steps):
        for step in steps:
            self.optimizer.param_groups[0]["lr"] = learning_rate(step)
            self.run([step])


@pytest.fixture
def training():
    """Make a Training; all are closed in the end, and the stream is the one before."""
    made, stream = [], torch.cuda.current_stream()

    def make(*arguments, **options):
        made.append(Training(*arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.step.close()
    torch.cuda.synchronize()
    torch.cuda.set_stream(stream)


def assert_same(trained, rows, model):
    assert list(trained.delivered) == list(range(1, NUM_STEPS + 1))
    assert [values[:2] for values in trained.delivered.values()] == [pytest.approx(row, rel=1e-4) for row in rows]
    for found, plain in zip(trained.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_batches", [1, 4])
def test_replayed_steps_train_as_a_plain_loop_does(training, num_batches):
    """Two shapes in turns, and a learning rate that is another with each step."""
    graphed = training(*make_model(), num_batches)
    graphed.run_scheduled(range(NUM_STEPS))
    assert_same(graphed, *eager(num_batches))
    facts = graphed.step.facts
    assert facts["eager_micro_batches"] == 2 * num_batches  # those of the first step of each shape
    assert facts["replayed_micro_batches"] == graphed.marks.num_replayed == (NUM_STEPS - 2) * num_batches
    assert facts["num_graphs"] == (4 if num_batches == 1 else 3)  # with an update each, or one for both shapes
    assert facts["recaptures"] == 0


def test_each_replay_draws_other_random_numbers(training):
    graphed = training(*make_model(dropout=0.5, lr=0.0))
    graphed.run(range(10), same_data=True)
    assert graphed.step.facts["replayed_micro_batches"] == 9
    assert len({values[0] for values in graphed.delivered.values()}) == 10


@pytest.mark.parametrize("num_batches", [1, 4])
def test_a_parameter_that_was_moved_is_noticed_and_training_goes_on_right(training, num_batches):
    graphed = training(*make_model(), num_batches)
    graphed.run_scheduled(range(10))
    weight = graphed.model[0].weight
    weight.data, old = weight.data.clone(), weight.data
    old.fill_(float("nan"))  # a graph that still read it would show
    graphed.run_scheduled(range(10, NUM_STEPS))
    assert graphed.step.facts["recaptures"] == 1
    assert_same(graphed, *eager(num_batches))


class Waiting(torch.nn.Module):
    """Its forward pass asks the GPU for a number."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(WIDTH, 1)

    def forward(self, x):
        return self.layer(x) * (1.0 if x.sum().item() < 1e9 else 2.0)


def test_a_forward_pass_that_waits_for_the_gpu_is_refused_by_its_line(training):
    from cctrain.steps.capture import NotCapturableError

    model = Waiting().cuda()
    graphed = training(model, torch.optim.AdamW(model.parameters(), fused=True))
    with pytest.raises(NotCapturableError) as refused:
        graphed.run([0])
    line = Waiting.forward.__code__.co_firstlineno + 1
    assert f"test_graphed.py:{line}" in str(refused.value)
    assert ".item()" in str(refused.value)
    graphed.step.drain()
    assert list(graphed.delivered) == [1]  # its step was done
    assert graphed.engine.was_recording == [False, True, False]  # run, recorded in vain, run again to find the lines
    assert all(parameter.grad is None for parameter in model.parameters())


def waiting_forward_hook(module, arguments, output):
    output.sum().item()


def waiting_backward_hook(module, gradients_in, gradients_out):
    gradients_out[0].sum().item()


@pytest.mark.parametrize("hook", [waiting_forward_hook, waiting_backward_hook])
def test_a_hook_that_waits_for_the_gpu_is_refused_by_its_line(training, hook):
    from cctrain.steps.capture import NotCapturableError

    model, optimizer = make_model()
    is_forward = hook is waiting_forward_hook
    (model[0].register_forward_hook if is_forward else model[0].register_full_backward_hook)(hook)
    graphed = training(model, optimizer)
    with pytest.raises(NotCapturableError) as refused:
        graphed.run([0])
    assert f"test_graphed.py:{hook.__code__.co_firstlineno + 1}" in str(refused.value)
    graphed.step.drain()
    assert list(graphed.delivered) == [1]


def test_after_a_refusal_the_engines_own_step_can_go_on(training):
    """With random numbers, and with the memory that AutoModel gives back before a checkpoint."""
    from cctrain.steps.capture import NotCapturableError

    model = Waiting().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    graphed = training(model, optimizer)
    with pytest.raises(NotCapturableError):
        graphed.run([0])
    graphed.step.drain()
    torch.cuda.empty_cache()
    noise = torch.randn(8, WIDTH, device="cuda")
    before = model.layer.weight.detach().clone()
    model(noise).square().sum().backward()
    optimizer.step()
    assert noise.std() > 0.5
    assert not torch.equal(model.layer.weight, before)


def test_a_replayed_step_is_fewer_than_ten_launches(training):
    graphed = training(*make_model())
    graphed.run([0, 2, 4], same_data=True)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    ) as profile:
        graphed.run(range(6, 16), same_data=True)
    launches = [event.name for event in profile.events() if "Launch" in event.name]
    assert 10 < len(launches) < 10 * 10
    assert launches.count("cudaGraphLaunch") == 2 * 10
