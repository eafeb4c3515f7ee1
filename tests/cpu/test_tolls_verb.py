"""The verb tolls on a machine without a GPU: the host's tolls are measured, the others waived."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cctrain.tolls import families
from tests.cpu.conftest import heed_stops

VERB = "import sys; from cctrain.__main__ import main; code = main(['tolls', *sys.argv[1:]])"
COMMAND = [sys.executable, "-c", f"{VERB}; assert 'torch' not in sys.modules; sys.exit(code)"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory, clean_environment):
    """The finished command and the file it wrote."""
    out = tmp_path_factory.mktemp("tolls") / "off.json"
    command = [*COMMAND, "--out", str(out)]
    environment = clean_environment | {"HF_TOKEN": "correct-horse", "CUDA_CACHE_PATH": "/cache/correct-horse"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, done.stderr
    return done, out


def test_a_machine_without_a_gpu_measures_its_host_and_waives_the_rest(measured):
    done, out = measured
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["out"], last["status"], last["exit_code"]) == (str(out), "complete", 0)
    assert set(last["waived"]) - {"aes_gcm"} == {*families.DEVICE, *families.SEVERAL_DEVICES}
    assert "needs a CUDA GPU" in last["waived"]["launch"]
    assert last["failed"] == {}
    assert "waived: matmul, launch, graphs" in done.stdout


def test_a_machine_that_can_measure_nothing_of_what_was_asked_for_says_so(tmp_path, clean_environment):
    out = tmp_path / "off.json"
    command = [*COMMAND, "--only", "launch", "copies", "--out", str(out)]
    done = subprocess.run(command, env=clean_environment, capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 3
    assert "launch, copies needs a CUDA GPU" in done.stderr
    assert not out.exists()


def test_the_file_is_strict_json_of_readings_that_are_numbers_with_intervals(measured):
    def refuse(constant):
        raise AssertionError(f"the file holds {constant}")

    record = json.loads(measured[1].read_text(), parse_constant=refuse)
    readings = {reading["name"]: reading for reading in record["readings"]}
    assert {"host_memcpy", "host_python"} <= set(readings)
    for reading in readings.values():
        low, high = reading["interval"]
        assert 0 < low <= reading["value"] <= high
        assert len(reading["process_values"]) == 3
    assert record["duration_s"] > 0
    assert record["machine"]["host"]["environment"]["NCCL_NVLS_ENABLE"] == "0"
    assert record["machine"]["guest"]["kind"]


def test_no_planted_secret_is_written_or_printed(measured):
    done, out = measured
    assert "correct-horse" not in out.read_text() + done.stdout + done.stderr
    assert "/cache/[redacted]" in out.read_text()


def test_a_file_compared_with_itself_shows_no_toll(measured, tmp_path, clean_environment):
    out = tmp_path / "profile.json"
    command = [*COMMAND, "--diff", *[str(measured[1])] * 2, "--allow", "mode", "--out", str(out)]
    done = subprocess.run(command, env=clean_environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["tolls"]["host_ratio"]["value"] == 1.0
    assert json.loads(out.read_text())["tolls"]["launch_us"]["value"] is None


def test_ctrl_c_ends_it_with_code_4_and_leaves_neither_file_nor_process(tmp_path, clean_environment):
    command = [
        sys.executable,
        "-c",
        CATCH,
        "--out",
        str(tmp_path / "off.json"),
    ]
    process = subprocess.Popen(
        command,
        env=clean_environment | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_stops,  # noqa: PLW1509 - the tests have one thread
    )
    try:
        worker = wait_for(lambda: next(iter(workers(tmp_path)), None))
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=30)
    finally:
        process.kill()  # its worker ends with it
    assert process.returncode == 4
    assert json.loads(stdout.splitlines()[-1])["error"].startswith("stopped by Ctrl-C")
    assert not worker.exists()
    assert list(tmp_path.iterdir()) == []


CATCH = """
import sys
from cctrain.commands import tolls
from cctrain.errors import RunError
try:
    tolls.run(sys.argv[1:])
except RunError as error:
    sys.exit(error.exit_code)
"""


def wait_for(find, timeout_s=60.0):
    begin = time.monotonic()
    while time.monotonic() - begin < timeout_s:
        if found := find():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came")


def workers(folder):
    """Of the processes that measure for a command with this TMPDIR, their directories in /proc."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "cctrain.tolls.worker" in line and any(word.startswith(os.fspath(folder)) for word in line):
            yield path.parent


def test_the_kernels_assemble_for_every_gpu_that_can_do_cc(tmp_path):
    triton = pytest.importorskip("triton")
    from cctrain.tolls.driver import ptx

    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    if not assembler.is_file():
        pytest.skip("this build of triton brings no ptxas")
    (tmp_path / "kernels.ptx").write_text(ptx())
    for target in ("sm_90", "sm_100"):
        command = [
            str(assembler),
            f"-arch={target}",
            "-o",
            str(tmp_path / "kernels.cubin"),
            str(tmp_path / "kernels.ptx"),
        ]
        subprocess.run(command, check=True, capture_output=True)
