"""The lengths of a loader's samples, from which the buckets of graphed steps are chosen."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cctrain.engines.sampled_lengths import lengths_for


class Samples:
    """A data set that remembers which samples it was asked for."""

    def __init__(self, size, make):
        self.size, self.make, self.asked = size, make, []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.asked.append(index)
        return self.make(index)


class TestLengths:
    def lengths(self, data, collate=None):
        loader = SimpleNamespace(dataset=data, batch_size=2, collate_fn=collate)
        return lengths_for(loader)

    def test_they_are_chosen_by_samples_from_all_over_the_data_each_read_once(self):
        data = Samples(100_000, lambda index: {"input_ids": [0] * (64 if index < 50_000 else 512)})
        assert self.lengths(data) == (64, 512)
        assert len(data.asked) == len(set(data.asked)) <= 512
        assert max(data.asked) > 99_000

    def test_of_samples_that_are_no_tokens_yet_a_few_are_collated(self):
        data = Samples(1000, lambda index: {"conversation": "x" * (64 if index < 500 else 256)})
        collate = lambda samples: {"labels": torch.zeros(1, len(samples[0]["conversation"]))}  # noqa: E731
        assert self.lengths(data, collate) == (64, 256)
        assert len(set(data.asked)) <= 64
        assert max(data.asked) > 950

    def test_a_sample_that_cannot_be_collated_by_itself_leaves_none(self):
        def collate(samples):
            return {"labels": torch.zeros(len(samples[1]), 8)}

        assert self.lengths(Samples(9, lambda _: {"conversation": "x"}), collate) == ()

    def test_samples_that_are_drawn_at_random_are_afterwards_those_of_before(self):
        def draw(_=None):
            return {"input_ids": [0] * (64 + random.randrange(64) + int(torch.randint(64, ())) + np.random.randint(64))}

        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(3)
        expected = draw()
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(3)
        self.lengths(Samples(9, draw))
        assert draw() == expected

    @pytest.mark.parametrize("data", [iter(()), [], [torch.zeros(3)], [{"input_ids": torch.zeros(2, 3)}]])
    def test_data_that_cannot_tell_have_none(self, data):
        assert self.lengths(data) == ()
