"""The attention masks that transformers makes, recorded into a graph and not."""

import pytest

# Those of the libraries, when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(params=[False, True], ids=["not recorded", "recorded"])
def is_recorded(request, monkeypatch):
    """Whether a graph is recorded, which is simulated."""
    from transformers import masking_utils

    monkeypatch.setattr(masking_utils, "is_tracing", lambda *_: request.param)
    return request.param


@pytest.fixture
def mask_of(is_recorded):
    """The mask that a model makes from positions."""
    import torch
    from transformers import LlamaConfig, masking_utils

    config = LlamaConfig(num_attention_heads=4, attn_implementation="sdpa")

    def make(positions: list[int], padding: "torch.Tensor | None" = None) -> "torch.Tensor | None":
        embedded = torch.zeros(1, len(positions), config.hidden_size)
        return masking_utils.create_causal_mask(config, embedded, padding, None, torch.tensor([positions]))

    return make


def test_a_row_of_one_sample_has_no_mask(mask_of, is_recorded):
    from cctrain.engines.masks import masked_as_in_a_graph

    assert (mask_of([0, 1, 2, 3]) is not None) == is_recorded  # transformers' own
    with masked_as_in_a_graph({"input_ids": 1}):
        assert mask_of([0, 1, 2, 3]) is None
    assert (mask_of([0, 1, 2, 3]) is not None) == is_recorded


def test_a_row_with_positions_is_masked_recorded_or_not(mask_of):
    from cctrain.engines.masks import masked_as_in_a_graph

    with masked_as_in_a_graph({"input_ids": 1, "position_ids": 1}):
        assert mask_of([0, 1, 2, 3]) is not None


def test_a_row_with_a_mask_of_padding_is_masked_recorded_or_not_whatever_it_hides(mask_of, is_recorded):
    import torch

    from cctrain.engines.masks import masked_as_in_a_graph

    nothing = torch.ones(1, 4, dtype=torch.bool)
    assert (mask_of([0, 1, 2, 3], nothing) is not None) == is_recorded  # transformers' own
    with masked_as_in_a_graph({"input_ids": 1}):
        assert mask_of([0, 1, 2, 3], nothing) is not None


def test_samples_that_share_a_row_are_kept_apart(mask_of):
    from cctrain.engines.masks import masked_as_in_a_graph

    with masked_as_in_a_graph({"input_ids": 1, "position_ids": 1}):
        mask = mask_of([0, 1, 0, 1])
    assert mask[0, 0].tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, True, True],
    ]


@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
def test_a_mask_of_numbers_is_transformers_own(kind, monkeypatch):
    """Attention in single operations adds it."""
    import torch
    from transformers import LlamaConfig, masking_utils

    from cctrain.engines.masks import masked_as_in_a_graph

    config, embedded = LlamaConfig(attn_implementation="eager"), torch.zeros(1, 4, 8, dtype=torch.bfloat16)
    padding = torch.tensor([[True, True, True, False]])

    def make() -> "torch.Tensor":
        if kind == "causal":
            return masking_utils.create_causal_mask(config, embedded, padding, None, None)
        return masking_utils.create_bidirectional_mask(config, embedded, padding)

    expected = make()
    with masked_as_in_a_graph({"input_ids": 1}), monkeypatch.context() as within:
        within.setattr(torch, "tensor", None)  # which would be a copy to the GPU
        found = make()
    assert found.dtype == expected.dtype == torch.bfloat16
    assert found.equal(expected)
    assert make().equal(expected)
