"""What a verb that trains refuses on a machine with CC on, and that it leaves nothing behind."""

import subprocess
import sys

import pytest

from tests.stub_nvml import StubNvml

TINY = ("recipe=tiny_llama_peft", "data=synthetic", "launch.nproc_per_node=1", "track=none")


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    return StubNvml(tmp_path_factory.mktemp("nvml"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "cc=off"),
        ("train", "measure.crossings=true"),
        ("explain", "tolls=b300"),
        ("tune", "cc=off"),
    ],
)
def test_a_machine_with_cc_on_is_refused_for_what_wants_it_off(stub, tmp_path, arguments):
    verb, *settings = arguments
    command = [sys.executable, "-m", "cctrain", verb, *TINY, *settings, f"run_root={tmp_path / 'new'}"]
    seen = stub.environment(cc_feature=1, environment=2, ready=1, protected_gib=80)
    done = subprocess.run(command, env=seen, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert not (tmp_path / "new").exists()
