"""benchmarks/fidelity.py: what a reading should be under a profile, and how far it may be from that."""

import os

import pytest

from benchmarks.fidelity import (
    by_process,
    expected_us,
    main,
    middle_rows,
    off_by,
    once_us,
    stretch_us,
    sums,
    verdict,
    with_others,
)
from cctrain.emulation.profile import load_profile
from cctrain.records import to_json
from cctrain.tolls.record import Reading, TollsRecord
from tests.stub_driver import profile

TOLLS = profile(
    launch_us=20.0, graph_launch_us=30.0, wait_us=40.0, collective_us=12.0, host_ratio=1.1, h2d_pinned_blocks=True
)
OWN = {"launch_call": 5.0, "idle_wait": 6.0, "launch_wait": 14.0, "all_reduce": 8.0, "all_gather": 3.0}


def reading(name, *, process_values=(), plain_process_values=(), **conditions):
    return Reading(
        name=name,
        unit="us",
        value=9.0,
        interval=None,
        num_blocks=9,
        conditions=conditions,
        process_values=process_values,
        plain_process_values=plain_process_values,
    )


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


@pytest.mark.parametrize(
    ("name", "conditions", "own_us", "expected"),
    [
        ("copy", {}, 50.0, 40.0),
        ("all_reduce", {"launch": "graph"}, 9.0, 70.0),  # the graph's launch, and the wait
        ("all_reduce", {"launch": "eager"}, 9.0, 40.0),  # bound by the host, which pays for each launch
        ("all_reduce", {"launch": "eager"}, 90.0, 60.0),  # the GPU waits for the first one
    ],
)
def test_the_calls_of_a_block_share_what_it_pays_once(name, conditions, own_us, expected):
    assert once_us(reading(name, **conditions), own_us, TOLLS, OWN) == expected


def test_each_process_is_held_against_its_own_times_and_the_middle_one_counts():
    launch = reading("launch_wait", process_values=(70.0, 60.0, 90.0), plain_process_values=(10.0, 20.0, 15.0))
    processes = by_process([launch, reading("host_python")])
    assert [[(own.value, tolled.value) for own, tolled in pairs] for pairs in processes] == [
        [(10.0, 70.0)],
        [(20.0, 60.0)],
        [(15.0, 90.0)],
    ]
    (row,) = middle_rows([row for pairs in processes for row in sums(pairs, TOLLS)])
    assert (row.own_us, row.got_us) == (10.0, 70.0)  # the second pays 20 less than its toll, the third 15 more


def test_a_machines_own_times_may_be_of_another_run():
    tolled = reading("launch_wait", process_values=(60.0,), plain_process_values=(14.0,))
    other, unmatched = reading("launch_wait"), reading("event_wait")
    assert with_others([tolled], [other, unmatched]) == [(other, tolled)]


@pytest.fixture
def written(tmp_path):
    """Writes a file of tolls that holds these readings, with and without b300, or without tolls."""

    def write(*names, is_tolled=True):
        tolls = {"name": "b300", "sha256": load_profile("b300").sha256} if is_tolled else None
        values = {"process_values": (9.0,), "plain_process_values": (8.0,)} if is_tolled else {}
        readings = tuple(reading(name, **values) for name in names)
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
