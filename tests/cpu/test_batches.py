"""Micro-batches made alike for few graphs: padded, without masks, and with documents' boundaries."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cctrain.metrics import IGNORED_LABEL, count_tokens
from cctrain.steps.batches import by_documents, padded, unmasked
from cctrain.steps.staging import shape_of


def text(*lengths, width=None, left=False):
    """A batch of rows of `lengths` real tokens, padded as a collator does."""
    width = width or max(lengths)
    rows = [(list(range(3, 3 + length)), [1] * length, [0] * (width - length)) for length in lengths]
    order = (lambda real, filler: filler + real) if left else (lambda real, filler: real + filler)
    return {
        "input_ids": torch.tensor([order(ids, filler) for ids, _, filler in rows]),
        "attention_mask": torch.tensor([order(mask, filler) for _, mask, filler in rows]),
        "labels": torch.tensor([order(ids, [IGNORED_LABEL] * len(filler)) for ids, _, filler in rows]),
    }


def same(batch, other):
    return batch.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value is other[name]
        for name, value in batch.items()
    )


class TestPadded:
    def test_each_tensor_is_filled_with_what_means_nothing_there(self):
        batch = text(3, 2) | {
            "position_ids": torch.arange(3).expand(2, 3),
            "padding_mask": torch.zeros(2, 3, dtype=torch.bool),
            "token_type_ids": torch.ones(2, 3, dtype=torch.long),
            "mm_token_type_ids": torch.ones(2, 3, dtype=torch.long),
            "loss_mask": torch.ones(2, 3),
        }
        wider = padded(batch, (5, 9))
        fillers = {name: value[:, 3:].unique().tolist() for name, value in wider.items()}
        assert fillers == {
            **{name: [0] for name in set(batch) - {"labels", "padding_mask"}},
            "labels": [IGNORED_LABEL],
            "padding_mask": [True],
        }
        assert all(value.shape == (2, 5) and value.dtype == batch[name].dtype for name, value in wider.items())
        assert all(torch.equal(value[:, :3], batch[name]) for name, value in wider.items())

    def test_a_batch_as_long_as_a_bucket_or_longer_than_all_is_left_as_it_is(self):
        for lengths in ((3, 9), (2,), ()):
            assert same(padded(text(3, 2), lengths), text(3, 2))

    def test_a_batch_without_a_mask_gets_one_that_tells_its_padding(self):
        batch = {name: value for name, value in text(3, 3).items() if name != "attention_mask"}
        assert padded(batch, (5,))["attention_mask"].tolist() == [[1, 1, 1, 0, 0]] * 2

    def test_one_whose_padding_is_masked_otherwise_counts_the_same_tokens_as_before(self):
        batch = {name: value for name, value in text(6, 2).items() if name != "attention_mask"}
        batch["padding_mask"] = text(6, 2)["attention_mask"] == 0
        wider = padded(batch, (9,))
        assert wider["attention_mask"].sum(-1).tolist() == [6, 2]
        assert count_tokens([wider])["real_tokens"] == count_tokens([batch])["real_tokens"] == 8

    def test_the_batch_given_is_not_changed(self):
        batch = text(3, 2)
        padded(batch, (5,))
        assert same(batch, text(3, 2))

    def test_images_are_kept_as_they_are(self):
        pixels = torch.rand(2, 7, 12)
        wider = padded(text(3, 2) | {"pixel_values": pixels, "n_images_per_sample": torch.ones(2)}, (5,))
        assert wider["input_ids"].shape == (2, 5)
        assert wider["pixel_values"] is pixels

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("_packed_seq_ids", torch.ones(2, 3, dtype=torch.long)),
            ("attention_mask", torch.ones(2, 1, 3, 3, dtype=torch.bool).tril()),  # who sees whom
            ("causal_mask_mapping", {"full_attention": torch.ones(2, 1, 3, 3, dtype=torch.bool).tril()}),
            ("inputs_embeds", torch.ones(2, 3, 8)),
        ],
        ids=["unknown", "pairs", "pairs_by_layer", "embedded"],
    )
    def test_a_batch_with_anything_along_its_sequence_that_cannot_be_padded_is_left_as_it_is(self, name, value):
        batch = text(3, 2) | {name: value}
        assert same(padded(batch, (5,)), batch)


class TestByDocuments:
    IDS = torch.tensor([[1, 1, 1, 2, 2, 3, 0, 0], [1, 1, 2, 2, 2, 2, 2, 0]])

    def test_boundaries_are_where_documents_rows_and_padding_begin(self):
        batch = by_documents({"_packed_seq_ids": self.IDS, "attention_mask": torch.ones(2, 1, 8, 8)})
        assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5, 6, 8, 10, 15, 16, 16]
        assert batch["cu_seq_lens_q"].dtype is torch.int32
        assert "attention_mask" not in batch

    def test_the_most_tokens_of_a_document_are_rounded_up_within_the_row(self):
        assert by_documents({"_packed_seq_ids": self.IDS})["max_length_q"] == 8
        long = torch.arange(1, 257).repeat_interleave(4).unsqueeze(0)
        assert by_documents({"_packed_seq_ids": long})["max_length_q"] == 256  # a quarter of the row: shorter is alike
        long[0, :300] = 1
        assert by_documents({"_packed_seq_ids": long})["max_length_q"] == 512

    def test_rows_with_some_documents_more_or_fewer_share_a_graph(self):
        shapes = set()
        for num_documents in (5, 9, 16):
            ids = (torch.arange(1024) * num_documents // 1024 + 1).unsqueeze(0)
            shapes.add(shape_of(by_documents({"_packed_seq_ids": ids})))
        assert len(shapes) == 1

    def test_where_all_ranks_need_one_graph_all_rows_share_it(self):
        shapes = set()
        for num_documents in (1, 3, 16):
            ids = (torch.arange(1024) * num_documents // 1024 + 1).unsqueeze(0)
            batch = {"_packed_seq_ids": ids, "attention_mask": torch.ones(1, 1, 4, 4)}
            if num_documents == 1:  # AutoModel numbers no single document
                batch = {"attention_mask": torch.ones(1, 1, 1024, 1024, dtype=torch.bool).tril()}
            shapes.add(shape_of(by_documents(batch, is_uniform=True)))
        assert len(shapes) == 1

    def test_a_single_document_and_its_padding_are_told_by_the_mask(self):
        mask = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
        mask[..., 5:, :] = False
        batch = by_documents({"attention_mask": mask})
        assert batch["cu_seq_lens_q"].tolist()[:3] == [0, 5, 8]
        assert batch["_packed_seq_ids"].tolist() == [[1] * 5 + [0] * 3]

    def test_rows_that_are_not_packed_are_left_as_they_are(self):
        batch = {"input_ids": torch.zeros(1, 4), "attention_mask": torch.ones(1, 4)}
        assert by_documents(batch) == batch


class TestUnmasked:
    @pytest.mark.parametrize("batch", [text(4, 4), text(4, 2), padded(text(4, 2), (9,))], ids=["full", "right", "more"])
    def test_a_mask_over_padding_on_the_right_is_dropped(self, batch):
        kept = unmasked(batch)
        assert "attention_mask" not in kept
        assert same(kept | {"attention_mask": batch["attention_mask"]}, batch)

    def test_a_mask_over_padding_on_the_left_is_kept(self):
        assert same(unmasked(text(4, 2, left=True)), text(4, 2, left=True))

    def test_a_mask_with_a_hole_is_kept(self):
        batch = text(4, 4)
        batch["attention_mask"][0, 1] = 0
        assert same(unmasked(batch), batch)

    def test_a_mask_that_numbers_packed_documents_is_kept(self):
        batch = text(4) | {"attention_mask": torch.tensor([[1, 1, 2, 2]])}
        assert same(unmasked(batch), batch)

    def test_a_mask_of_pairs_is_kept(self):
        batch = text(4) | {"attention_mask": torch.ones(1, 1, 4, 4).tril()}
        assert same(unmasked(batch), batch)

    def test_a_mask_over_a_token_that_a_loss_is_taken_on_is_kept(self):
        batch = text(4, 2)
        batch["labels"][1, 3] = 5
        assert same(unmasked(batch), batch)


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def loss_and_gradients(model, batch):
    model.zero_grad()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    loss.backward()
    return loss.item(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("lengths", [(9, 9), (9, 4, 1)])
def test_a_causal_model_learns_the_same_from_a_padded_and_unmasked_batch(llama, lengths, left):
    batch = text(*lengths, left=left)
    changed = unmasked(padded(batch, (16,)))
    assert changed["labels"].shape[1] == 16
    loss, gradients = loss_and_gradients(llama, batch)
    other_loss, other_gradients = loss_and_gradients(llama, changed)
    assert other_loss == pytest.approx(loss, rel=1e-6)
    for gradient, other in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-7)


class TestShapeOf:
    def test_batches_that_differ_in_values_alone_share_a_graph(self):
        assert shape_of(text(3, 2)) == shape_of({name: value + 1 for name, value in text(3, 2).items()})
        assert hash(shape_of(text(3, 2))) == hash(shape_of(text(2, 3)))

    @pytest.mark.parametrize(
        "other",
        [
            text(4, 2),
            text(3, 2, 1),
            text(3, 2) | {"labels": text(3, 2)["labels"].int()},
            text(3, 2) | {"pixel_values": torch.zeros(1)},
            unmasked(text(3, 2)),
            text(3, 2) | {"qkv_format": "thd"},
            text(3, 2) | {"masks": {"full": torch.zeros(1)}},
        ],
        ids=["length", "rows", "type", "one_more", "one_less", "not_a_tensor", "nested"],
    )
    def test_a_batch_of_another_shape_has_another_graph(self, other):
        assert shape_of(other) != shape_of(text(3, 2))

    def test_what_is_no_tensor_counts_by_its_value(self):
        assert shape_of({"qkv_format": "thd"}) != shape_of({"qkv_format": "bshd"})
        assert shape_of({"qkv_format": "thd"}) == shape_of({"qkv_format": "thd"})
