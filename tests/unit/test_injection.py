"""The injection library against a stub of the CUDA driver and CUPTI: what is met, counted, paid, and left alone.

By counters, not by the clock: a counter of injected time grows by exactly what a toll says, and the log of the stub
says what was paid before each piece of work.
"""

import ctypes
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from cctrain.emulation import injector
from cctrain.emulation.build import build
from cctrain.emulation.injector import CROSSINGS, INJECTION, TOLLS, Injector, attached, counted, left_behind, tolls_text
from cctrain.emulation.injector import tolls as tolls_of
from cctrain.emulation.profile import CLASSES, copy_toll_us, load_profile
from cctrain.errors import PlatformError
from tests.stub_driver import DEVICE, GLOBAL, PAGEABLE, PINNED, RELAXED, Gpu, build_driver, in_own_process, profile

LAUNCHES = (
    *("cuLaunchKernel", "cuLaunchKernel_ptsz", "cuLaunchKernelEx", "cuLaunchKernelEx_ptsz"),
    *("cuLaunchCooperativeKernel", "cuLaunchCooperativeKernel_ptsz", "cuLaunchCooperativeKernelMultiDevice"),
)
FILLS = tuple(
    name
    for shape in ("D8", "D16", "D32", "D2D8", "D2D16", "D2D32")
    for name in (f"cuMemset{shape}_v2", f"cuMemset{shape}Async", f"cuMemset{shape}Async_ptsz")
)
WAITS = ("cuStreamSynchronize", "cuStreamSynchronize_ptsz", "cuEventSynchronize", "cuCtxSynchronize")
COPIES = {
    "h2d_pinned": (DEVICE, PINNED),
    "h2d_pageable": (DEVICE, PAGEABLE),
    "d2h_pinned": (PINNED, DEVICE),
    "d2h_pageable": (PAGEABLE, DEVICE),
    "d2d": (DEVICE, DEVICE),
}
BY_DIRECTION = {
    "h2d": ("cuMemcpyHtoD_v2", "cuMemcpyHtoD_v2_ptds", "cuMemcpyHtoDAsync_v2", "cuMemcpyHtoDAsync_v2_ptsz"),
    "d2h": ("cuMemcpyDtoH_v2", "cuMemcpyDtoH_v2_ptds", "cuMemcpyDtoHAsync_v2", "cuMemcpyDtoHAsync_v2_ptsz"),
    "d2d": ("cuMemcpyDtoD_v2", "cuMemcpyDtoD_v2_ptds", "cuMemcpyDtoDAsync_v2", "cuMemcpyDtoDAsync_v2_ptsz"),
}
SYNCHRONOUS = (
    *("cuMemcpy", "cuMemcpy_ptds", "cuMemcpy2D_v2", "cuMemcpy2DUnaligned_v2_ptds", "cuMemcpy3D_v2_ptds"),
    "cuMemcpy3DPeer",
)
ASYNCHRONOUS = (
    *("cuMemcpyAsync", "cuMemcpyAsync_ptsz", "cuMemcpy2DAsync_v2", "cuMemcpy2DAsync_v2_ptsz", "cuMemcpy3DAsync_v2"),
    "cuMemcpy3DPeerAsync_ptsz",
)
OF_ANY_DIRECTION = (*SYNCHRONOUS, *ASYNCHRONOUS)
BY_PEERS = ("cuMemcpyPeer", "cuMemcpyPeer_ptds", "cuMemcpyPeerAsync", "cuMemcpyPeerAsync_ptsz")
OTHER_COPIES = (
    *("cuMemcpyBatchAsync", "cuMemcpyBatchAsync_v2_ptsz", "cuMemcpy3DBatchAsync_v2", "cuMemcpyWithAttributesAsync"),
    "cuMemcpy2D_v2",  # of which nothing is described
)
ALLOCS_HOST = ("cuMemAllocHost_v2", "cuMemHostAlloc", "cuMemHostRegister_v2")
ALLOCS_DEVICE = ("cuMemAlloc_v2", "cuMemAllocPitch_v2", "cuMemAllocManaged", "cuMemCreate")
NCCL, NCCL_MANGLED = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(args)", "_Z40ncclDevKernel_AllGather_RING_LL4K24Args"
BEGINS = ("cuStreamBeginCapture_v2", "cuStreamBeginCapture_v2_ptsz", "cuStreamBeginCaptureToGraph")
CAPTURED = ("cuLaunchKernel", "cuLaunchKernelEx_ptsz", "cuMemsetD8Async", "cuGraphLaunch", "cuMemcpy2DAsync_v2")
EVERY = {"launch_us": 3.0, "graph_launch_us": 5.0, "wait_us": 7.0, "alloc_host_us": 11.0, "alloc_device_us": 13.0}
TABLE = ((0, 2.0), (4096, 4.0))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start CUDA in this process, with the library injected; for tests in a process of their own."""
    if not shutil.which("gcc"):
        pytest.skip("the stub of the driver needs gcc")
    cupti = build_driver(tmp_path_factory.mktemp("driver"))
    library = build(cupti, tmp_path_factory.mktemp("cache"))

    def start_cuda(tolls="", crossings="", **variables):
        os.environ |= {INJECTION: str(library), TOLLS: tolls, CROSSINGS: str(crossings)}
        os.environ |= {f"STUB_DRIVER_{name.upper()}": str(value) for name, value in variables.items()}
        return Gpu(cupti.library).init()

    start_cuda.library, start_cuda.stub = library, cupti.library
    return start_cuda


def ns(crossed):
    """Nanoseconds injected by each class that did."""
    return {name: round(seconds * 1e9) for name, seconds in crossed["injected_s"].items() if seconds}


def numbers(crossed):
    """The counts that are not zero."""
    plain = {name: value for name, value in crossed.items() if isinstance(value, int) and value}
    return plain | {f"copies {kind}": tuple(each.values()) for kind, each in crossed["copies"].items() if each["count"]}


# What is counted and paid


@in_own_process
def test_every_way_to_launch_is_counted_and_pays_the_launch_toll_alone(start):
    gpu = start()
    gpu.tolls(**EVERY)
    for name in (*LAUNCHES, *FILLS):
        crossed = gpu.crossed(lambda name=name: gpu.call(name))
        assert (numbers(crossed), ns(crossed)) == ({"launches": 1}, {"launch": 3000}), name


@in_own_process
def test_a_graph_launch_pays_once_however_many_kernels_it_holds(start):
    gpu = start()
    gpu.tolls(**EVERY)
    graph = gpu.driver.stub_new_graph()
    gpu.call("cuStreamBeginCapture_v2")
    for _ in range(9):
        gpu.call("cuLaunchKernel")
    gpu.call("cuStreamEndCapture", graph=graph)
    for name in ("cuGraphLaunch", "cuGraphLaunch_ptsz"):
        crossed = gpu.crossed(lambda name=name: gpu.call(name, graph=graph))
        assert (numbers(crossed), ns(crossed)) == ({"graph_launches": 1}, {"graph_launch": 5000})
    assert [work.what for work in gpu.log()[-10:]] == ["done", *["replayed"] * 9]


@in_own_process
def test_waits_and_allocations_pay_their_own_tolls(start):
    gpu = start()
    gpu.tolls(**EVERY)
    for names, count, paid in (
        (WAITS, "waits", {"wait": 7000}),
        (ALLOCS_HOST, "allocs_host", {"alloc": 11000}),
        (ALLOCS_DEVICE, "allocs_device", {"alloc": 13000}),
        (OTHER_COPIES, "other_copies", {}),
    ):
        for name in names:
            crossed = gpu.crossed(lambda name=name: gpu.call(name))
            assert (numbers(crossed), ns(crossed)) == ({count: 1}, paid), name


@in_own_process
def test_calls_that_cross_nothing_are_not_met(start):
    gpu = start()
    gpu.tolls(**EVERY, host_ratio=10.0)
    calls = ("cuEventRecord", "cuStreamWaitEvent", "cuEventQuery", "cuMemFree_v2", "cuLaunchHostFunc")
    assert numbers(gpu.crossed(lambda: [gpu.call(name) for name in calls])) == {}


@in_own_process
def test_a_copy_is_counted_by_direction_and_kind_of_memory_whatever_call_makes_it(start):
    gpu = start()
    for kind, (to, source) in COPIES.items():
        calls = (*BY_DIRECTION[kind[:3]], *OF_ANY_DIRECTION, *(BY_PEERS if kind == "d2d" else ()))
        for name in calls:
            crossed = numbers(gpu.crossed(lambda name=name, to=to, source=source: gpu.copy(name, to, source, 12344)))
            launches = {"launches": 1} if kind == "d2d" else {}
            assert crossed == {**launches, f"copies {kind}": (1, 12344)}, name


@in_own_process
def test_a_copy_within_the_device_pays_as_a_launch(start):
    gpu = start()
    gpu.tolls(launch_us=3.0, copy_h2d_pinned_us=TABLE, copy_d2h_pinned_us=TABLE, d2h_pinned_blocks=True)
    for name in (*BY_DIRECTION["d2d"], *OF_ANY_DIRECTION, *BY_PEERS):
        done = gpu.done_by(lambda name=name: gpu.copy(name, DEVICE, DEVICE))
        assert len(done) == 1, name
        crossed = gpu.crossed(lambda name=name: gpu.copy(name, DEVICE, DEVICE))
        assert ns(crossed) == {"launch": 3000}, name


@in_own_process
def test_a_copy_between_two_places_of_the_host_is_none_of_the_gpus(start):
    gpu = start()
    gpu.tolls(copy_d2h_pinned_us=TABLE, copy_d2h_pageable_us=TABLE, launch_us=3.0)
    for name in OF_ANY_DIRECTION:
        crossed = gpu.crossed(lambda name=name: gpu.copy(name, PINNED, PAGEABLE))
        assert (numbers(crossed), ns(crossed)) == ({"other_copies": 1}, {}), name


@in_own_process
def test_a_copy_of_four_gibibytes_and_more_keeps_its_bytes(start):
    gpu = start()
    crossed = gpu.crossed(lambda: gpu.copy("cuMemcpyHtoDAsync_v2", DEVICE, PINNED, 5 << 30))
    assert crossed["copies"]["h2d_pinned"] == {"count": 1, "bytes": 5 << 30}


@in_own_process
def test_a_copys_toll_is_the_profiles_at_every_size(start):
    gpu, rng = start(), random.Random(5)
    for _ in range(60):
        num = rng.randint(1, 16)
        sizes = sorted(rng.sample(range(1 << rng.randint(5, 40)), num))
        table = tuple((size, rng.choice((0.0, rng.uniform(0, 8)))) for size in sizes)
        kind = rng.choice(list(COPIES)[:4])
        name = {"h2d": "cuMemcpyHtoD_v2", "d2h": "cuMemcpyDtoH_v2"}[kind[:3]]
        gpu.tolls(**{f"copy_{kind}_us": table})
        around = [size + step for size in sizes for step in (-1, 0, 1)]
        for num_bytes in (0, *around, *(rng.randrange(2 << 40) for _ in range(9))):
            us = copy_toll_us(table, num_bytes)
            if num_bytes < 0 or us > 50:
                continue
            paid = ns(gpu.crossed(lambda n=num_bytes, k=kind, name=name: gpu.copy(name, *COPIES[k], n))).get("copy", 0)
            assert paid == pytest.approx(us * 1e3, abs=1.01), (table, num_bytes)


@in_own_process
def test_a_kind_of_copy_without_a_table_pays_nothing_but_is_counted(start):
    gpu = start()
    gpu.tolls(copy_h2d_pinned_us=TABLE)
    for kind in ("h2d_pageable", "d2h_pinned", "d2h_pageable"):
        name = {"h2d": "cuMemcpyHtoDAsync_v2", "d2h": "cuMemcpyDtoHAsync_v2"}[kind[:3]]
        crossed = gpu.crossed(lambda name=name, kind=kind: gpu.copy(name, *COPIES[kind]))
        assert (numbers(crossed), ns(crossed)) == ({f"copies {kind}": (1, 4096)}, {})


@pytest.mark.parametrize("kind", ["h2d_pinned", "d2h_pinned", "d2h_pageable"])
def test_an_asynchronous_copy_waits_for_its_own_stream_only_where_the_profile_says_so(start, kind):
    @in_own_process
    def check():
        gpu = start()
        sync, asynchronous = BY_DIRECTION[kind[:3]][0], (*BY_DIRECTION[kind[:3]][2:], *ASYNCHRONOUS)
        for does_block in (False, True):
            gpu.tolls(**{f"{kind}_blocks": does_block})
            for name in asynchronous:
                done = gpu.done_by(lambda name=name: gpu.copy(name, *COPIES[kind], stream=9))
                drained = [("cuStreamSynchronize", 9)] if does_block else []
                assert [(work.call, work.stream) for work in done] == [(name, 9), *drained]
            assert [work.call for work in gpu.done_by(lambda: gpu.copy(sync, *COPIES[kind]))] == [sync]

    check()


@in_own_process
def test_our_own_wait_for_a_stream_is_no_crossing_and_is_injected_time_of_copies(start):
    gpu = start()
    gpu.tolls(d2h_pinned_blocks=True, wait_us=100.0)
    crossed = gpu.crossed(lambda: gpu.copy("cuMemcpyDtoHAsync_v2", PINNED, DEVICE))
    assert numbers(crossed) == {"copies d2h_pinned": (1, 4096)}
    assert set(ns(crossed)) <= {"copy"}


@in_own_process
def test_only_the_other_kinds_of_copy_block(start):
    gpu = start()
    gpu.tolls(h2d_pinned_blocks=True, d2h_pinned_blocks=True, d2h_pageable_blocks=True)
    done = gpu.done_by(lambda: gpu.copy("cuMemcpyHtoDAsync_v2", DEVICE, PAGEABLE))
    done += gpu.done_by(lambda: gpu.copy("cuMemcpyDtoDAsync_v2", DEVICE, DEVICE))
    assert [work.call for work in done] == ["cuMemcpyHtoDAsync_v2", "cuMemcpyDtoDAsync_v2"]


@in_own_process
def test_a_drained_copy_on_the_threads_own_stream_drains_that_one(start):
    gpu = start()
    gpu.tolls(d2h_pinned_blocks=True)
    done = gpu.done_by(lambda: gpu.copy("cuMemcpyDtoHAsync_v2_ptsz", PINNED, DEVICE, stream=0))
    assert [work.stream for work in done] == [0, 2]  # CU_STREAM_PER_THREAD
    done = gpu.done_by(lambda: gpu.copy("cuMemcpyDtoHAsync_v2", PINNED, DEVICE, stream=0))
    assert [work.stream for work in done] == [0, 0]


@in_own_process
def test_a_launch_pays_before_the_gpu_has_its_work_and_a_wait_after_it(start):
    gpu = start()
    gpu.tolls(**EVERY, copy_h2d_pinned_us=((0, 17.0),))

    def paid_before(*args, **kwargs):
        before = gpu.injector.read()
        (work,) = gpu.done_by(lambda: gpu.call(*args, **kwargs))
        return work.injected_ns - round(sum(counted(before)["injected_s"].values()) * 1e9)

    assert paid_before("cuLaunchKernel") == 3000
    assert paid_before("cuGraphLaunch") == 5000
    assert paid_before("cuMemcpyDtoDAsync_v2", to=DEVICE, source=DEVICE) == 3000
    assert paid_before("cuStreamSynchronize") == 0
    assert paid_before("cuMemAlloc_v2") == 0
    assert paid_before("cuMemcpyHtoD_v2", to=DEVICE, source=PINNED) == 0
    gpu.call("cuLaunchKernel")
    assert gpu.log()[-1].injected_ns > 0


@in_own_process
def test_the_calling_thread_is_busy_for_at_least_what_is_counted(start):
    gpu = start()
    gpu.tolls(launch_us=200.0, wait_us=300.0)
    begin, cpu = time.perf_counter(), time.thread_time()
    crossed = gpu.crossed(lambda: [gpu.call(name) for name in ("cuLaunchKernel", "cuStreamSynchronize") * 20])
    assert ns(crossed) == {"launch": 4_000_000, "wait": 6_000_000}
    assert time.perf_counter() - begin > 0.0099
    assert time.thread_time() - cpu > 0.005  # it spins; some of it another process may have had


@in_own_process
def test_every_class_alone_pays_what_it_pays_among_the_others(start):
    gpu = start()
    gpu.tolls(collective_us=1.0)
    gpu.call("cuLaunchKernel", symbol=NCCL)  # loads the delay kernel
    values = {**EVERY, "copy_h2d_pinned_us": TABLE, "collective_us": 19.0}
    everything = profile(**values)

    def work():
        for name in ("cuLaunchKernel", "cuGraphLaunch", "cuEventSynchronize", *ALLOCS_HOST[:2], ALLOCS_DEVICE[0]):
            gpu.call(name)
        gpu.copy("cuMemcpyHtoD_v2", DEVICE, PINNED, 2048)
        gpu.call("cuLaunchKernel", symbol=NCCL)

    expected = {"launch": 6000, "graph_launch": 5000, "wait": 7000, "alloc": 35000, "copy": 3000, "collective": 19000}
    gpu.injector.set_tolls(everything)
    together = gpu.crossed(work)
    assert ns(together) == expected
    for name, paid in expected.items():
        gpu.injector.set_tolls(everything.of_classes([name]))
        alone = gpu.crossed(work)
        assert ns(alone) == {name: paid}
        assert numbers(alone) == numbers(together)
        gpu.injector.set_tolls(everything.of_classes([each for each in CLASSES if each != name]))
        assert ns(gpu.crossed(work)) == {other: value for other, value in expected.items() if other != name}


@in_own_process
def test_without_tolls_everything_is_counted_and_nothing_is_paid(start):
    gpu = start(tolls=tolls_text(None))
    crossed = gpu.crossed(lambda: [gpu.call(name) for name in (*LAUNCHES, *WAITS, *ALLOCS_HOST)])
    assert numbers(crossed) == {"launches": len(LAUNCHES), "waits": len(WAITS), "allocs_host": len(ALLOCS_HOST)}
    assert ns(crossed) == {}
    assert crossed["in_driver_s"] >= crossed["blocked_s"] >= 0


@in_own_process
def test_another_version_of_a_call_whose_parameters_lie_elsewhere_is_not_met(start):
    """As cuMemcpyHtoD before CUDA 4, whose addresses and sizes have 32 bits."""
    gpu = start()
    crossed = gpu.crossed(lambda: gpu.copy("cuMemcpyHtoD", 0, PINNED, 64))
    assert numbers(crossed) == {}


@in_own_process
def test_calls_of_several_threads_are_all_counted(start):
    gpu = start()
    gpu.tolls(launch_us=1.0)

    def work():
        threads = [threading.Thread(target=lambda: [gpu.call("cuLaunchKernel") for _ in range(500)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    crossed = gpu.crossed(work)
    assert (numbers(crossed), ns(crossed)) == ({"launches": 2000}, {"launch": 2_000_000})


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
    (work,) = gpu.done_by(lambda: gpu.call("cuLaunchKernel", symbol=NCCL))
    assert work.symbol == NCCL
    assert not [each for each in gpu.log() if each.symbol == "cctrain_delay"]


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


# The host


def burn(seconds):
    """CPU time of this thread; returns what it was."""
    begin = time.thread_time_ns()
    while time.thread_time_ns() - begin < seconds * 1e9:
        pass
    return time.thread_time_ns() - begin


@in_own_process
def test_host_code_between_calls_is_stretched_by_the_threads_own_cpu_time(start):
    gpu = start()
    for ratio in (1.1, 2.0):
        gpu.tolls(host_ratio=ratio)
        gpu.call("cuLaunchKernel")
        burnt = burn(0.02)
        paid = ns(gpu.crossed(lambda: gpu.call("cuLaunchKernel")))
        assert set(paid) == {"host"}
        # Of all of it, and of what little this test does around it: a bound that holds on any machine.
        assert paid["host"] >= burnt * (ratio - 1) * 0.999
        assert paid["host"] < 2 * burnt * (ratio - 1)


@in_own_process
def test_a_thread_that_sleeps_is_not_stretched(start):
    gpu = start()
    gpu.tolls(host_ratio=2.0)
    gpu.call("cuLaunchKernel")
    time.sleep(0.1)
    assert ns(gpu.crossed(lambda: gpu.call("cuLaunchKernel"))).get("host", 0) < 50e6


@in_own_process
def test_work_after_a_sleep_is_stretched_again(start):
    gpu = start()
    gpu.tolls(host_ratio=2.0)
    gpu.call("cuLaunchKernel")
    time.sleep(0.1)
    gpu.call("cuLaunchKernel")
    burnt = burn(0.02)
    assert ns(gpu.crossed(lambda: gpu.call("cuLaunchKernel")))["host"] >= burnt * 0.999


@in_own_process
def test_work_after_a_call_that_slept_is_stretched(start):
    gpu = start()
    gpu.tolls(host_ratio=2.0)
    gpu.call("cuLaunchKernel")
    sleep = ctypes.CFUNCTYPE(ctypes.c_uint64)(lambda: time.sleep(0.1) or 0)
    gpu.driver.stub_watch(sleep)  # in the driver's call
    gpu.call("cuMemsetD8Async")
    gpu.driver.stub_watch(None)
    burnt = burn(0.02)
    assert ns(gpu.crossed(lambda: gpu.call("cuLaunchKernel")))["host"] >= burnt * 0.999


@in_own_process
def test_what_copies_lost_without_tolls_is_taken_off_no_later_toll(start):
    gpu = start()
    for _ in range(5000):
        gpu.copy("cuMemcpyHtoDAsync_v2", DEVICE, PINNED)
    gpu.call("cuStreamBeginCapture_v2")
    gpu.tolls(launch_us=200.0)
    gpu.call("cuLaunchKernel")
    gpu.call("cuStreamEndCapture")
    before = time.perf_counter_ns()
    gpu.call("cuLaunchKernel")
    assert time.perf_counter_ns() - before >= 200e3 * 0.99


@in_own_process
def test_each_thread_is_stretched_by_its_own_time_alone(start):
    gpu = start()
    gpu.tolls(host_ratio=2.0)
    paid = {}

    def works():
        gpu.call("cuLaunchKernel")
        burnt = burn(0.05)
        burns.set()
        waited.wait()
        paid["works"] = ns(gpu.crossed(lambda: gpu.call("cuLaunchKernel"))).get("host", 0) / burnt

    def waits():
        gpu.call("cuLaunchKernel")
        burns.wait()
        paid["waits"] = ns(gpu.crossed(lambda: gpu.call("cuLaunchKernel"))).get("host", 0)
        waited.set()

    burns, waited = threading.Event(), threading.Event()
    threads = [threading.Thread(target=target) for target in (works, waits)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paid["works"] >= 0.999
    assert paid["waits"] < 25e6


@in_own_process
def test_the_librarys_own_spinning_is_not_stretched(start):
    gpu = start()
    gpu.tolls(host_ratio=2.0, launch_us=2000.0, wait_us=2000.0)
    gpu.call("cuLaunchKernel")
    paid = ns(gpu.crossed(lambda: [gpu.call(name) for name in ("cuLaunchKernel", "cuEventSynchronize") * 20]))
    assert (paid["launch"], paid["wait"]) == (40_000_000, 40_000_000)
    assert paid["host"] < 40e6  # 80e6 and more, were it


@in_own_process
def test_at_a_ratio_of_one_nothing_is_stretched(start):
    gpu = start()
    gpu.tolls(launch_us=1.0, host_ratio=1.0)
    gpu.call("cuLaunchKernel")
    burn(0.005)
    assert ns(gpu.crossed(lambda: gpu.call("cuLaunchKernel"))) == {"launch": 1000}


@in_own_process
def test_what_the_host_did_before_tolls_were_switched_on_is_not_paid(start):
    gpu = start()
    gpu.tolls(host_ratio=2.0)
    gpu.call("cuLaunchKernel")
    burn(0.02)
    gpu.tolls(host_ratio=3.0)
    assert ns(gpu.crossed(lambda: gpu.call("cuLaunchKernel"))) == {}
    burn(0.002)
    assert ns(gpu.crossed(lambda: gpu.call("cuLaunchKernel")))["host"] >= 3_990_000


# Switching, and what is refused


@in_own_process
def test_tolls_change_from_call_to_call(start):
    gpu = start(tolls=tolls_text(profile(launch_us=2.0)))
    paid = [ns(gpu.crossed(lambda: gpu.call("cuLaunchKernel")))]
    for us in (4.0, 0.0, 8.0):
        gpu.tolls(launch_us=us)
        paid.append(ns(gpu.crossed(lambda: gpu.call("cuLaunchKernel"))))
    gpu.injector.set_tolls(None)
    paid.append(ns(gpu.crossed(lambda: gpu.call("cuLaunchKernel"))))
    assert paid == [{"launch": 2000}, {"launch": 4000}, {}, {"launch": 8000}, {}]


@in_own_process
def test_inside_the_context_manager_tolls_are_paid_and_after_it_none(start):
    gpu = start(tolls=tolls_text(None))
    with tolls_of(profile(launch_us=2.0)) as attached_one:
        gpu.call("cuLaunchKernel")
    gpu.call("cuLaunchKernel")
    with pytest.raises(KeyError), tolls_of(profile(launch_us=2.0)):
        raise KeyError
    gpu.call("cuLaunchKernel")
    crossed = counted(attached_one.read())
    assert (crossed["launches"], ns(crossed)) == (3, {"launch": 2000})


@pytest.mark.parametrize("name", ["b300", "h100", "hopper"])
@in_own_process
def test_a_shipped_profile_is_taken_as_it_is(start, name):
    gpu = start(tolls=tolls_text(load_profile(name)))
    gpu.injector.check()
    crossed = gpu.crossed(lambda: gpu.call("cuLaunchKernel"))
    assert ns(crossed)["launch"] == round(load_profile(name).number("launch_us") * 1e3)


GOOD = "1 2 3 4 5 6 1.1" + " 1 2 0 1 64 2" * 4


@in_own_process
def test_a_text_that_is_no_tolls_is_refused_and_changes_nothing(start):
    gpu = start()
    gpu.tolls(launch_us=2.0)
    take = gpu.injector._library.cctrain_set_tolls
    for text in (
        "",
        "nonsense",
        "1 2 3 4 5 6",
        GOOD[:-2],
        GOOD + " 7",
        GOOD + " x",
        GOOD.replace("1 2 3", "1 two 3"),
        GOOD.replace("1 2 3", "nan 2 3"),
        GOOD.replace("1 2 3", "inf 2 3"),
        GOOD.replace("1 2 3", "-1 2 3"),
        GOOD.replace("1 2 3", "1e300 2 3"),
        GOOD.replace("6 1.1", "6 nan"),
        GOOD.replace("6 1.1", "6 -1"),
        GOOD.replace(" 1 2 0 1 64 2", " 1 17" + " 0 1" * 17, 1),
        GOOD.replace(" 1 2 0 1", " 1 -1 0 1", 1),
        GOOD.replace(" 1 2 0 1", " 1 1.5 0 1", 1),
        GOOD.replace(" 1 2 0 1", " 1 1e300 0 1", 1),
        GOOD.replace(" 1 2 0 1", " 2 2 0 1", 1),
        GOOD.replace(" 0 1 64 2", " 64 1 64 2", 1),
        GOOD.replace(" 0 1 64 2", " 65 1 64 2", 1),
        GOOD.replace(" 0 1 64 2", " 0 -1 64 2", 1),
    ):
        assert take(text.encode()) == 0, text
        assert ns(gpu.crossed(lambda: gpu.call("cuLaunchKernel"))) == {"launch": 2000}, text
    assert take(GOOD.encode()) == 1
    assert ns(gpu.crossed(lambda: gpu.call("cuGraphLaunch")))["graph_launch"] == 2000


@in_own_process
def test_before_cuda_starts_the_library_says_that_it_is_not_at_work(start):
    os.environ |= {INJECTION: str(start.library), TOLLS: ""}
    gpu = Gpu(start.stub)
    with pytest.raises(PlatformError, match="the driver has not loaded it: CUDA is not initialised"):
        gpu.injector.check()
    gpu.init()
    gpu.injector.check()


@in_own_process
def test_a_process_that_was_not_started_for_it_cannot_be_injected_into(start):
    os.environ.pop(INJECTION, None)
    assert attached() is None
    with pytest.raises(PlatformError, match="started without the injection library"), tolls_of(profile()):
        pass
    os.environ[INJECTION] = "/of/a/profiler.so"
    os.environ.pop(TOLLS, None)
    assert attached() is None


@in_own_process
def test_a_library_that_is_none_cannot_be_loaded(start):
    del start
    with pytest.raises(PlatformError, match="cannot be loaded"):
        Injector(Path(__file__))


def test_where_a_profiler_has_cupti_already_nothing_is_injected_and_it_is_said(start, capfd):
    @in_own_process
    def check():
        gpu = start(taken=1)
        with pytest.raises(PlatformError, match=r"refused this one \(CUPTI_ERROR_MULTIPLE.*is a profiler running"):
            gpu.injector.check()
        assert numbers(gpu.crossed(lambda: gpu.call("cuLaunchKernel"))) == {}

    check()
    assert "cctrain: emulation is not at work: CUPTI takes one subscriber" in capfd.readouterr().err


def test_where_cupti_lets_nothing_be_met_or_the_tolls_are_none_it_is_said(start, capfd):
    @in_own_process
    def check(message, **variables):
        with pytest.raises(PlatformError, match=message):
            start(**variables).injector.check()

    check("none of the driver's calls", deaf=1)
    check("CCTRAIN_TOLLS=1 2 3 is not", tolls="1 2 3")
    assert capfd.readouterr().err.count("cctrain: emulation is not at work") == 2


# Counters that outlive their process


def test_the_counters_of_a_killed_process_are_left_behind(start, tmp_path):
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        gpu = start(tolls=tolls_text(profile(launch_us=2.0)), crossings=tmp_path)
        for _ in range(100):
            gpu.call("cuLaunchKernel")
        os.write(writer, b"ready")
        signal.pause()
    assert os.read(reader, 5) == b"ready"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    found = left_behind(tmp_path)
    assert list(found) == [pid]
    assert (found[pid]["launches"], ns(found[pid])) == (100, {"launch": 200_000})


def test_each_process_leaves_its_own_counters(start, tmp_path):
    for count in (1, 2):

        @in_own_process
        def launch(count=count):
            gpu = start(tolls=tolls_text(None), crossings=tmp_path)
            for _ in range(count):
                gpu.call("cuLaunchKernel")

        launch()
    assert sorted(counts["launches"] for counts in left_behind(tmp_path).values()) == [1, 2]


def test_where_the_counters_cannot_be_kept_the_process_counts_all_the_same(start, tmp_path):
    for folder in (tmp_path / "none", "/proc", "x" * 5000):

        @in_own_process
        def check(folder=folder):
            gpu = start(tolls=tolls_text(None), crossings=folder)
            assert numbers(gpu.crossed(lambda: gpu.call("cuLaunchKernel"))) == {"launches": 1}

        check()


def test_files_that_are_no_whole_counters_are_left_out(tmp_path):
    size = 8 * len(injector._WORDS)
    (tmp_path / "12.counters").write_bytes((3).to_bytes(8, "little") + b"\0" * (size - 8))
    (tmp_path / "13.counters").write_bytes(b"\0" * (size - 1))
    (tmp_path / "14.counters").write_bytes(b"")
    (tmp_path / "15.counters").write_bytes(b"\1" * (size + 8))
    (tmp_path / "word.counters").write_bytes(b"\0" * size)
    (tmp_path / "16.counters").mkdir()
    (tmp_path / "17.counters").symlink_to(tmp_path / "nowhere")
    found = left_behind(tmp_path)
    assert list(found) == [12]
    assert found[12]["launches"] == 3
