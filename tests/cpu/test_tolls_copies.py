"""Where pageable copies lie, and in which order."""

from itertools import pairwise

import pytest

from cctrain.tolls.copies import in_turn, places

GIB = 1 << 30


@pytest.mark.parametrize(("num_bytes", "num_places"), [(1 << 20, 64), (16 << 20, 64), (256 << 20, 4), (GIB, 1)])
def test_large_ones_go_over_places_that_do_not_overlap(num_bytes, num_places):
    found = list(places(num_bytes))
    assert len(found) == num_places
    assert found[0] == 0
    assert found[-1] + num_bytes <= GIB
    assert all(after - before >= num_bytes for before, after in pairwise(found))


def test_small_ones_stay_where_caches_hold_them():
    assert list(places(64 << 10)) == [0]


def test_both_arms_of_a_round_copy_in_the_same_place():
    block = in_turn([lambda: 0.0, lambda: 1.0])
    assert [block() for _ in range(6)] == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
