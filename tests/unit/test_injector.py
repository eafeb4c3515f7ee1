"""The injection library in the hands of who uses it: tolls switched, what is refused, counters that are left behind."""

import ctypes
import os
import signal
from pathlib import Path

import pytest

from cctrain.emulation import injector
from cctrain.emulation.build import Cupti, build, find_cupti
from cctrain.emulation.injector import INJECTION, TOLLS, Injector, attached, counted, left_behind, tolls_text
from cctrain.emulation.injector import tolls as tolls_of
from cctrain.emulation.profile import load_profile
from cctrain.errors import PlatformError
from tests.stub_driver import NCCL, Gpu, in_own_process, ns, numbers, profile

EMPTY_CALLBACK = Path(__file__).parents[2] / "benchmarks" / "empty_callback.c"

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


@in_own_process
def test_after_the_context_manager_the_tolls_before_it_are_paid_again(start):
    gpu = start(tolls=tolls_text(profile(launch_us=4.0)))
    paid = []

    def launch():
        paid.append(ns(gpu.crossed(lambda: gpu.call("cuLaunchKernel"))))

    with tolls_of(profile(launch_us=2.0)):
        with tolls_of(profile(launch_us=8.0)):
            launch()
        launch()
    launch()
    assert paid == [{"launch": 8000}, {"launch": 2000}, {"launch": 4000}]


@in_own_process
def test_tolls_that_could_not_be_paid_end_with_the_context_manager_too(start):
    gpu = start(tolls="", no_ptx=1)
    of_collectives = tolls_of(profile(launch_us=2.0, collective_us=5.0))
    with pytest.raises(PlatformError, match="a collective could not be delayed"), of_collectives:
        gpu.call("cuLaunchKernel", symbol=NCCL)
    assert ns(gpu.crossed(lambda: gpu.call("cuLaunchKernel"))) == {}


@in_own_process
def test_the_benchmarks_empty_callback_takes_the_librarys_place_and_gives_it_back(start, tmp_path):
    library = build(Cupti(find_cupti().headers, start.stub), tmp_path, EMPTY_CALLBACK)
    gpu = start(library=library)
    launches = []
    for is_empty in (1, 0):
        assert ctypes.CDLL(str(library)).cctrain_meet_with(is_empty) > 0
        launches.append(gpu.crossed(lambda: gpu.call("cuLaunchKernel"))["launches"])
    assert launches == [0, 1]


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
