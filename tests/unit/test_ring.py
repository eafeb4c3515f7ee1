"""Stamps of a ring, lap after lap, with a device of our own."""

import pytest

from cctrain.timing.ring import RingReader


class Device:
    """Fills a ring of 8 slots; what it has not been told to reach yet still holds the lap before."""

    def __init__(self):
        self.slots, self.count = [0] * 8, 0
        self.reader = RingReader(8, lambda begin, end: self.slots[begin:end])

    def reach(self, *stamps):
        for stamp in stamps:
            self.slots[self.count % 8] = stamp
            self.count += 1


def test_stamps_are_read_lap_after_lap():
    device, seen = Device(), []
    for number in range(0, 60, 5):
        device.reach(*range(100 + number, 105 + number))
        seen += device.reader.read(list(range(number, number + 5)))
    assert seen == list(range(100, 160))


def test_a_stamp_that_nobody_reads_is_not_taken_for_one_of_the_next_lap():
    device = Device()
    device.reach(*range(100, 108))
    assert device.reader.read([1, 3, 7]) == [101, 103, 107]
    assert device.reader.read([8, 10]) == [None, None]
    device.reach(108)
    assert device.reader.read([8, 10]) == [108, None]
    device.reach(109, 110)
    assert device.reader.read([10]) == [110]


def test_neighbours_of_the_same_tick_are_both_new():
    device = Device()
    for number in range(0, 24, 4):
        device.reach(*[100 + number] * 4)
        assert device.reader.read([number, number + 1]) == [100 + number] * 2
        assert device.reader.read([number + 2, number + 3]) == [100 + number] * 2


def test_a_copy_that_missed_a_stamp_and_caught_a_later_one_is_asked_again():
    device = Device()
    device.reach(100, 101, 102)
    device.slots[1] = 0
    assert device.reader.read([0, 1, 2]) == [100, None, None]
    device.slots[1] = 101
    assert device.reader.read([1, 2]) == [101, 102]


def test_stamps_that_were_written_over_are_refused():
    device = Device()
    device.reach(*range(100, 109))
    with pytest.raises(RuntimeError, match="9 stamps since the last read are more than the ring's 8"):
        device.reader.read([0, 8])


def test_nothing_is_asked_for():
    assert Device().reader.read([]) == []
