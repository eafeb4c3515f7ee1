"""AutoModel's cross-entropy as `step=graphed` has it compiled: when it is, and when it is left to AutoModel."""

import functools

import pytest
import torch
from nemo_automodel.components.loss.masked_ce import MaskedCrossEntropy

from cctrain.engines.compiled_loss import compile_loss
from cctrain.steps.number import OnDevice

LOGITS = torch.randn(2, 8, 50, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(50, (2, 8), generator=torch.Generator().manual_seed(2))
LABELS[0, :3] = -100
NUM_TOKENS = OnDevice(torch.tensor(13.0))


@pytest.fixture
def loss(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    loss = MaskedCrossEntropy()
    compile_loss(loss)
    return loss


def test_the_steps_own_loss_and_its_gradient_are_the_same_compiled(loss):
    ours, theirs = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    found = loss(logits=ours, labels=LABELS, num_label_tokens=NUM_TOKENS)
    expected = MaskedCrossEntropy()(logits=theirs, labels=LABELS, num_label_tokens=NUM_TOKENS)
    found.backward()
    expected.backward()
    assert loss.is_fused
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), {"num_label_tokens": 13}),  # a validation's, which the host has counted
        ((), {}),
        ((torch.ones(2, 8), 13), {}),
        ((), {"num_label_tokens": NUM_TOKENS, "loss_weights": torch.full((2, 8), 2.0)}),
    ],
)
def test_whatever_else_is_asked_of_it_is_automodels_own(loss, arguments, named):
    found = loss(LOGITS, LABELS.clone(), *arguments, **named)
    assert found == MaskedCrossEntropy()(LOGITS, LABELS.clone(), *arguments, **named)
    assert not hasattr(loss, "is_fused")


def test_a_loss_that_is_no_sum_is_left_alone(loss):
    mean = MaskedCrossEntropy(reduction="mean")
    own = mean.forward
    compile_loss(mean)
    assert mean.forward == own
