"""The injection library against a stub of the CUDA driver and CUPTI: which calls are met, counted, and pay what.

By counters, not by the clock: a counter of injected time grows by exactly what a toll says, and the log of the stub
says what was paid before each piece of work.
"""

import random
import threading
import time

import pytest

from cctrain.emulation.injector import counted, tolls_text
from cctrain.emulation.profile import CLASSES, copy_toll_us
from tests.stub_driver import DEVICE, EVERY, NCCL, PAGEABLE, PINNED, TABLE, in_own_process, ns, numbers, profile

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
