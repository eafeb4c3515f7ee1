"""Token counts of the batches that AutoModel's collate functions make."""

import numpy as np
import pytest

from cctrain.metrics import count_tokens


class Tensor(np.ndarray):
    """A NumPy array with the one method of a tensor that counting uses and NumPy lacks."""

    def bincount(self):
        return np.bincount(self)


def tensor(values):
    return np.asarray(values).view(Tensor)


IDS = tensor([[5, 6, 7, 0], [5, 6, 0, 0]])
LABELS = tensor([[-100, 7, 9, -100], [-100, 9, -100, -100]])


def test_padding_is_told_from_real_tokens_by_the_attention_mask():
    mask = tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    counts = count_tokens([{"input_ids": IDS, "labels": LABELS, "attention_mask": mask}])
    rows = [[4, [3]], [4, [2]]]
    assert counts == {
        "padded_tokens": 8,
        "real_tokens": 5,
        "label_tokens": 3,
        "num_images": 0,
        "rows": rows,
        "patches": [],
    }


def test_a_padding_mask_says_the_same():
    mask = tensor([[0, 0, 0, 1], [0, 0, 1, 1]]).astype(bool).view(Tensor)
    assert count_tokens([{"input_ids": IDS, "labels": LABELS, "padding_mask": mask}])["real_tokens"] == 5


def test_packed_documents_are_counted_by_their_lengths():
    batch = {"input_ids": IDS, "labels": LABELS, "seq_lens": tensor([[2, 1], [2, -1000]])}
    counts = count_tokens([batch])
    assert (counts["real_tokens"], counts["rows"]) == (5, [[4, [2, 1]], [4, [2]]])


def test_packed_documents_are_counted_by_their_numbers():
    numbered = tensor([[1, 1, 2, 0], [1, 2, 2, 2]])
    for batch in ({"attention_mask": numbered}, {"attention_mask": tensor([[[[1]]]]), "_packed_seq_ids": numbered}):
        counts = count_tokens([{"input_ids": IDS, "labels": LABELS, **batch}])
        assert (counts["real_tokens"], counts["rows"]) == (7, [[4, [2, 1]], [4, [1, 3]]])


def test_a_mask_of_who_sees_whom_tells_padding_by_its_diagonal():
    seen = np.zeros((2, 1, 4, 4), dtype=bool)
    seen[0, 0, :3, :3] = np.tril(np.ones((3, 3), dtype=bool))
    seen[1, 0, :2, :2] = np.tril(np.ones((2, 2), dtype=bool))
    counts = count_tokens([{"input_ids": IDS, "labels": LABELS, "attention_mask": seen.view(Tensor)}])
    assert counts["rows"] == [[4, [3]], [4, [2]]]


def test_a_mask_of_numbers_that_are_added_is_zero_where_a_token_is_seen():
    added = np.full((2, 1, 4, 4), -np.inf)
    added[0, 0, :3, :3] = np.where(np.tril(np.ones((3, 3))), 0.0, -np.inf)
    added[1, 0, :2, :2] = np.where(np.tril(np.ones((2, 2))), 0.0, -np.inf)
    counts = count_tokens([{"input_ids": IDS, "labels": LABELS, "attention_mask": added.view(Tensor)}])
    assert counts["rows"] == [[4, [3]], [4, [2]]]


@pytest.mark.parametrize(
    ("positions", "lengths"),
    [
        ([0, 1, 2, 3], [4]),
        ([0, 1, 0, 0], [2]),
        ([0, 1, 2, 0], [3, 1]),  # one token of padding cannot be told from a document of one
        ([0, 1, 0, 1], [2, 2]),
        ([0, 0, 1, 2], [1, 3]),
        ([0, 0, 0, 0], [1]),
    ],
)
def test_packed_rows_without_a_mask_are_read_by_their_positions(positions, lengths):
    batch = {"input_ids": IDS[:1], "labels": LABELS[:1], "position_ids": tensor([positions])}
    counts = count_tokens([batch | {"cu_seq_lens_q": tensor([0, 4])}])
    assert counts["rows"] == [[4, lengths]]


def test_without_a_mask_every_token_is_real():
    assert count_tokens([{"input_ids": IDS, "labels": LABELS}])["rows"] == [[4, [4]], [4, [4]]]


def test_a_row_of_padding_alone_has_no_real_token():
    mask = tensor([[0, 0, 0, 0], [0, 0, 0, 0]])
    counts = count_tokens([{"input_ids": IDS, "labels": LABELS, "attention_mask": mask}])
    assert (counts["padded_tokens"], counts["real_tokens"]) == (8, 0)


def test_micro_batches_add_up_and_images_are_counted():
    batch = {"input_ids": IDS, "labels": LABELS, "n_images_per_sample": tensor([1, 2])}
    counts = count_tokens([batch, batch])
    assert (counts["padded_tokens"], counts["label_tokens"], counts["num_images"]) == (16, 6, 6)
    assert len(counts["rows"]) == 4


def test_patches_of_images_are_told_from_their_padding_by_their_positions():
    positions = tensor([[[0, 0], [0, 1], [-1, -1]], [[0, 0], [-1, -1], [-1, -1]]])
    batch = {"input_ids": IDS, "labels": LABELS, "pixel_values": tensor(np.zeros((2, 3, 48)))}
    counts = count_tokens([batch | {"image_position_ids": positions}])
    assert (counts["patches"], counts["num_images"]) == ([[3, 2], [3, 1]], 2)
