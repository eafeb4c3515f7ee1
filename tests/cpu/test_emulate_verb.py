"""The verb emulate: any program under tolls. Its CUDA is the stub of the driver, loaded before everything else."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from cctrain.emulation.injector import INJECTION
from tests.cpu.conftest import heed_stops
from tests.stub_driver import build_driver

PROGRAM = """
import ctypes, os, signal, sys, time
driver = ctypes.CDLL(None)
driver.cuInit(0)
for _ in range(int(sys.argv[1])):
    driver.stub_call(b"cuLaunchKernel", ctypes.c_uint64(7), ctypes.c_uint64(0), ctypes.c_uint64(0), ctypes.c_size_t(0),
                     b"a_kernel", None, 0)
print("trained", os.environ["NCCL_NVLS_ENABLE"], flush=True)
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    if not shutil.which("gcc"):
        pytest.skip("the stub of the driver needs gcc")
    return build_driver(tmp_path_factory.mktemp("driver")).library


@pytest.fixture(scope="module")
def environment(clean_environment, tmp_path_factory):
    kept = {key: value for key, value in clean_environment.items() if key != INJECTION}
    return kept | {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")), "COLUMNS": "80"}


@pytest.fixture
def start(environment):
    started = []

    def emulate(*arguments, **variables):
        process = subprocess.Popen(
            [sys.executable, "-m", "cctrain", "emulate", *arguments],
            env=environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
            preexec_fn=heed_stops,  # noqa: PLW1509 - the tests have one thread
        )
        started.append(process)
        return process

    yield emulate
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the program too, which holds the pipes
        process.communicate()


@pytest.fixture
def emulate(start):
    """Run to the end: exit code, last line, all of stdout, stderr."""

    def run(*arguments, **variables):
        process = start(*arguments, **variables)
        stdout, stderr = process.communicate(timeout=60)
        return process.returncode, json.loads(stdout.splitlines()[-1]), stdout, stderr

    return run


def program(stub, num_launches, then=""):
    return ["env", f"LD_PRELOAD={stub}", sys.executable, "-c", PROGRAM + then, str(num_launches)]


def test_a_program_pays_the_tolls_of_the_profile_and_is_counted(emulate, stub):
    code, last, stdout, stderr = emulate("--tolls", "b300", "--", *program(stub, 50))
    assert code == 0, stderr
    assert stdout.startswith("trained 0")  # multicast is off, as under CC
    assert (last["mode"], last["tolls"]["name"]) == ("emulated", "b300")
    assert "never a measurement of CC" in last["emulated"]
    (process,) = last["processes"]
    assert process["launches"] == 50
    assert process["injected_s"]["launch"] == pytest.approx(50 * 18.6e-6)
    assert "crossings under the tolls of b300, emulated" in stdout
    assert "assumed: launch tolls are paid by the thread that calls" in stdout


def test_without_a_profile_it_is_only_counted(emulate, stub):
    code, last, stdout, _ = emulate("--", *program(stub, 7))
    assert (code, last["tolls"], last["exit_code"]) == (0, None, 0)
    assert not {"mode", "emulated"} & last.keys()
    assert last["processes"][0]["launches"] == 7
    assert set(last["processes"][0]["injected_s"].values()) == {0}
    assert "emulated" not in stdout


def test_a_profile_that_charges_nothing_is_said_to_as_the_program_starts(emulate, tmp_path):
    path = tmp_path / "free.yaml"
    path.write_text("kind: cctrain emulation profile\nschema_version: 1\nname: free\ntolls: {}\n")
    code, _, _, stderr = emulate("--tolls", str(path), "--", "true")
    assert code == 0
    assert "note: the profile free charges nothing here" in stderr


def test_every_process_of_the_program_is_met(emulate, stub):
    both = f"import subprocess; a = {program(stub, 3)!r}; subprocess.run(a, check=True); subprocess.run(a, check=True)"
    _, last, _, _ = emulate("--", sys.executable, "-c", both)
    assert [process["launches"] for process in last["processes"]] == [3, 3]


def test_the_exit_code_is_the_programs_own(emulate, stub):
    code, last, _, _ = emulate("--", *program(stub, 3, "sys.exit(42)"))
    assert (code, last["exit_code"]) == (42, 42)
    assert last["processes"][0]["launches"] == 3


def test_a_program_that_kills_itself_is_counted_to_there(emulate, stub):
    code, last, _, _ = emulate("--", *program(stub, 3, "os.kill(os.getpid(), signal.SIGKILL)"))
    assert (code, last["exit_code"]) == (128 + 9, 128 + 9)
    assert last["processes"][0]["launches"] == 3


def test_a_program_without_cuda_crosses_nothing_and_that_is_said(emulate):
    code, last, stdout, _ = emulate("--tolls", "b300", "--", "true")
    assert (code, last["processes"]) == (0, [])
    assert "no CUDA call was seen" in stdout


@pytest.mark.parametrize(("own", "code"), [("", 3), ("sys.exit(5)", 5)])
def test_with_a_profiler_in_the_process_the_program_runs_and_it_is_said(emulate, stub, own, code):
    found, last, stdout, stderr = emulate("--tolls", "b300", "--", *program(stub, 3, own), STUB_DRIVER_TAKEN="1")
    assert (found, last["exit_code"], last["processes"]) == (code, code, [])
    (why,) = last["refused"].values()
    assert why.startswith("CUPTI takes one subscriber")
    assert "trained" in stdout
    assert "emulation is not at work: CUPTI takes one subscriber" in stderr


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_goes_to_the_program_which_is_counted_to_its_own_end(start, stub, stop):
    saves = f"signal.signal({int(stop)}, lambda *_: (print('saved'), sys.exit(5)))\n"
    process = start("--", *program(stub, 3, saves + "print('ready', flush=True)\ntime.sleep(60)"))
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None
    process.send_signal(stop)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 5, stderr
    assert stdout.startswith("saved")
    assert json.loads(stdout.splitlines()[-1])["processes"][0]["launches"] == 3


def test_ctrl_c_ends_the_program_as_it_likes_and_the_count_is_printed(start, stub):
    process = start("--", *program(stub, 3, "print('ready', flush=True)\ntime.sleep(60)"))
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None
    for pid in (process.pid, *children_of(process.pid)):  # as a terminal does
        os.kill(pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in stderr  # the program's own
    assert stderr.count("Traceback") == 1
    assert process.returncode == 128 + signal.SIGINT
    assert json.loads(stdout.splitlines()[-1])["processes"][0]["launches"] == 3


def children_of(pid):
    begin = time.monotonic()
    while time.monotonic() - begin < 10:
        with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: PTH123
            if children := [int(child) for child in file.read().split()]:
                return children
    raise AssertionError("no child")


# What is refused, before anything starts


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tolls", "b300"), "no program to run"),
        (("--tolls", "b300", "--"), "no program to run"),
        (("--", "no-such-program"), "no-such-program: no such program"),
        (("--tolls", "b301", "--", "true"), "no toll profile b301"),
        (("--tolls", "/nowhere.yaml", "--", "true"), "cannot be read"),
        (("--toll", "b300", "--", "true"), "emulate: unrecognized arguments: --toll"),
        (("--tolls", "b300", "python", "x.py"), "emulate: got python x.py without -- before it: python -m cctrain"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(emulate, arguments, words):
    code, last, stdout, stderr = emulate(*arguments)
    assert (code, last["exit_code"]) == (2, 2)
    assert words in last["error"]
    assert len(stderr.splitlines()) == len(stdout.splitlines()) == 1


def test_a_hostile_profile_is_refused(emulate, tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("kind: cctrain emulation profile\nschema_version: 1\nname: x\ntolls: {launch_us: {value: -5}}\n")
    code, last, _, _ = emulate("--tolls", str(path), "--", "true")
    assert code == 2
    assert "launch_us" in last["error"]


def test_a_file_that_no_system_can_run_is_refused(emulate, tmp_path):
    path = tmp_path / "program"
    path.write_text("")
    path.chmod(0o755)
    path.write_bytes(b"\x7fELF not really")
    code, last, _, _ = emulate("--", str(path))
    assert code == 2
    assert "cannot be run" in last["error"]


def test_a_profiler_in_our_place_is_exit_code_3_and_named(emulate):
    code, last, _, _ = emulate("--", "true", **{INJECTION: "/opt/nsight/libTools.so"})
    assert code == 3
    assert "/opt/nsight/libTools.so" in last["error"]


def test_no_compiler_is_exit_code_3(emulate, tmp_path):
    code, last, _, _ = emulate("--", "true", CC="/nowhere/cc", XDG_CACHE_HOME=str(tmp_path))
    assert code == 3
    assert "/nowhere/cc" in last["error"]
