"""The injection library on streams that a graph is captured from, and before collectives, captured or not."""

import threading
import time

import pytest

from cctrain.errors import PlatformError
from tests.stub_driver import DEVICE, EVERY, GLOBAL, NCCL, PINNED, RELAXED, TABLE, in_own_process, ns, numbers

NCCL_MANGLED = "_Z40ncclDevKernel_AllGather_RING_LL4K24Args"
BEGINS = ("cuStreamBeginCapture_v2", "cuStreamBeginCapture_v2_ptsz", "cuStreamBeginCaptureToGraph")
CAPTURED = ("cuLaunchKernel", "cuLaunchKernelEx_ptsz", "cuMemsetD8Async", "cuGraphLaunch", "cuMemcpy2DAsync_v2")
INSTANTIATES = ("cuGraphInstantiate_v2", "cuGraphInstantiateWithFlags", "cuGraphInstantiateWithParams_ptsz")

# Capture


@in_own_process
def test_a_call_on_a_capturing_stream_becomes_a_node_and_pays_nothing(start):
    gpu = start()
    for begin in BEGINS:
        gpu.tolls(**EVERY, copy_h2d_pinned_us=TABLE, h2d_pinned_blocks=True, collective_us=5.0, host_ratio=5.0)
        assert gpu.call(begin) == 0

        def captured():
            for name in CAPTURED:
                sum(range(20000))  # host code, that would be stretched
                assert gpu.call(name) == 0
            assert gpu.copy("cuMemcpyHtoDAsync_v2", DEVICE, PINNED) == 0
            assert gpu.copy("cuMemcpyAsync", DEVICE, DEVICE) == 0

        crossed = gpu.crossed(captured)
        assert (numbers(crossed), ns(crossed)) == ({"graph_nodes": 7}, {}), begin
        assert gpu.call("cuStreamEndCapture") == 0  # had it been synchronized, the capture would be broken


@in_own_process
def test_host_code_between_captured_calls_is_never_paid_for_afterwards(start):
    gpu = start()
    gpu.tolls(host_ratio=2.0)
    gpu.call("cuLaunchKernel")
    gpu.call("cuStreamBeginCapture_v2")
    gpu.call("cuLaunchKernel")
    before = time.thread_time_ns()
    while time.thread_time_ns() - before < 40e6:
        pass
    gpu.call("cuLaunchKernel")
    crossed = gpu.crossed(lambda: [gpu.call("cuStreamEndCapture"), gpu.call("cuLaunchKernel")])
    assert ns(crossed).get("host", 0) < 20e6


@in_own_process
def test_other_streams_pay_while_one_captures_and_leave_its_capture_whole(start):
    gpu = start()
    gpu.tolls(launch_us=3.0, d2h_pinned_blocks=True, collective_us=5.0)
    gpu.call("cuStreamBeginCapture_v2", mode=GLOBAL)
    gpu.call("cuLaunchKernel")

    def others():
        gpu.call("cuLaunchKernel", stream=8)
        gpu.copy("cuMemcpyDtoHAsync_v2", PINNED, DEVICE, stream=8)
        gpu.call("cuLaunchKernel", stream=8, symbol=NCCL)

    crossed = gpu.crossed(others)
    assert numbers(crossed) == {"launches": 2, "collectives": 1, "copies d2h_pinned": (1, 4096)}
    assert ns(crossed)["launch"] == 6000
    done = [(work.call, work.stream) for work in gpu.log()]
    assert ("cuStreamSynchronize", 8) in done
    assert gpu.call("cuStreamEndCapture") == 0


@in_own_process
def test_what_the_library_does_itself_breaks_no_capture_of_another_thread(start):
    gpu = start()
    gpu.tolls(collective_us=5.0, d2h_pinned_blocks=True)
    results = {}

    def first():
        results["begin"] = gpu.call("cuStreamBeginCapture_v2", stream=7, mode=GLOBAL)
        began.set()
        done.wait()
        results["end"] = gpu.call("cuStreamEndCapture", stream=7)

    began, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=first)
    gpu.driver.stub_destroy_context(0)
    thread.start()
    began.wait()
    for context in (0x200, 0x300):  # in which the delay kernel is not loaded yet
        gpu.driver.cuCtxPushCurrent_v2(context)
        if context == 0x200:
            gpu.call("cuStreamBeginCapture_v2", stream=8, mode=RELAXED)
            assert gpu.call("cuStreamEndCapture", stream=8) == 0
        else:
            gpu.call("cuLaunchKernel", stream=9, symbol=NCCL)
    gpu.copy("cuMemcpyDtoHAsync_v2", PINNED, DEVICE, stream=9)
    gpu.tolls(collective_us=6.0)
    done.set()
    thread.join()
    assert results == {"begin": 0, "end": 0}
    assert [work.symbol for work in gpu.log() if work.stream == 9][:2] == ["cctrain_delay", NCCL]
    assert gpu.injector.check() is None


@in_own_process
def test_a_capture_that_another_thread_fails_to_end_is_still_under_way(start):
    gpu = start()
    gpu.tolls(launch_us=3.0)
    gpu.call("cuStreamBeginCapture_v2")
    results = []
    thread = threading.Thread(target=lambda: results.append(gpu.call("cuStreamEndCapture")))
    thread.start()
    thread.join()
    assert results == [908]  # CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD
    crossed = gpu.crossed(lambda: gpu.call("cuLaunchKernel"))
    assert (numbers(crossed), ns(crossed)) == ({"graph_nodes": 1}, {})
    assert gpu.call("cuStreamEndCapture") == 0
    assert ns(gpu.crossed(lambda: gpu.call("cuLaunchKernel"))) == {"launch": 3000}


@in_own_process
def test_after_a_capture_that_failed_the_stream_pays_again(start):
    gpu = start()
    gpu.tolls(launch_us=3.0)
    gpu.call("cuStreamBeginCapture_v2")
    assert gpu.call("cuStreamSynchronize") == 900  # unsupported, and breaks it
    assert gpu.call("cuStreamEndCapture") == 901
    assert gpu.call("cuStreamEndCapture") != 0  # nothing to end any more
    assert ns(gpu.crossed(lambda: gpu.call("cuLaunchKernel"))) == {"launch": 3000}


# Collectives


@in_own_process
def test_a_collective_is_known_by_its_kernels_name_plain_or_mangled(start):
    gpu = start()
    for symbol, is_one in (
        (NCCL, True),
        (NCCL_MANGLED, True),
        ("ncclKernel_AllReduce_RING_LL_Sum_float", True),
        ("not_ncclDevKernel", False),
        ("_Z9my_kernelPf", False),
        ("_ZN4nccl3fooEv", False),
        ("void at::native::vectorized_elementwise_kernel<4>", False),
        ("", False),
        (None, False),
    ):
        crossed = gpu.crossed(lambda symbol=symbol: gpu.call("cuLaunchKernelEx", symbol=symbol))
        assert numbers(crossed) == {"launches": 1, **({"collectives": 1} if is_one else {})}, symbol


@in_own_process
def test_before_a_collective_its_own_stream_is_delayed_by_a_kernel_that_reads_its_duration(start):
    gpu = start()
    for us in (12.5, 40.0):
        gpu.tolls(collective_us=us)
        gpu.call("cuLaunchKernel", stream=11, symbol=NCCL)
        delay, collective = [work for work in gpu.log() if work.stream == 11][-2:]
        assert (delay.symbol, delay.duration_ns, delay.what) == ("cctrain_delay", us * 1000, "done")
        assert collective.symbol == NCCL


@in_own_process
def test_the_delay_kernel_is_no_crossing(start):
    gpu = start()
    gpu.tolls(collective_us=5.0, launch_us=3.0)
    for _ in range(2):  # the first loads it
        crossed = gpu.crossed(lambda: gpu.call("cuLaunchKernel", symbol=NCCL))
        assert numbers(crossed) == {"launches": 1, "collectives": 1}
        assert ns(crossed) == {"collective": 5000, "launch": 3000}


@in_own_process
def test_without_a_toll_no_delay_is_launched(start):
    gpu = start()
    gpu.tolls(launch_us=3.0)
    first, second = (gpu.done_by(lambda: gpu.call("cuLaunchKernel", symbol=NCCL)) for _ in range(2))
    assert [work.symbol for work in second] == [NCCL]
    # Made ready with the first one: later it would take time and memory in the middle of a tolled step.
    assert [work.duration_ns for work in first if work.symbol == "cctrain_delay"] == [0]
    assert first[-1].symbol == NCCL
    gpu.tolls(collective_us=12.5)
    tolled = gpu.done_by(lambda: gpu.call("cuLaunchKernel", symbol=NCCL))
    assert [(work.symbol, work.duration_ns) for work in tolled][:1] == [("cctrain_delay", 12500)]
    assert [work.symbol for work in tolled] == ["cctrain_delay", NCCL]


@in_own_process
def test_a_captured_collective_follows_the_tolls_of_the_day(start):
    gpu = start()  # no tolls while it is captured
    graph = gpu.driver.stub_new_graph()
    gpu.call("cuStreamBeginCapture_v2")
    crossed = gpu.crossed(lambda: gpu.call("cuLaunchKernel", symbol=NCCL))
    assert numbers(crossed) == {"graph_nodes": 1}
    assert gpu.call("cuStreamEndCapture", graph=graph) == 0
    waited = []
    for values in ({}, {"collective_us": 12.5}, {"collective_us": 40.0, "launch_us": 1.0}, {"launch_us": 9.0}):
        gpu.tolls(**values)
        replayed = gpu.done_by(lambda: gpu.call("cuGraphLaunch", graph=graph))[1:]
        assert [work.symbol for work in replayed] == ["cctrain_delay", NCCL]
        waited.append(replayed[0].duration_ns)
    assert waited == [0, 12500, 40000, 0]


def waits(gpu, *symbols):
    """What each node of a graph of these waits for. An event is recorded beside the stream, which waits for it then, as
    NCCL has it after each collective; of the event of another stream's collective the stream knows nothing else."""

    def capture():
        gpu.call("cuStreamBeginCapture_v2")
        for symbol in symbols:
            gpu.call("cuEventRecordWithFlags" if symbol.startswith("event") else "cuLaunchKernel", symbol=symbol)
            if symbol == "event elsewhere":
                gpu.driver.stub_wait_for_last_alone(7)
        assert gpu.call("cuStreamEndCapture") == 0

    return [(work.symbol, work.after) for work in gpu.done_by(capture) if work.what == "captured"]


@in_own_process
def test_a_captured_delay_waits_for_the_work_before_it_and_its_collective_for_nccls_events_too(start):
    assert waits(start(), "first", NCCL, "event 1", NCCL, "event 2", "last") == [
        ("first", ""),
        ("cctrain_delay", "first"),
        (NCCL, "cctrain_delay"),
        ("event 1", NCCL),
        ("cctrain_delay", NCCL),
        (NCCL, "cctrain_delay; event 1"),
        ("event 2", NCCL),
        ("last", f"{NCCL}; event 2"),
    ]


@in_own_process
def test_a_captured_delay_waits_for_an_event_where_that_is_all_there_is_before_it(start):
    assert waits(start(), "event", NCCL) == [("event", ""), ("cctrain_delay", "event"), (NCCL, "cctrain_delay")]


@in_own_process
def test_a_captured_delay_waits_for_another_streams_collective_of_which_it_has_the_event_alone(start):
    made = waits(start(), "elsewhere", "event elsewhere", NCCL)
    assert made[-2:] == [("cctrain_delay", "elsewhere"), (NCCL, "cctrain_delay; event elsewhere")]


@in_own_process
def test_where_a_stream_waits_for_more_than_is_looked_through_the_delay_waits_for_all_of_it(start):
    events = [f"event {number}" for number in range(20)]
    made = waits(start(), "first", *events, NCCL)
    assert made[-2:] == [("cctrain_delay", "; ".join(["first", *events])), (NCCL, "cctrain_delay")]


@in_own_process
def test_what_a_broken_capture_waits_for_is_not_looked_at(start):
    gpu = start()
    gpu.call("cuStreamBeginCapture_v2")
    assert gpu.call("cuStreamSynchronize") == 900  # unsupported, and breaks it
    gpu.call("cuLaunchKernel", symbol=NCCL)
    assert gpu.call("cuStreamEndCapture") == 901


@in_own_process
def test_where_the_driver_cannot_tell_what_a_stream_waits_for_the_delay_waits_for_all_of_it(start):
    made = waits(start(lossy=1), NCCL, "event", NCCL)
    assert made[-2:] == [("cctrain_delay", f"{NCCL}; event"), (NCCL, "cctrain_delay")]


@in_own_process
def test_collectives_in_a_graph_are_counted_and_charged_at_each_of_its_launches(start):
    gpu = start()
    gpu.tolls(collective_us=5.0)
    for how in INSTANTIATES:
        with_three, with_none = instantiated(gpu, how, 3), instantiated(gpu, how, 0)
        launches = (with_three, with_three, with_none)
        crossed = gpu.crossed(lambda graphs=launches: [gpu.call("cuGraphLaunch", graph=each) for each in graphs])
        assert numbers(crossed) == {"graph_launches": 3, "collectives": 6}, how
        assert ns(crossed) == {"collective": 30000}


def capture(gpu, graph, num_collectives):
    """A graph of so many, between two other kernels."""
    gpu.call("cuStreamBeginCapture_v2")
    for symbol in ("first", *([NCCL] * num_collectives), "last"):
        gpu.call("cuLaunchKernel", symbol=symbol)
    assert gpu.call("cuStreamEndCapture", graph=graph) == 0


def instantiated(gpu, how, num_collectives):
    """Such a graph as it is launched."""
    captured, graph = gpu.driver.stub_new_graph(), gpu.driver.stub_new_graph()
    capture(gpu, captured, num_collectives)
    assert numbers(gpu.crossed(lambda: gpu.call(how, to=graph, graph=captured))) == {}
    return graph


@in_own_process
def test_a_graph_in_the_place_of_one_that_is_gone_has_its_own_collectives(start):
    gpu = start()
    graph, counts = gpu.driver.stub_new_graph(), []
    for num_collectives in (2, 0, 1):
        capture(gpu, graph, num_collectives)
        counts.append(gpu.crossed(lambda: gpu.call("cuGraphLaunch", graph=graph))["collectives"])
    assert counts == [2, 0, 1]


@in_own_process
@pytest.mark.parametrize("destroy", ["cuGraphDestroy", "cuGraphExecDestroy"])
def test_a_graph_that_is_destroyed_leaves_its_collectives_to_none(start, destroy):
    gpu = start()
    graph = gpu.driver.stub_new_graph()
    capture(gpu, graph, 2)
    gpu.call(destroy, graph=graph)
    assert gpu.crossed(lambda: gpu.call("cuGraphLaunch", graph=graph))["collectives"] == 0


@in_own_process
def test_collectives_of_a_capture_that_broke_are_no_other_graphs(start):
    gpu = start()
    gpu.call("cuStreamBeginCapture_v2")
    gpu.call("cuLaunchKernel", symbol=NCCL)
    assert gpu.call("cuStreamSynchronize") == 900  # unsupported, and breaks it
    assert gpu.call("cuStreamEndCapture") == 901
    graph = gpu.driver.stub_new_graph()
    capture(gpu, graph, 0)
    assert gpu.crossed(lambda: gpu.call("cuGraphLaunch", graph=graph))["collectives"] == 0


@in_own_process
def test_more_graphs_than_it_keeps_in_mind_lose_the_oldest_counts_only(start):
    gpu, graphs = start(), []
    for _ in range(300):
        graphs.append(gpu.driver.stub_new_graph())
        capture(gpu, graphs[-1], 1)
    launched = [gpu.crossed(lambda graph=graph: gpu.call("cuGraphLaunch", graph=graph)) for graph in graphs]
    assert [crossed["collectives"] for crossed in launched] == [0] * 44 + [1] * 256
    for _ in range(300):
        capture(gpu, gpu.driver.stub_new_graph(), 0)
    assert gpu.crossed(lambda: gpu.call("cuGraphLaunch", graph=graphs[-1]))["collectives"] == 1


@in_own_process
def test_a_context_that_is_gone_is_left_alone_when_tolls_change(start):
    gpu = start()
    gpu.tolls(collective_us=5.0)
    for context in (0x200, 0x300):
        gpu.driver.cuCtxPushCurrent_v2(context)
        gpu.call("cuLaunchKernel", symbol=NCCL)
    gpu.driver.stub_destroy_context(0x200)
    depth = gpu.driver.stub_depth_of_contexts()
    gpu.tolls(collective_us=7.0)
    assert gpu.driver.stub_depth_of_contexts() == depth
    gpu.call("cuLaunchKernel", symbol=NCCL)
    assert [work.duration_ns for work in gpu.log() if work.symbol == "cctrain_delay"][-1] == 7000


@in_own_process
def test_where_the_delay_kernel_does_not_load_the_next_switch_of_tolls_says_so(start):
    gpu = start(no_ptx=1)
    gpu.tolls(collective_us=5.0)
    crossed = gpu.crossed(lambda: gpu.call("cuLaunchKernel", symbol=NCCL))
    assert ns(crossed) == {}
    with pytest.raises(PlatformError, match="a collective could not be delayed"):
        gpu.tolls(collective_us=5.0)
