"""The GPUs' signatures for a run's nonce, with a stub of NVML in a process of its own."""

import base64
import hashlib

import pytest

from cctrain.platform.attestation import attest, nonce
from tests.stub_nvml import DRIVER_NOT_LOADED, NOT_SUPPORTED, UNKNOWN

REPORT = "nvmlDeviceGetConfComputeGpuAttestationReport"
ON = {"cc_feature": 1, "environment": 2, "ready": 1, "protected_gib": 80}


@pytest.fixture
def attested(drivers):
    """The attestation that a driver that behaves so gives."""

    def attested(number, num_gpus, mode, elsewhere=(), **how):
        return drivers.ask(drivers.stubs.environment(**how), "attest", number, num_gpus, mode, elsewhere)

    return attested


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
