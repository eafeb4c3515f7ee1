"""Readings of GPUs: what a run's sum up to, the thread that takes them, and what NVML answers (a stub, see there)."""

import json
import subprocess
import sys
import threading

import pytest

from cctrain.platform.telemetry import TELEMETRY_FILE, Telemetry
from cctrain.readings import reduce_readings
from tests.stub_nvml import DRIVER_NOT_LOADED, GPU_IS_LOST, NOT_SUPPORTED, StubNvml

PROBE = """
import sys
from pathlib import Path
from cctrain.platform.telemetry import Telemetry
with Telemetry(Path(sys.argv[1]), int(sys.argv[2])):
    pass
assert "torch" not in sys.modules
"""
ENERGY, TEMPERATURE = "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetTemperature"


def gpu(energy_j, **rest):
    facts = {"sm_clock_mhz": 1900, "memory_clock_mhz": 3201, "temperature_c": 60, "power_w": 500.0}
    return {"energy_j": energy_j, **facts, "clocks_event_reasons": 0, **rest}


def line(at, *gpus):
    return json.dumps({"time": at, "gpus": gpus})


def constant_power(num_seconds, watts=500):
    return [line(1000 + second, gpu(7e6 + watts * second)) for second in range(num_seconds + 1)]


# Reduction


def test_constant_power_over_a_span_is_its_joules():
    use = reduce_readings(constant_power(10), [(1002, 1008)])
    assert (use.seconds, use.num_readings) == (6, 7)
    assert use.total.energy_j == 3000
    assert use.total.power_w == 500
    assert use.gpus[0] == use.total


def test_a_span_that_begins_and_ends_between_readings_is_interpolated():
    lines = [line(1000, gpu(0)), line(1001, gpu(100)), line(1002, gpu(500))]
    use = reduce_readings(lines, [(1000.5, 1001.25)])
    assert use.total.energy_j == 100 / 2 + 400 / 4
    assert use.num_readings == 1


def test_a_span_between_two_readings_has_energy_but_no_clocks():
    use = reduce_readings([line(1000, gpu(0)), line(1001, gpu(100))], [(1000.25, 1000.75)])
    assert (use.total.energy_j, use.num_readings) == (50, 0)
    assert (use.total.power_w, use.total.sm_clock_mhz, use.total.throttle_share) == (None, None, None)


def test_what_happens_between_spans_is_left_out():
    counter = [0, 500, 1000, 1100, 1200, 1700, 2200]  # validation in the middle draws 100 W, hot and at a low clock
    facts = [{"sm_clock_mhz": 900, "temperature_c": 90} if second == 3 else {} for second in range(7)]
    lines = [line(1000 + second, gpu(counter[second], **facts[second])) for second in range(7)]
    use = reduce_readings(lines, [(1004, 1006), (1000, 1002)])
    assert (use.seconds, use.total.energy_j) == (4, 2000)
    assert use.total.sm_clock_mhz == {"min": 1900, "median": 1900, "max": 1900}
    assert use.total.max_temperature_c == 60


def test_adjoining_and_overlapping_spans_count_once():
    lines = constant_power(10)
    whole = reduce_readings(lines, [(1001, 1009)])
    assert reduce_readings(lines, [(1001, 1003), (1003, 1007), (1006, 1009), (1007, 1008)]) == whole


@pytest.mark.parametrize("span", [(999.9, 1005), (1005, 1010.1), (2000, 2001), (1005, float("inf"))])
def test_a_span_that_the_readings_do_not_cover_has_no_energy(span):
    assert reduce_readings(constant_power(10), [(1001, 1002), span]).total.energy_j is None


def test_a_counter_that_goes_backwards_inside_a_span_gives_no_energy():
    lines = [line(1000 + second, gpu(joules)) for second, joules in enumerate([500, 1000, 20, 520, 1020])]
    assert reduce_readings(lines, [(1000.5, 1003)]).total.energy_j is None
    assert reduce_readings(lines, [(1000, 1001), (1002, 1004)]).total.energy_j == 1500


def test_readings_too_far_apart_do_not_say_where_between_them_a_span_began_or_ended():
    lines = [line(at, gpu(500 * (at - 1000))) for at in (1000, 1060, 1061, 1120, 1121)]
    for span in [(1030, 1060.5), (1060.5, 1100)]:
        assert reduce_readings(lines, [span]).total.energy_j is None
    assert reduce_readings(lines, [(1060.5, 1120.5)]).total.energy_j == 30000


def test_without_one_gpus_counter_there_is_no_total_but_clocks_are_kept():
    lines = [
        line(1000 + second, gpu(100 * second, power_w=100), gpu(None, sm_clock_mhz=1500 + second, power_w=None))
        for second in range(3)
    ]
    use = reduce_readings(lines, [(1000, 1002)])
    assert [each.energy_j for each in use.gpus] == [200, None]
    assert (use.total.energy_j, use.total.power_w) == (None, None)
    assert use.gpus[1].sm_clock_mhz == {"min": 1500, "median": 1501, "max": 1502}
    assert use.total.sm_clock_mhz == {"min": 1500, "median": 1701, "max": 1900}


def test_two_gpus_add_up():
    lines = [line(1000 + second, gpu(100 * second, power_w=100), gpu(300 * second, power_w=300)) for second in range(3)]
    use = reduce_readings(lines, [(1000.5, 1001.5)])
    assert (use.total.energy_j, use.total.power_w) == (400, 400)


def test_throttle_reasons_have_their_share_of_readings_and_idling_is_none():
    bits = [0, 1, 4, 4 | 64, 1 | 4096]
    lines = [line(1000 + second, gpu(0, clocks_event_reasons=each)) for second, each in enumerate(bits)]
    use = reduce_readings(lines, [(1000, 1004)])
    assert use.total.throttle_share == {"sw_power_cap": 0.4, "hw_thermal_slowdown": 0.2, "bit_12": 0.2}
    assert reduce_readings(lines, [(1000, 1001)]).total.throttle_share == {}


def test_every_bit_of_nvml_is_named_after_it():
    pynvml = pytest.importorskip("pynvml")
    for name, bit in [(name, bit) for name, bit in vars(pynvml).items() if name.startswith("nvmlClocksThrottleReason")]:
        if not bit or name.endswith(("All", "GpuIdle", "UserDefinedClocks")):
            continue
        lines = [line(at, gpu(0, clocks_event_reasons=bit)) for at in (1000, 1001)]
        ((found, share),) = reduce_readings(lines, [(1000, 1001)]).total.throttle_share.items()
        assert found.replace("_", "") == name.removeprefix("nvmlClocksThrottleReason").lower()
        assert share == 1


@pytest.mark.parametrize(
    "bad",
    [
        line(1002.5, gpu(8e9))[:-20],  # cut short
        "",
        "null",
        "[1002.5]",
        json.dumps({"time": "1002.5", "gpus": [gpu(0)]}),
        json.dumps({"time": True, "gpus": [gpu(0)]}),
        json.dumps({"time": float("nan"), "gpus": [gpu(0)]}),
        json.dumps({"time": float("inf"), "gpus": [gpu(0)]}),
        json.dumps({"time": 10**400, "gpus": [gpu(0)]}),
        json.dumps({"time": 1002.5, "gpus": {"0": gpu(0)}}),
        json.dumps({"time": 1002.5}),
        line(1002.5, gpu(0), gpu(0)),  # of another machine
        line(1002.5),
        line(1002.5, "H200"),
        line(1002.5, {}),
        line(1002.5, dict.fromkeys(gpu(0), float("nan"))),
        line(1002.5, dict.fromkeys(gpu(0), "12")),
        line(1002.5, dict.fromkeys(gpu(0), True)),
        line(1002.5, dict.fromkeys(gpu(0), -1)),
        line(1002.5, {key: [12] for key in gpu(0)}),
        line(1002.5, dict.fromkeys(gpu(0), 10**400)),
    ],
)
def test_a_bad_line_is_left_out(bad):
    lines = constant_power(4)
    use = reduce_readings([*lines[:3], bad, *lines[3:]], [(1000, 1004)])
    assert use.total == reduce_readings(lines, [(1000, 1004)]).total
    assert use.total.energy_j == 2000


def test_without_a_reading_or_a_span_there_is_nothing_to_say():
    assert reduce_readings([], [(1000, 1001)]) is None
    assert reduce_readings([line(1000), line(1001)], [(1000, 1001)]) is None
    assert reduce_readings(constant_power(3), []) is None
    assert reduce_readings(constant_power(3), [(1001, 1001), (1002, float("nan"))]) is None


# The thread


class FakeGpus:
    """Reads what it is given, one after the other, and says when it has come to the end; then it fails."""

    def __init__(self, *readings):
        self._left = list(readings)
        self.is_read = threading.Event()

    def __call__(self):
        reading = self._left.pop(0)
        if not self._left:
            self.is_read.set()
        return reading


def recorded(run_dir):
    return [json.loads(line) for line in (run_dir / TELEMETRY_FILE).read_text().splitlines()]


def test_the_first_reading_is_taken_at_once_and_the_last_at_the_end(tmp_path):
    gpus, times = FakeGpus([gpu(1)], [gpu(2)]), iter([1000.0, 1060.0])
    with Telemetry(tmp_path, 1, gpus, clock=lambda: next(times), interval_s=3600):
        pass
    assert recorded(tmp_path) == [{"time": 1000, "gpus": [gpu(1)]}, {"time": 1060, "gpus": [gpu(2)]}]


def test_readings_go_on_until_one_fails_and_the_run_does_not_notice(tmp_path, capfd):
    gpus = FakeGpus(*([gpu(number)] for number in range(5)))
    with Telemetry(tmp_path, 1, gpus, interval_s=0.001):
        assert gpus.is_read.wait(30)
    assert [reading["gpus"][0]["energy_j"] for reading in recorded(tmp_path)] == [0, 1, 2, 3, 4]
    assert capfd.readouterr() == ("", "")


def test_a_run_directory_that_cannot_be_written_is_not_noticed_either(tmp_path, capfd):
    gpus = FakeGpus([gpu(1)])
    with Telemetry(tmp_path / "missing", 1, gpus, interval_s=0.001):
        assert gpus.is_read.wait(30)
    assert capfd.readouterr() == ("", "")


def test_the_exception_that_ends_a_run_is_let_through(tmp_path):
    with pytest.raises(KeyboardInterrupt), Telemetry(tmp_path, 1, FakeGpus([gpu(1)], [gpu(2)]), interval_s=3600):
        raise KeyboardInterrupt
    assert len(recorded(tmp_path)) == 2


def test_without_gpus_there_is_neither_thread_nor_file(tmp_path):
    gpus = FakeGpus([], [])
    with Telemetry(tmp_path, 0, gpus, interval_s=0.001):
        assert "cctrain-telemetry" not in [thread.name for thread in threading.enumerate()]
    assert not gpus.is_read.is_set()
    assert not list(tmp_path.iterdir())


# NVML


@pytest.fixture(scope="module")
def nvml(tmp_path_factory):
    return StubNvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def read_twice(tmp_path):
    """The GPUs of the two readings that a process of its own takes, the first and the last; none without a file."""

    def read(environment, num_gpus=1):
        command = [sys.executable, "-W", "error", "-c", PROBE, str(tmp_path), str(num_gpus)]
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return [reading["gpus"] for reading in recorded(tmp_path)] if (tmp_path / TELEMETRY_FILE).exists() else []

    return read


def test_nvmls_answers_are_in_joules_megahertz_celsius_and_watts(nvml, read_twice):
    environment = nvml.environment(gpus=2, energy_step_mj=1500, power_mw=650500, clocks_event_reasons=4)
    first, last = read_twice(environment, num_gpus=2)
    rest = {"power_w": 650.5, "clocks_event_reasons": 4}
    assert first == [gpu(1.5, **rest)] * 2
    assert last == [gpu(3.0, **rest)] * 2


def test_energy_of_the_stub_is_power_times_time(nvml, read_twice, tmp_path):
    read_twice(nvml.environment(power_mw=700_000))
    first, last = recorded(tmp_path)
    joules = last["gpus"][0]["energy_j"] - first["gpus"][0]["energy_j"]
    assert 0 <= joules < 700 * 60


@pytest.mark.parametrize("how", [{"fails": {ENERGY: NOT_SUPPORTED}}, {"lacks": [ENERGY]}])
def test_energy_that_the_driver_does_not_count_is_null(nvml, read_twice, how):
    first, last = read_twice(nvml.environment(**how))
    assert first == last == [gpu(None)]


def test_a_lost_gpu_leaves_the_other_its_readings(nvml, read_twice):
    fails = {f"{ENERGY}/1": GPU_IS_LOST, f"{TEMPERATURE}/1": GPU_IS_LOST, f"{TEMPERATURE}V/1": GPU_IS_LOST}
    (_, last) = read_twice(nvml.environment(gpus=2, fails=fails, energy_step_mj=1000), num_gpus=2)
    assert last == [gpu(2.0), gpu(None, temperature_c=None)]


@pytest.mark.parametrize("lacks", [["nvmlDeviceGetCurrentClocksEventReasons"], [TEMPERATURE]])
def test_an_older_or_newer_function_answers_where_one_is_missing(nvml, read_twice, lacks):
    (_, last) = read_twice(nvml.environment(lacks=lacks, energy_step_mj=1000, clocks_event_reasons=8))
    assert last == [gpu(2.0, clocks_event_reasons=8)]


@pytest.mark.parametrize("visible", ["2,3,0", "GPU-stub-2,GPU-stub-3,GPU-stub-0"])
def test_as_many_of_the_visible_gpus_are_read_as_there_are_ranks(nvml, read_twice, visible):
    fails = {f"{ENERGY}/{number}": NOT_SUPPORTED for number in (0, 1, 2)}
    environment = nvml.environment(gpus=4, fails=fails, energy_step_mj=1000) | {"CUDA_VISIBLE_DEVICES": visible}
    (_, last) = read_twice(environment, num_gpus=2)
    assert last == [gpu(None), gpu(2.0)]


@pytest.mark.parametrize(
    "how", [{"fails": {"nvmlInitWithFlags": DRIVER_NOT_LOADED}}, {"lacks": ["nvmlDeviceGetHandleByIndex_v2"]}]
)
def test_without_a_driver_that_answers_there_is_no_file_and_no_complaint(nvml, read_twice, how):
    assert read_twice(nvml.environment(**how)) == []
