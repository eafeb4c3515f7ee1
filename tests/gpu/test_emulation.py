"""Emulation on a real driver: every class of tolls is paid and counted, graphs and collectives included."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
_SCRIPT = Path(__file__).with_name("injected.py")


@pytest.fixture
def case(request):
    """What one case of injected.py, named by the test's parameter, printed in a process of its own."""
    command = [sys.executable, "-m", "cctrain", "emulate", "--", sys.executable, str(_SCRIPT), request.param]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


@pytest.mark.parametrize("case", ["counts"], indirect=True)
def test_launches_copies_and_waits_are_counted_by_kind(case):
    megabyte = {"count": 1, "bytes": 1 << 20}
    assert case["copies"] == {
        **dict.fromkeys(("h2d_pinned", "h2d_pageable", "d2h_pinned", "d2h_pageable"), megabyte),
        "d2d": megabyte,
    }
    assert case["launches"] == 7 + 1  # a copy on the device is a launch
    assert case["waits"] >= 1


@pytest.mark.parametrize("case", ["tolls"], indirect=True)
def test_each_class_pays_its_toll(case):
    for name, toll_s in (("launch", 0.05), ("wait", 0.05), ("copy", 0.03)):
        assert case[name]["injected_s"][name] == pytest.approx(toll_s)
        assert case[name]["tolled_s"] >= toll_s
        assert sum(case[name]["injected_s"].values()) == pytest.approx(toll_s)
    assert case["alloc"]["allocs_device"] >= 10
    assert case["alloc"]["injected_s"]["alloc"] == pytest.approx(case["alloc"]["allocs_device"] * 500e-6)
    assert case["host"]["injected_s"]["host"] > 0.3 * case["host"]["tolled_s"]  # a ratio of 2: about half


@pytest.mark.parametrize("case", ["blocking"], indirect=True)
def test_an_asynchronous_read_waits_for_its_stream_where_the_profile_says_so(case):
    assert case["blocked_s"] > 0.005 > case["free_s"]  # behind ten products of 8192 x 8192, over a millisecond each


@pytest.mark.parametrize("case", ["graph"], indirect=True)
def test_a_captured_launch_pays_nothing_and_its_graph_pays_once(case):
    assert case["capture"]["graph_nodes"] == 1000
    assert case["capture"]["launches"] < 10
    assert case["replay"]["graph_launches"] == 1
    assert case["replay"]["injected_s"]["graph_launch"] == pytest.approx(0.002)
    assert case["replay"]["injected_s"]["launch"] == 0


@pytest.mark.parametrize("case", ["collective"], indirect=True)
def test_collectives_are_delayed_on_the_gpu_also_in_a_graph_captured_without_tolls(case):
    assert [case[name]["collectives"] for name in ("eager_off", "eager_on")] == [10, 10]
    assert {case[name]["collectives"] for name in ("graph_off", "graph_on", "graph_off_again")} == {10}
    for name in ("eager_on", "graph_on"):
        assert case[name]["s"] >= 0.02
    for name in ("eager_off", "graph_off", "graph_off_again"):
        assert case[name]["s"] < 0.02


@pytest.mark.parametrize("case", ["switched"], indirect=True)
def test_tolls_are_paid_inside_the_context_manager_and_not_after(case):
    assert case["inside"]["injected_s"]["launch"] == pytest.approx(0.1)
    assert case["after"]["injected_s"]["launch"] == 0
