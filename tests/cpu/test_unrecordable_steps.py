"""GraphedStep with a recorder that cannot record: what is told, and that the plain step can go on."""

import gc
import random
import re
import weakref

import numpy
import pytest
import torch
from regression import FAILURES, OUT_OF_MEMORY, plain_loop, plain_step, steps_of

from cctrain.steps.capture import NotCapturableError, not_capturable, original_error


@pytest.mark.parametrize("accumulates", [False, True])
@pytest.mark.parametrize("failures", FAILURES.values(), ids=FAILURES)
def test_out_of_memory_while_recording_is_told_as_such_and_the_plain_step_can_go_on(training, failures, accumulates):
    steps = steps_of(*5 * [[2, 2] if accumulates else [2]])
    graphed = training(accumulates=accumulates, **failures)
    with pytest.raises(NotCapturableError, match=r"out of GPU memory while the step was.*lower train\.") as refused:
        graphed.run(steps)
    assert "model.py:7" not in str(refused.value)  # it is not run again to find what waits
    graphed.step.drain()
    assert list(graphed.delivered) == [1]  # its step was done
    for number, batches in list(enumerate(steps))[1:]:
        plain_step(graphed.model, graphed.optimizer, batches, number)
    graphed.assert_weights_of(plain_loop(steps)[1])


@pytest.mark.parametrize("accumulates", [False, True])
def test_what_cannot_be_recorded_is_told_with_the_lines_that_wait_and_the_plain_step_can_go_on(training, accumulates):
    steps = steps_of(*5 * [[2, 2] if accumulates else [2]])
    errors = [None, RuntimeError("not permitted")] if accumulates else [RuntimeError("not permitted")]
    graphed = training(accumulates=accumulates, record=errors)
    with pytest.raises(NotCapturableError, match=r"not permitted.*the host waits for the GPU at model\.py:7"):
        graphed.run(steps)
    for number, batches in list(enumerate(steps))[1:]:
        plain_step(graphed.model, graphed.optimizer, batches, number)
    graphed.assert_weights_of(plain_loop(steps)[1])


def test_where_looking_for_what_waits_fails_too_it_is_told_that_it_cannot_be_recorded(training):
    def waits(work):
        raise OUT_OF_MEMORY

    graphed = training(record=[RuntimeError("not permitted")])
    graphed.recorder.waits = waits
    with pytest.raises(NotCapturableError, match="not permitted"):
        graphed.run(steps_of([2]))


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, RuntimeError("not permitted")])
def test_a_recording_that_broke_off_leaves_no_memory_behind(training, error):
    kept = []

    def record():
        activations = torch.ones(4)
        kept.append(weakref.ref(activations))
        raise error

    graphed = training(work=record)
    gc.disable()  # as AutoModel does, where it collects garbage by its own plan
    try:
        with pytest.raises(NotCapturableError):
            graphed.run(steps_of([2]))
        assert [one() for one in kept] == [None]
    finally:
        gc.enable()


DRAWS = {"Python's": random.random, "numpy's": numpy.random.random, "torch's": lambda: torch.rand(())}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_random_numbers_of_the_host_are_no_part_of_a_graph(training, draw):
    graphed = training(work=draw)
    with pytest.raises(NotCapturableError, match=r"draws random numbers on the host, as LayerDrop"):
        graphed.run(steps_of([2]))


def test_a_step_that_replaces_a_tensor_of_the_model_is_refused_and_not_recorded_anew_each_time(training):
    def replace():
        graphed.model.average = graphed.model.average.clone()

    graphed = training(work=replace, buffers={"average": torch.zeros(2)})
    with pytest.raises(NotCapturableError, match=r"puts another tensor in the place of the model's average"):
        graphed.run(steps_of([2]))


def test_what_would_be_compiled_anew_while_it_is_recorded_is_told_with_what_is_different():
    def scaled(x, factor):
        return x * factor

    with torch._dynamo.config.patch(disable=False):
        compiled = torch.compile(scaled, backend="eager", dynamic=False)
        compiled(torch.ones(2), 2)
        with torch.compiler.set_stance("fail_on_recompile"), pytest.raises(RuntimeError) as raised:
            compiled(torch.ones(2), 3)
    assert re.search(r"compiled anew.*scaled.*factor == 2.*; step\.compile=false", str(not_capturable(raised.value)))


class Broken:
    """A capture whose end raises once more."""

    def __enter__(self):
        pass

    def __exit__(self, *_):
        self.capture_end()

    def capture_end(self):
        raise RuntimeError("capturing stream has unjoined work")


def test_what_broke_a_recording_is_told_and_not_what_its_end_raised():
    with pytest.raises(RuntimeError) as raised, Broken():
        raise KeyError("the first")
    assert original_error(raised.value).args == ("the first",)
    assert original_error(original_error(raised.value)).args == ("the first",)


def test_what_only_the_end_of_a_recording_raised_is_told():
    with pytest.raises(RuntimeError) as raised, Broken():
        pass
    assert original_error(raised.value) is raised.value
