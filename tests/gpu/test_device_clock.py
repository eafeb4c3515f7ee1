"""The GPU's stamps against the host's clock, read where the device stands still."""

import time

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

SPIN_CYCLES = 200_000_000  # about a tenth of a second


@pytest.fixture
def clock():
    from cctrain.timing.device_clock import DeviceClock

    return DeviceClock(capacity=64)


def test_stamps_agree_with_the_host_at_synchronized_points(clock):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    first = clock.mark()
    for _ in range(5):
        torch.cuda._sleep(SPIN_CYCLES)
    last = clock.mark()
    torch.cuda.synchronize()
    wall = time.perf_counter() - begin
    stamps = clock.read(list(range(first, last + 1)))
    assert stamps[-1] - stamps[0] == pytest.approx(wall, rel=0.01)


def test_marking_and_reading_wait_for_nothing(clock):
    torch.cuda._sleep(20 * SPIN_CYCLES)
    ahead = clock.mark()
    assert clock.read([ahead]) == [None]
    torch.cuda.synchronize()
    assert clock.read([ahead])[0] is not None


def test_the_ring_is_reused_and_every_stamp_is_later_than_the_one_before(clock):
    seen = []
    for _ in range(10):
        handles = [clock.mark() for _ in range(20)]
        torch.cuda.synchronize()
        seen += clock.read(handles)
    assert None not in seen
    assert seen == sorted(seen)


def test_a_mark_that_nobody_read_and_one_not_reached_yet_give_no_stamp_of_the_lap_before(clock):
    for _ in range(100):
        clock.mark()  # dropped, as one of `resume` before `pause` is
        handle = clock.mark()
        torch.cuda.synchronize()
        assert clock.read([handle])[0] is not None
    torch.cuda._sleep(20 * SPIN_CYCLES)
    ahead = [clock.mark() for _ in range(40)]
    assert clock.read(ahead) == [None] * 40
    torch.cuda.synchronize()
    assert None not in clock.read(ahead)


def test_stamps_inside_a_graph_are_new_with_each_replay(clock):
    graph = torch.cuda.CUDAGraph()
    before = clock.mark()
    with torch.cuda.graph(graph):
        clock.stamp()
        torch.cuda._sleep(SPIN_CYCLES)
        clock.stamp()
    handles = []
    for _ in range(3):
        graph.replay()
        handles += clock.replayed(2)
    after = clock.mark()
    torch.cuda.synchronize()
    stamps = clock.read([before, *handles, after])
    assert None not in stamps
    assert stamps == sorted(stamps)
    spans = [end - begin for begin, end in zip(stamps[1:7:2], stamps[2:7:2], strict=True)]
    assert all(span == pytest.approx(spans[0], rel=0.05) and span > 0.01 for span in spans)
