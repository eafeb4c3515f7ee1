"""Attention by the boundaries of documents against attention under a mask of pairs, on a GPU."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]

ROWS, LENGTH, HEADS, KV_HEADS, WIDTH = 2, 384, 8, 2, 64
ENDS = ((100, 230, 231, 384), (7, 384))
"""Of the documents of each row."""


@pytest.fixture(scope="module")
def attention():
    """transformers' function for sdpa, once boundaries are known to it."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from cctrain.engines.documents import attend_by_documents

    config = SimpleNamespace(model_type="llama", _attn_implementation="sdpa", head_dim=WIDTH)
    model = torch.nn.Linear(1, 1, device="cuda", dtype=torch.bfloat16)
    model.config = config
    assert attend_by_documents(SimpleNamespace(model_parts=[model], _get_cp_group_size=lambda: 1))
    return ALL_ATTENTION_FUNCTIONS["sdpa"]


def document_ids():
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    for row, ends in enumerate(ENDS):
        begin = 0
        for number, end in enumerate(ends, start=1):
            ids[row, begin:end] = number
            begin = end
    return ids


def inputs():
    torch.manual_seed(0)
    shapes = [(ROWS, heads, LENGTH, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]


def learned(attention, mask, **boundaries):
    """Output and gradients."""
    module = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, is_causal=True, training=True)
    leaves = inputs()
    output, _ = attention(module, *leaves, mask, dropout=0.0, scaling=WIDTH**-0.5, **boundaries)
    weights = torch.linspace(-1, 1, output.numel(), device="cuda").view_as(output)
    (output * weights).sum().backward()
    return [output.detach(), *(leaf.grad for leaf in leaves)]


def test_it_is_the_same_as_under_a_mask(attention):
    from cctrain.steps.batches import by_documents

    ids = document_ids()
    mask = (ids[:, :, None] == ids[:, None, :]) & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    expected = learned(attention, mask.unsqueeze(1).cuda())
    batch = by_documents({"_packed_seq_ids": ids})
    found = learned(attention, None, cu_seq_lens_q=batch["cu_seq_lens_q"].cuda(), max_length_q=batch["max_length_q"])
    for one, other in zip(found, expected, strict=True):
        error = (one.float() - other.float()).norm() / other.float().norm()
        assert error < 0.01


def test_without_boundaries_it_is_transformers_own(attention):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    for one, other in zip(learned(attention, None), learned(sdpa_attention_forward, None), strict=True):
        assert torch.equal(one, other)
