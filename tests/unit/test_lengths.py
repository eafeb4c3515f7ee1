"""The few lengths that micro-batches are padded to."""

import itertools
import random

import pytest

from cctrain.steps.lengths import MOST_LENGTHS, bucket_lengths, next_length


def tokens(lengths, buckets):
    """What is computed when a micro-batch of each of `lengths` is padded to its bucket."""
    return sum(next_length(length, buckets) for length in lengths)


def best_of_all(lengths):
    """Every choice of at most four multiples of 32, the longest among them, tried."""
    ends = sorted({-(-length // 32) * 32 for length in lengths})
    choices = (
        (*inner, ends[-1]) for count in range(MOST_LENGTHS) for inner in itertools.combinations(ends[:-1], count)
    )
    return min(tokens(lengths, choice) for choice in choices)


def micro_batches(lengths, rows):
    """The lengths of many drawn micro-batches, other than those the buckets were chosen by."""
    draw = random.Random(7)
    return [max(draw.choices(lengths, k=rows)) for _ in range(4000)]


@pytest.mark.parametrize("seed", range(8))
def test_no_other_four_lengths_pad_less(seed):
    """Over the micro-batches that the choice is made by."""
    draw = random.Random(seed)
    lengths = [32 * multiple for multiple in draw.sample(range(1, 40), 9)]
    drawn = random.Random(0)  # as the buckets are chosen
    seen = [max(drawn.choices(lengths, k=1)) for _ in range(512)]
    seen.remove(max(seen))  # one is replaced by the longest sample
    seen.append(max(lengths))
    assert tokens(seen, bucket_lengths(lengths, rows=1)) == best_of_all(seen)


@pytest.mark.parametrize("length", [1, 31, 100, 4096])
def test_samples_all_of_one_length_are_not_padded(length):
    assert bucket_lengths([length] * 50, rows=4) == (length,)
    assert next_length(length, (length,)) == length


@pytest.mark.parametrize("rows", [1, 2, 4, 16])
@pytest.mark.parametrize("most", [40, 500, 9000])
def test_at_most_four_rising_multiples_of_32_cover_the_longest_sample(most, rows):
    draw = random.Random(most)
    lengths = [draw.randint(1, most) for _ in range(300)]
    buckets = bucket_lengths(lengths, rows)
    assert 1 <= len(buckets) <= MOST_LENGTHS
    assert list(buckets) == sorted(set(buckets))
    assert all(bucket % 32 == 0 for bucket in buckets)
    assert max(lengths) <= buckets[-1] < max(lengths) + 32


def test_one_long_sample_among_many_short_ones_is_covered():
    assert bucket_lengths([100] * 9999 + [5000], rows=1)[-1] == 5024


def test_two_lengths_far_apart_have_a_bucket_each():
    assert bucket_lengths([64] * 10 + [2048] * 10, rows=1) == (64, 2048)


def test_every_rank_and_every_run_gets_the_same_buckets():
    lengths = [random.Random(1).randint(20, 700) for _ in range(50)] + [3, 900]
    random.seed(5)
    first = bucket_lengths(lengths, rows=4)
    random.seed(6)
    assert bucket_lengths(lengths, rows=4) == first


def test_choosing_buckets_leaves_the_programs_random_numbers_alone():
    random.seed(5)
    bucket_lengths(list(range(1, 400)), rows=4)
    after = random.random()
    random.seed(5)
    assert after == random.random()


@pytest.mark.parametrize("rows", [1, 4])
def test_padding_of_evenly_spread_lengths_stays_near_a_quarter(rows):
    """Four buckets of equal width pad an evenly spread length by an eighth of the longest on average, which is a
    quarter of what is real; the rest allows for the draw."""
    lengths = list(range(1, 2049))
    drawn = micro_batches(lengths, rows)
    assert tokens(drawn, bucket_lengths(lengths, rows)) < 1.3 * sum(drawn)


def test_longer_micro_batches_move_the_buckets_up():
    lengths = list(range(1, 1025))
    assert bucket_lengths(lengths, rows=8)[0] > bucket_lengths(lengths, rows=1)[0]


@pytest.mark.parametrize(("length", "bucket"), [(1, 64), (64, 64), (65, 128), (128, 128), (129, 129)])
def test_a_micro_batch_goes_to_the_next_bucket_and_one_longer_than_all_stays_itself(length, bucket):
    assert next_length(length, (64, 128)) == bucket


def test_without_buckets_every_micro_batch_stays_itself():
    assert next_length(77, ()) == 77
