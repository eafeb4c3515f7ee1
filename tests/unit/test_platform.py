"""What the GPU driver says of CC, and what becomes of it: a stub of NVML in a process of its own (see there)."""

import base64
import hashlib
import json
import subprocess
import sys
from importlib import metadata

import pytest

from cctrain.config import CcMode
from cctrain.errors import PlatformError
from cctrain.platform import cc, multicast
from cctrain.platform.attestation import attest, nonce
from tests.stub_nvml import DRIVER_NOT_LOADED, GPU_IS_LOST, NO_PERMISSION, NOT_SUPPORTED, UNKNOWN, StubNvml

SETTINGS, STATE = "nvmlSystemGetConfComputeSettings", "nvmlSystemGetConfComputeState"
READY, PROTECTED = "nvmlSystemGetConfComputeGpusReadyState", "nvmlDeviceGetConfComputeMemSizeInfo"
REPORT = "nvmlDeviceGetConfComputeGpuAttestationReport"
ON = {"cc_feature": 1, "environment": 2, "ready": 1, "protected_gib": 80}
PPCIE = {"gpus": 8, "cc_feature": 0, "multi_gpu": 1, "environment": 2, "ready": 1, "protected_gib": 80}

ASKED = """
import dataclasses, json, os, sys
from cctrain.platform import attestation, gpu
calls = {
    "observe": lambda: dataclasses.asdict(gpu.observe()),
    "attest": lambda number, *rest: attestation.attest(bytes.fromhex(number), *rest),
}
for line in sys.stdin:
    environment, call, arguments = json.loads(line)
    os.environ.clear()
    os.environ.update(environment)
    print(json.dumps(calls[call](*arguments), allow_nan=False), flush=True)
"""
MACHINE = """
import json, sys
from pathlib import Path
from cctrain.platform import gpu, machine
seen = machine.observe(gpu.observe(Path(sys.argv[1])), {}, Path(sys.argv[1]))
assert "torch" not in sys.modules
print(json.dumps(seen, allow_nan=False))
"""


class Drivers:
    """A process for each build of the stub, because a process loads one; the rest of the environment may change."""

    def __init__(self, stubs):
        self.stubs, self._processes = stubs, {}

    def ask(self, environment, call, *arguments):
        key = environment["LD_LIBRARY_PATH"]
        if key not in self._processes:
            command = [sys.executable, "-W", "error", "-c", ASKED]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._processes[key] = subprocess.Popen(command, env=environment, text=True, **pipes)
        process = self._processes[key]
        print(json.dumps([environment, call, arguments]), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    def close(self):
        for process in self._processes.values():
            process.communicate()


@pytest.fixture(scope="module")
def drivers(tmp_path_factory):
    drivers = Drivers(StubNvml(tmp_path_factory.mktemp("stubs")))
    yield drivers
    drivers.close()


@pytest.fixture
def observe(drivers):
    """What gpu.observe sees of a driver that behaves so."""
    return lambda **how: drivers.ask(drivers.stubs.environment(**how), "observe")


@pytest.fixture
def attested(drivers):
    """The attestation that a driver that behaves so gives."""

    def attested(number, num_gpus, mode, elsewhere=(), **how):
        return drivers.ask(drivers.stubs.environment(**how), "attest", number, num_gpus, mode, elsewhere)

    return attested


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
    seen = drivers.ask(environment | {"CUDA_VISIBLE_DEVICES": "GPU-stub-1"}, "observe")
    assert [device["bus_id"] for device in seen["devices"]] == ["0000:11:00.0"]


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


# Attestation


def write(folder, **files):
    return [(folder / f"{name}.jsonl", (folder / f"{name}.jsonl").write_text(text))[0] for name, text in files.items()]


def test_the_nonce_can_be_computed_anew_from_the_record(tmp_path):
    files = write(tmp_path, rank1="b\n", rank0="a\n")
    hashes = "".join(
        f"{name}.jsonl {hashlib.sha256(text).hexdigest()}\n" for name, text in (("rank0", b"a\n"), ("rank1", b"b\n"))
    )
    expected = hashlib.sha256(('{"gpu":["H200"],"recipe_hash":"1"}\n' + hashes).encode()).digest()
    assert nonce({"recipe_hash": "1", "gpu": ["H200"]}, files) == expected


def test_the_nonce_changes_with_the_identity_and_with_every_sample(tmp_path):
    files = write(tmp_path, rank0="a\n", rank1="b\n")
    before = {nonce({"recipe_hash": "1"}, files), nonce({"recipe_hash": "2"}, files), nonce({}, files[:1])}
    write(tmp_path, rank1="c\n")
    assert len(before | {nonce({"recipe_hash": "1"}, files)}) == 4


def test_with_cc_on_each_gpu_that_trained_signs_the_nonce(attested):
    number = hashlib.sha256(b"run").digest()
    found = attested(number.hex(), 2, "on", gpus=3, **ON)
    assert found["nonce"] == number.hex()
    reports = [base64.b64decode(gpu["report"]) for gpu in found["gpus"]]
    assert reports == [b"report of GPU 0 for " + number, b"report of GPU 1 for " + number]
    assert base64.b64decode(found["gpus"][1]["certificate"]) == b"chain 1"
    assert base64.b64decode(found["gpus"][1]["attestation_certificate"]) == b"attestation chain"
    assert found["gpus"][1]["cec_report"] is None


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"fails": {"nvmlInitWithFlags": DRIVER_NOT_LOADED}}, "NVML: Driver Not Loaded"),
        ({"fails": {"nvmlDeviceGetCount_v2": UNKNOWN}}, "NVML: Unknown Error"),
        ({"gpus": 0}, "no GPU took part"),
    ],
)
def test_where_no_report_can_be_had_the_record_says_why(attested, how, why):
    assert attested("00" * 32, 1, "on", **how) == {"nonce": "00" * 32, "missing": why}


@pytest.mark.parametrize("how", [{"fails": {f"{REPORT}/1": NOT_SUPPORTED}}, {"lacks": [REPORT]}])
def test_a_gpu_that_signs_nothing_says_why_beside_the_others(attested, how):
    gpus = attested("00" * 32, 2, "unknown", gpus=2, **how)["gpus"]
    assert gpus[1]["missing"] in ("NVML: Not Supported", "NVML: Function Not Found")
    assert ("report" in gpus[0]) == ("fails" in how)


def test_gpus_of_other_machines_are_named_as_missing(attested):
    gpus = attested("00" * 32, 1, "on", ["node1", "node2"], **ON)["gpus"]
    assert "report" in gpus[0]
    assert gpus[1:] == [{"host": host, "missing": "on another machine"} for host in ("node1", "node2")]


@pytest.mark.parametrize("mode", ["off", "emulated"])
def test_with_cc_off_nothing_is_asked_for(mode):
    assert attest(bytes(32), 1, mode)["missing"] == "CC is off: there is nothing to attest"
