"""benchmarks/fidelity.py: what a reading should be under a profile, and how far it may be from that."""

import dataclasses
import os

import pytest

from benchmarks.fidelity import expected_us, main, off_by, stretch_us, verdict, with_own
from cctrain.emulation.profile import load_profile
from cctrain.records import to_json
from cctrain.tolls.record import Reading, TollsRecord
from tests.stub_driver import profile

TOLLS = profile(
    launch_us=20.0, graph_launch_us=30.0, wait_us=40.0, collective_us=12.0, host_ratio=1.1, h2d_pinned_blocks=True
)
OWN = {"launch_call": 5.0, "idle_wait": 6.0, "launch_wait": 14.0, "all_reduce": 8.0, "all_gather": 3.0}


def reading(name, **conditions):
    return Reading(name=name, unit="us", value=9.0, interval=None, num_blocks=9, conditions=conditions)


@pytest.mark.parametrize(
    ("name", "conditions", "expected"),
    [
        ("launch_pipelined", {}, 29.0),
        ("launch_wait", {}, 69.0),
        ("graph_launch_wait", {}, 79.0),
        ("event_wait", {}, 49.0),
        ("event_record", {}, 9.0),
        ("launch_busy", {"kernel_us": 8}, 25.0),  # the toll is longer than the kernel
        ("copy", {"direction": "d2d", "memory": "device", "bytes": 64}, 69.0),
        ("copy", {"direction": "d2h", "memory": "pinned", "bytes": 64}, 49.0),
        ("copy", {"direction": "h2d", "memory": "pinned", "bytes": 64}, 55.0),  # its wait no longer overlaps
        ("copy_issue", {"direction": "h2d", "memory": "pinned", "bytes": 4, "work_us": 1400}, 1409.0),
        ("all_reduce", {"launch": "graph"}, 21.0),
        ("all_reduce", {"launch": "eager"}, 29.0),  # bound by the host, behind whose launch the delay hides
        ("all_gather", {"launch": "eager"}, 23.0),  # the exchange and the delay end before the host's next launch
    ],
)
def test_a_reading_should_take_its_own_time_and_the_tolls_of_its_calls(name, conditions, expected):
    assert expected_us(reading(name, **conditions), 9.0, TOLLS, OWN) == expected


def test_a_machines_own_times_are_of_the_same_processes_or_of_another_run():
    tolled = dataclasses.replace(reading("launch_wait"), value=60.0, plain_value=14.0)
    other, unmatched = reading("launch_wait"), reading("event_wait")
    ((own, with_tolls),) = with_own([tolled, reading("host_python")], None)
    assert (own.value, with_tolls.value) == (14.0, 60.0)
    assert with_own([tolled], [other, unmatched]) == [(other, tolled)]


@pytest.fixture
def written(tmp_path):
    """Writes a file of tolls that holds these readings, with and without b300, or without tolls."""

    def write(*names, is_tolled=True):
        tolls = {"name": "b300", "sha256": load_profile("b300").sha256} if is_tolled else None
        readings = tuple(dataclasses.replace(reading(name), plain_value=8.0 if is_tolled else None) for name in names)
        record = TollsRecord(
            mode="emulated" if is_tolled else "off",
            tolls=tolls,
            identity={},
            measured_at="2026-11-29",
            readings=readings,
        )
        path = tmp_path / f"{is_tolled}{len(names)}.json"
        path.write_text(to_json(record))
        return os.fspath(path)

    return write


NEEDED = ("launch_wait", "launch_call", "idle_wait")


def test_a_machines_own_times_are_not_taken_from_a_run_with_tolls(written, capsys):
    with pytest.raises(SystemExit):
        main([written(*NEEDED), "--own", written(*NEEDED, "event_wait")])
    assert "was measured under tolls" in capsys.readouterr().err
    main([written(*NEEDED), "--own", written(*NEEDED, is_tolled=False)])


def test_sums_that_lack_a_part_are_not_held_against_anything(written, capsys):
    with pytest.raises(SystemExit):
        main([written("launch_wait", "launch_call", "event_wait")])
    assert "lacks idle_wait" in capsys.readouterr().err


def test_the_hosts_share_is_at_most_that_of_a_launch_and_its_wait():
    copy = reading("copy")
    assert stretch_us(copy, 7.0, TOLLS, OWN) == pytest.approx(0.7)
    assert stretch_us(copy, 20_000.0, TOLLS, OWN) == pytest.approx(1.4)
    assert stretch_us(copy, 7.0, profile(launch_us=20.0), OWN) == 0
    assert load_profile("b300").number("host_ratio") > 1  # else there was nothing to tell apart


def test_a_collectives_host_code_is_all_that_the_smallest_takes_and_none_of_a_graphs():
    assert stretch_us(reading("all_reduce", launch="eager"), 900.0, TOLLS, OWN) == pytest.approx(0.8)
    assert stretch_us(reading("all_reduce", launch="graph"), 900.0, TOLLS, OWN) == 0


def test_a_time_is_off_by_its_distance_to_the_nearer_sum():
    assert [off_by(us, 100.0, 110.0) for us in (90.0, 100.0, 105.0, 110.0, 121.0)] == pytest.approx(
        [-0.1, 0, 0, 0, 0.1]
    )


def test_what_only_the_hosts_share_can_explain_is_told_apart():
    assert [verdict(us, 100.0, 104.0) for us in (94.0, 96.0, 104.9, 105.1, 109.1, 109.3)] == [
        *("OVER", "", "", "host", "host", "OVER")
    ]
