"""The host's clock, which stands for a GPU's where there is none: reading it in another order fails as well."""

import pytest

from cctrain.timing.clock import HostClock


def test_stamps_come_in_order_and_those_that_were_passed_over_are_gone():
    clock = HostClock()
    handles = [clock.mark() for _ in range(5)]
    (third,) = clock.read(handles[2:3])
    fourth, fifth = clock.read(handles[3:])
    assert third <= fourth <= fifth
    assert clock.read([]) == []
    with pytest.raises(AssertionError, match="a stamp is read once"):
        clock.read(handles[:1])
