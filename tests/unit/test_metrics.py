"""Token counts of the batches that AutoModel's collate functions make."""

import numpy as np

from cctrain.metrics import count_tokens


class Tensor(np.ndarray):
    """A NumPy array with the one method of a tensor that counting uses and NumPy lacks."""

    def numel(self):
        return self.size


def tensor(values):
    return np.asarray(values).view(Tensor)


IDS = tensor([[5, 6, 7, 0], [5, 6, 0, 0]])
LABELS = tensor([[-100, 7, 9, -100], [-100, 9, -100, -100]])


def test_padding_is_told_from_real_tokens_by_the_attention_mask():
    mask = tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    counts = count_tokens([{"input_ids": IDS, "labels": LABELS, "attention_mask": mask}])
    assert counts == {"padded_tokens": 8, "real_tokens": 5, "label_tokens": 3, "num_images": 0}


def test_a_padding_mask_says_the_same():
    mask = tensor([[0, 0, 0, 1], [0, 0, 1, 1]]).astype(bool).view(Tensor)
    assert count_tokens([{"input_ids": IDS, "labels": LABELS, "padding_mask": mask}])["real_tokens"] == 5


def test_packed_documents_are_counted_by_their_lengths():
    batch = {"input_ids": IDS, "labels": LABELS, "seq_lens": tensor([[2, 1], [2, -1000]])}
    assert count_tokens([batch])["real_tokens"] == 5


def test_micro_batches_add_up_and_images_are_counted():
    batch = {"input_ids": IDS, "labels": LABELS, "n_images_per_sample": tensor([1, 2])}
    counts = count_tokens([batch, batch])
    assert counts == {"padded_tokens": 16, "real_tokens": 16, "label_tokens": 6, "num_images": 6}
