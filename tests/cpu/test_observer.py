"""Steps whose loss is known only later."""

import json

import pytest
import torch

from cctrain.engines.observer import LossNotFiniteError, Observer
from cctrain.samples import SampleFile


@pytest.fixture
def observer(tmp_path):
    """One that has begun, and what it has written of steps."""
    (tmp_path / "samples").mkdir()
    path = tmp_path / "samples" / "rank0.jsonl"
    observing = Observer(SampleFile(path), lambda: None, {"model": {}})
    observing.attach(torch.nn.Linear(1, 1), [], data_rank=0, data_ranks=1, stop=lambda: None)
    observing.begin()

    def written():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [(row["step"], row["loss"]) for row in rows if "step" in row]

    yield observing, written
    observing.thread.close()


COUNTS = {"label_tokens": 4, "rows": [[8, [4]]], "patches": []}


def test_steps_are_written_in_order_each_with_its_own_loss(observer):
    observing, written = observer
    for step in range(1, 6):
        observing.step_end(step=step, loss=None, counts=COUNTS)
        if step > 2:
            observing.loss_known(step - 2, float(step - 2))
    for step in (5, 4):
        observing.loss_known(step, float(step))
    observing.end(is_complete=True)
    assert written() == [(step, float(step)) for step in range(1, 6)]


def test_a_step_whose_flops_cannot_be_counted_is_written_without(observer):
    observing, written = observer
    observing.count_flops = lambda rows, patches: {"model_flops": 1 / len(rows)}
    observing.step_end(step=1, loss=1.5, counts=COUNTS | {"rows": []})
    observing.step_end(step=2, loss=2.5, counts=COUNTS)
    observing.end(is_complete=True)
    assert written() == [(1, 1.5), (2, 2.5)]


def test_a_step_waits_for_the_loss_of_the_one_before(observer):
    observing, written = observer
    for step in (1, 2):
        observing.step_end(step=step, loss=None, counts=COUNTS)
    observing.loss_known(2, 2.0)
    observing.end(is_complete=True)
    assert written() == []


def test_steps_with_a_loss_at_once_go_on_as_before(observer):
    observing, written = observer
    observing.step_end(step=1, loss=None, counts=COUNTS)
    observing.loss_known(1, 1.5)
    observing.step_end(step=2, loss=2.5, counts=COUNTS)
    observing.end(is_complete=True)
    assert written() == [(1, 1.5), (2, 2.5)]


def test_a_loss_that_is_no_number_is_written_whenever_it_is_known(observer):
    observing, written = observer
    observing.step_end(step=1, loss=None, counts=COUNTS)
    observing.loss_known(1, float("nan"))
    with pytest.raises(LossNotFiniteError, match="step 2 is inf"):
        observing.step_end(step=2, loss=float("inf"), counts=COUNTS)
    observing.end(is_complete=False)
    assert written() == [(1, None), (2, None)]
