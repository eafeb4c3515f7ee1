"""What the GPU driver says of CC, and what becomes of it: a stub of NVML in a process of its own (see there)."""

import json
import subprocess
import sys
from importlib import metadata

import pytest

from cctrain.config import CcMode
from cctrain.errors import PlatformError
from cctrain.platform import cc, multicast
from tests.stub_nvml import DRIVER_NOT_LOADED, GPU_IS_LOST, NO_PERMISSION, NOT_SUPPORTED, UNKNOWN

SETTINGS, STATE = "nvmlSystemGetConfComputeSettings", "nvmlSystemGetConfComputeState"
READY, PROTECTED = "nvmlSystemGetConfComputeGpusReadyState", "nvmlDeviceGetConfComputeMemSizeInfo"
ON = {"cc_feature": 1, "environment": 2, "ready": 1, "protected_gib": 80}
PPCIE = {"gpus": 8, "cc_feature": 0, "multi_gpu": 1, "environment": 2, "ready": 1, "protected_gib": 80}

MACHINE = """
import json, sys
from pathlib import Path
from cctrain.platform import gpu, machine
seen = machine.observe(gpu.observe(Path(sys.argv[1])), {}, Path(sys.argv[1]))
assert "torch" not in sys.modules
print(json.dumps(seen, allow_nan=False))
"""


@pytest.fixture
def observe(drivers):
    """What gpu.observe sees of a driver that behaves so."""
    return lambda **how: drivers.ask(drivers.stubs.environment(**how), "observe")


def machine(environment, root):
    """What machine.observe sees, in a process of its own."""
    command = [sys.executable, "-W", "error", "-c", MACHINE, str(root)]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def outcomes(settings):
    """What each cc= comes to: a mode, or None where the run is refused."""
    found = {}
    for expected in CcMode:
        try:
            found[expected.value] = cc.observed_mode(expected, settings)
        except PlatformError:
            found[expected.value] = None
    return found


def refusal(expected, settings):
    with pytest.raises(PlatformError) as caught:
        cc.observed_mode(CcMode(expected), settings)
    assert caught.value.exit_code == 3
    return str(caught.value)


OFF_ONLY = {"auto": "off", "off": "off", "on": None, "emulated": "emulated", "unverified": "unknown"}
ON_ONLY = {"auto": "on", "off": None, "on": "on", "emulated": None, "unverified": "unknown"}
NONE = {"auto": None, "off": None, "on": None, "emulated": None, "unverified": "unknown"}


# Mode


@pytest.mark.parametrize(
    ("how", "modes", "facts"),
    [
        ({"gpus": 2}, OFF_ONLY, [False, False, False]),
        (ON, ON_ONLY, [True, False, False]),
        (PPCIE, ON_ONLY, [False, True, False]),
        ({"gpus": 2, "multi_gpu": 2, "nvle": 1}, OFF_ONLY, [False, False, True]),
        ({"gpus": 2, "nvle": 1}, OFF_ONLY, [False, False, True]),  # by the GPUs alone
        (ON | {"gpus": 2, "multi_gpu": 2, "nvle": 1}, ON_ONLY, [True, False, True]),
        (ON | {"devtools": 1, "environment": 1}, NONE, [True, False, False]),
        (ON | {"environment": 1}, NONE, [True, False, False]),
        (ON | {"ready": 0}, NONE, [True, False, False]),
        (PPCIE | {"ready": 0}, NONE, [False, True, False]),
        ({"ready": 0}, OFF_ONLY, [False, False, False]),
        (ON | {"gpus": 2, "protected_gib_1": 0}, NONE, [True, False, False]),
        ({"gpus": 2, "nvle_0": 1}, NONE, [False, False, True]),
    ],
)
def test_the_mode_follows_from_three_facts_and_only_sound_machines_have_one(observe, how, modes, facts):
    seen = observe(**how)
    assert outcomes(seen["cc"]) == modes
    assert list(cc.facts(seen["cc"]).values()) == facts


@pytest.mark.parametrize("code", [NO_PERMISSION, GPU_IS_LOST, UNKNOWN])
@pytest.mark.parametrize("function", [SETTINGS, "nvmlInitWithFlags", "nvmlDeviceGetCount_v2", "nvmlDeviceGetName/0"])
def test_a_failure_to_read_refuses_all_but_unverified(observe, function, code):
    settings = observe(fails={function: code})["cc"]
    assert outcomes(settings) == NONE
    assert set(cc.facts(settings).values()) == {None}


@pytest.mark.parametrize("function", [READY, f"{PROTECTED}/1"])
@pytest.mark.parametrize("state", [{}, ON], ids=["off", "on"])
def test_a_state_that_cannot_be_read_is_not_taken_for_a_good_one(observe, function, state):
    settings = observe(gpus=2, fails={function: UNKNOWN}, **state)["cc"]
    assert outcomes(settings) == NONE
    assert function.removesuffix("/1") in refusal("auto", settings)


@pytest.mark.parametrize(
    "how",
    [
        {"fails": {SETTINGS: NOT_SUPPORTED}},
        {"fails": {"nvmlInitWithFlags": DRIVER_NOT_LOADED}},
        {"lacks": [SETTINGS, STATE]},
        {"gpus": 0},
    ],
)
def test_a_machine_without_gpus_or_without_cc_to_speak_of_is_off(observe, how):
    assert outcomes(observe(**how)["cc"]) == OFF_ONLY


def test_a_machine_without_nvml_is_off_and_has_nothing_to_say_of_gpus(drivers, tmp_path):
    seen = machine(drivers.stubs.environment() | {"LD_LIBRARY_PATH": str(tmp_path)}, tmp_path)
    assert outcomes(seen["gpus"]["cc"]) == OFF_ONLY
    assert (seen["gpus"]["names"], seen["versions"]["driver"], seen["multicast"]) == ([], None, None)


def test_a_container_that_was_given_gpus_and_not_nvml_is_not_taken_for_off(drivers, tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    seen = machine(drivers.stubs.environment() | {"LD_LIBRARY_PATH": str(tmp_path)}, tmp_path)
    assert outcomes(seen["gpus"]["cc"]) == NONE
    assert "/dev/nvidia0: a container needs" in refusal("auto", seen["gpus"]["cc"])


def test_an_old_driver_is_asked_the_old_way(observe):
    settings = observe(lacks=[SETTINGS], **ON)["cc"]
    assert (settings["source"], settings["multi_gpu"]) == (STATE, None)
    assert outcomes(settings) == ON_ONLY
    assert outcomes(observe(lacks=[SETTINGS])["cc"]) == OFF_ONLY
    assert outcomes(observe(lacks=[SETTINGS], fails={STATE: NO_PERMISSION})["cc"]) == NONE


def test_what_the_driver_does_not_say_of_a_gpu_is_null_and_no_difference(observe):
    fails = {f"{PROTECTED}/1": NOT_SUPPORTED, READY: NOT_SUPPORTED}
    settings = observe(gpus=2, lacks=["nvmlDeviceGetNvLinkInfo"], fails=fails, **ON)["cc"]
    assert settings["gpus"] == [
        {"protected_memory_gib": 80, "is_nvlink_encrypted": None},
        {"protected_memory_gib": None, "is_nvlink_encrypted": None},
    ]
    assert settings["ready"] is None
    assert outcomes(settings) == ON_ONLY


def test_gpus_that_are_not_visible_do_not_count(drivers):
    environment = drivers.stubs.environment(gpus=3, protected_gib_1=80)
    seen = drivers.ask(environment | {"CUDA_VISIBLE_DEVICES": "2,0"}, "observe")
    assert outcomes(seen["cc"]) == OFF_ONLY
    assert [device["bus_id"] for device in seen["devices"]] == ["0000:12:00.0", "0000:10:00.0"]
    for hidden in ("0,9,1", "0,none,1", "0,GPU-stub-1"):  # CUDA stops at the first that is none
        seen = drivers.ask(environment | {"CUDA_VISIBLE_DEVICES": hidden}, "observe")
        assert [device["bus_id"] for device in seen["devices"]] == ["0000:10:00.0"]
    seen = drivers.ask(environment | {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, "observe")
    assert seen["names"] == []
    seen = drivers.ask(environment | {"CUDA_VISIBLE_DEVICES": "GPU-stub-1"}, "observe")
    assert [device["bus_id"] for device in seen["devices"]] == ["0000:11:00.0"]


def test_a_gpu_may_be_named_by_the_beginning_of_its_uuid_if_it_is_of_one_only(drivers):
    named = {"CUDA_VISIBLE_DEVICES": "GPU-st"}
    assert drivers.ask(drivers.stubs.environment() | named, "observe")["names"] == ["Stub GPU"]
    seen = drivers.ask(drivers.stubs.environment(gpus=2) | named, "observe")
    assert seen["names"] == []  # and not the facts of another


def test_a_refusal_says_what_was_seen_where_and_the_command_that_changes_it(observe):
    off, on, ppcie = (observe(**how)["cc"] for how in ({}, ON, PPCIE))
    assert refusal("on", off).startswith("cc=on, but this machine's mode is off (NVML's nvmlSystemGetConfCompute")
    assert "cc_feature=0" in refusal("on", off)
    assert "--set-cc-mode=on" in refusal("on", off)
    assert "cc_feature=1" in refusal("off", on)
    assert "--set-cc-mode=off" in refusal("off", on)
    assert "multi_gpu=1" in refusal("off", ppcie)
    assert "--set-ppcie-mode=off" in refusal("off", ppcie)
    assert refusal("emulated", on).startswith("cc=emulated, but this machine pays the real tolls")
    assert "--set-ppcie-mode=off" in refusal("emulated", ppcie)
    assert "cc=unverified" not in refusal("emulated", observe(**ON, devtools=1)["cc"])


@pytest.mark.parametrize(
    ("how", "is_countable"),
    [({"gpus": 2}, True), (ON, False), (PPCIE, False), (ON | {"devtools": 1}, False), ({"gpus": 2, "nvle": 1}, True)],
)
def test_crossings_are_counted_only_where_cc_is_known_to_be_off(observe, how, is_countable):
    settings = observe(**how)["cc"]
    if is_countable:
        cc.check_countable(settings)
        return
    with pytest.raises(PlatformError, match=r"measure\.crossings=true"):
        cc.check_countable(settings)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (ON | {"devtools": 1}, ["devtools=1", SETTINGS, "--set-cc-mode=on"]),
        (PPCIE | {"devtools": 1}, ["devtools=1", "--set-ppcie-mode=on"]),
        (ON | {"ready": 0}, [READY, "nvidia-smi conf-compute -srs 1"]),
        (ON | {"gpus": 2, "protected_gib_1": 0}, [PROTECTED, "GPU 1: 0.0 GiB", "--set-cc-mode=on"]),
        ({"gpus": 2, "nvle_1": 1}, ["nvmlDeviceGetNvLinkInfo", "GPU 1: on", "--set-cc-mode=on"]),
        ({"fails": {SETTINGS: NO_PERMISSION}}, [SETTINGS, "Insufficient Permissions", "cc=unverified"]),
    ],
)
def test_a_machine_not_fit_to_measure_is_named_with_what_mends_it(observe, how, words):
    message = refusal("auto", observe(**how)["cc"])
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    "how", [{"fails": {"nvmlInitWithFlags": DRIVER_NOT_LOADED}}, {"fails": {SETTINGS: NOT_SUPPORTED}}]
)
def test_where_no_gpu_knows_of_cc_nothing_is_proposed_to_switch_it_on(observe, how):
    message = refusal("on", observe(**how)["cc"])
    assert "no GPU here that knows" in message
    assert "--set" not in message


# GPUs


def test_clocks_power_and_versions_are_those_of_the_driver(observe):
    seen = observe(gpus=2, cpu_caps=2)
    assert seen["devices"][1] == {
        "bus_id": "0000:11:00.0",
        "sm_clock_mhz": {"current": 1900, "max": 1980, "application": 1970},
        "memory_clock_mhz": {"current": 3201, "max": 3201, "application": 3200},
        "power_limit_w": 700,
    }
    assert (seen["driver"], seen["cuda"], seen["cc"]["cpu_caps"]) == ("570.00.stub", "13.2", "tdx")


def test_what_an_old_driver_does_not_say_of_a_gpu_is_null(observe):
    seen = observe(lacks=["nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetApplicationsClock"])
    (device,) = seen["devices"]
    assert (device["power_limit_w"], device["sm_clock_mhz"]["application"]) == (None, None)
    assert device["sm_clock_mhz"]["max"] == 1980


@pytest.mark.parametrize(
    ("how", "matrix"),
    [
        ({"nvlinks": 18}, [["X", "NV18"], ["NV18", "X"]]),
        ({"nvlinks": 4, "direct": 1}, [["X", "NV4"], ["NV4", "X"]]),
        ({}, [["X", "SYS"], ["SYS", "X"]]),
        ({"ancestor": 30}, [["X", "PHB"], ["PHB", "X"]]),
        ({"lacks": ["nvmlDeviceGetTopologyCommonAncestor"]}, [["X", None], [None, "X"]]),
        ({"nvlinks": 18, "fails": {"nvmlDeviceGetP2PStatus": UNKNOWN}}, [["X", "SYS"], ["SYS", "X"]]),
    ],
)
def test_topology_is_the_links_between_two_gpus_or_the_way_around(observe, how, matrix):
    assert observe(gpus=2, **how)["topology"]["matrix"] == matrix


def test_gpus_linked_in_pairs_are_no_neighbours_of_the_next_pair(observe):
    topology = observe(gpus=4, nvlinks=6, direct=1)["topology"]
    assert topology["matrix"][2] == ["SYS", "SYS", "X", "NV6"]
    assert (topology["num_nvlinks"], topology["nvlink_version"]) == ([6] * 4, [4] * 4)


@pytest.fixture
def multicast_of(drivers, monkeypatch):
    """The answer of a CUDA driver that behaves so; without `how` there is none."""

    def answer(num_gpus, **how):
        environment = drivers.stubs.environment()
        for name, value in (drivers.stubs.with_cuda(environment, **how) if how else environment).items():
            monkeypatch.setenv(name, value)
        return multicast.begin(num_gpus, timeout_s=0.5 if "hang" in how else 60)()

    return answer


@pytest.mark.parametrize(
    ("how", "answer"),
    [
        ({"multicast": "11"}, [True, True]),
        ({"multicast": "01"}, [False, True]),
        ({"fail": "100"}, None),
        ({"hang": "1"}, None),
        ({}, None),
    ],
)
def test_multicast_is_asked_of_the_cuda_driver_which_need_not_answer(multicast_of, how, answer):
    assert multicast_of(2, **how) == answer


def test_without_gpus_the_cuda_driver_is_not_asked(multicast_of):
    assert multicast_of(0, multicast="11") is None


def test_all_that_is_observed_of_a_machine_goes_into_one_record(drivers, tmp_path):
    stubs = drivers.stubs
    seen = machine(stubs.with_cuda(stubs.environment(gpus=2, nvlinks=18, **ON), multicast="10"), tmp_path)
    assert seen["cc"] == {"bounce_buffer": True, "ppcie": False, "nvle": False}
    assert seen["gpus"]["topology"]["matrix"] == [["X", "NV18"], ["NV18", "X"]]
    assert seen["multicast"] == [True, False]
    assert (seen["versions"]["driver"], seen["versions"]["cuda_driver"]) == ("570.00.stub", "13.2")
    assert seen["versions"]["torch"] == metadata.version("torch")
    assert seen["guest"]["kind"] is None  # of an empty root
    assert {"host", "container", "swiotlb", "tdisp", "repository", "nccl", "attestation"} <= set(seen)
