"""With CC really on nothing is emulated nor counted: the verbs that could refuse before they start anything."""

import json
import subprocess
import sys

import pytest

from tests.stub_nvml import StubNvml

ON = {"cc_feature": 1, "environment": 2, "ready": 1, "protected_gib": 80}
PPCIE = {"gpus": 8, "multi_gpu": 1, "environment": 2, "ready": 1, "protected_gib": 80}


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    return StubNvml(tmp_path_factory.mktemp("stubs"))


@pytest.mark.parametrize("how", [ON, PPCIE])
@pytest.mark.parametrize(
    "arguments",
    [
        ("emulate", "--tolls", "b300", "--", "touch", "started"),
        ("emulate", "--", "touch", "started"),
        ("tolls", "--tolls", "b300", "--only", "aes_gcm", "--out", "started"),
    ],
)
def test_a_verb_that_emulates_is_refused_where_cc_is_on(stubs, tmp_path, arguments, how):
    command = [sys.executable, "-m", "cctrain", *arguments]
    done = subprocess.run(
        command, check=False, cwd=tmp_path, env=stubs.environment(**how), capture_output=True, text=True, timeout=120
    )
    last = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, last["exit_code"]) == (3, 3)
    assert "cc=emulated, but this machine pays the real tolls already" in last["error"]
    assert not (tmp_path / "started").exists()
