"""The injection library and the host's own code, which is stretched between two calls by the thread's CPU time."""

import ctypes
import threading
import time

from tests.stub_driver import DEVICE, PINNED, in_own_process, ns


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
