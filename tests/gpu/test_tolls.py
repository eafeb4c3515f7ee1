"""The verb tolls on GPUs: everything is measured, and the values agree with what each operation is."""

import json
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

COMMAND = [sys.executable, "-m", "cctrain", "tolls"]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """What the command wrote."""
    out = tmp_path_factory.mktemp("tolls") / "tolls.json"
    done = subprocess.run([*COMMAND, "--out", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def values(record):
    """Look a value up by name and conditions, of which one reading must hold them all."""

    def look_up(name, **conditions):
        (value,) = (
            reading["value"]
            for reading in record["readings"]
            if reading["name"] == name and conditions.items() <= reading["conditions"].items()
        )
        return value

    return look_up


def test_nothing_fails_and_only_what_needs_more_gpus_is_waived(record):
    assert record["failed"] == {}
    assert set(record["waived"]) == ({"collectives"} if torch.cuda.device_count() == 1 else set())


def test_every_reading_has_an_interval_that_holds_it(record):
    for reading in record["readings"]:
        low, high = reading["interval"]
        assert 0 < low <= reading["value"] <= high, reading
        assert len(reading["process_values"]) == 3, reading


def test_every_published_value_stands_beside_a_reading(record):
    from cctrain.tolls.published import PUBLISHED

    for entry in PUBLISHED:
        if entry.name != "all_reduce" or torch.cuda.device_count() > 1:
            assert any(
                reading["name"] == entry.name and entry.conditions.items() <= reading["conditions"].items()
                for reading in record["readings"]
            ), entry


def test_a_wait_costs_more_than_a_launch_and_a_graph_less(values):
    pipelined = values("launch_pipelined", via="torch")
    assert values("graph_replay", kernels=100) < pipelined < values("launch_wait", via="torch")
    assert values("launch_call", args=1) <= values("launch_wait", args=1)


def test_kernels_in_a_row_take_at_least_as_long_as_they_last(values):
    for busy_us in (20, 50, 200):
        assert busy_us <= values("launch_busy", kernel_us=busy_us)
    assert values("launch_busy", kernel_us=200) < 2 * 200


def test_a_read_into_pageable_memory_waits_for_the_work_before_it(values):
    assert values("copy_issue", direction="d2h", memory="pageable", bytes=4) > 700


def test_a_read_into_pinned_memory_waits_for_nothing_with_cc_off(record, values):
    if record["mode"] != "off":
        pytest.skip("CC is not off")
    assert values("copy_issue", direction="d2h", memory="pinned", bytes=4) < 700


def test_no_rate_is_above_what_the_hardware_can_reach(values):
    assert 10 < values("matmul") < 5000
    for direction in ("h2d", "d2h"):
        for memory in ("pinned", "pageable"):
            assert 0.1 < values("copy", direction=direction, memory=memory, bytes=1 << 30) < 500
    assert values("copy", direction="d2d", bytes=1 << 30) < 20_000


def test_larger_allocations_are_not_cheaper(values):
    assert values("alloc", where="host", bytes=1 << 20) < values("alloc", where="host", bytes=64 << 20)


def test_the_driver_refuses_aloud():
    from cctrain.tolls import driver

    with pytest.raises(RuntimeError, match="the CUDA driver answered with error"):
        driver.allocate("device", 1 << 50)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_collectives_are_measured_eager_and_in_graphs_of_all_sizes(record):
    found = {
        (reading["name"], reading["conditions"]["launch"], reading["conditions"]["bytes"])
        for reading in record["readings"]
        if "launch" in reading["conditions"]
    }
    assert len(found) == 3 * 2 * 6
    assert {("all_reduce", "eager", 1 << 10), ("reduce_scatter", "graph", 1 << 30)} <= found


def test_under_tolls_everything_that_calls_cuda_is_measured_with_and_without_them(tmp_path):
    out = tmp_path / "tolls.json"
    command = [*COMMAND, "--tolls", "b300", "--only", "host", "launch", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for reading in json.loads(out.read_text())["readings"]:
        if reading["name"].startswith("host_"):
            assert reading["plain_value"] is None
        elif reading["name"] != "launch_busy":  # work may hide the toll
            assert reading["value"] - reading["plain_value"] > 15, reading  # b300's launch: 18.7 us
