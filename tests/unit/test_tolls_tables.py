"""What the verb tolls shows: readings beside published ones, and a difference."""

import dataclasses
import io

from rich.console import Console

from cctrain.tolls import table
from cctrain.tolls.diff import Difference
from cctrain.tolls.published import PUBLISHED, published_beside
from tests.toll_records import reading, record


def printed(function, *arguments):
    console = Console(file=io.StringIO(), width=80, markup=False)
    function(*arguments, console)
    return console.file.getvalue()


def row(text, *words):
    """Cells of the one row that holds all the words."""
    (line,) = (line for line in text.splitlines() if all(word in line for word in words))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_published_values_stand_beside_the_readings_that_are_defined_alike():
    readings = [reading("launch_pipelined", 6.74, interval=(6.7, 6.812), via=via) for via in ("torch", "driver")]
    text = printed(table.print_tolls, record("off", *readings))
    assert row(text, "torch") == ["launch_pipelined", "torch", "6.74 us", "6.70 to 6.81", "7.4 -> 26", "2.0x", ""]
    assert row(text, "driver")[4:] == ["", "", ""]


def test_under_tolls_what_it_takes_without_them_stands_beside_it():
    pair = dataclasses.replace(reading("launch_pipelined", 26.1, via="torch"), plain_value=7.9)
    text = printed(table.print_tolls, record("emulated", pair, reading("host_python", 41.0), tolls={"name": "b300"}))
    assert row(text, "26.1")[2:4] == ["7.90", "26.10 us"]
    assert row(text, "41.00")[2:4] == ["41.00 us", "pays none"]


def test_the_tables_title_says_machine_and_mode():
    text = printed(table.print_tolls, record("unknown", reading("launch", 1.0), identity={"num_gpus": 8}))
    assert "8 x B300" in text
    assert "CC unknown" in text
    assert "none" in row(text, "launch")[3]


def test_families_without_readings_are_listed_with_the_reason():
    waived = dict.fromkeys(["launch", "copies"], "no GPU") | {"aes_gcm": "no OpenSSL"}
    text = printed(table.print_tolls, record("off", waived=waived, failed={"graphs": "RuntimeError: [bold]no[/bold]"}))
    assert "waived: launch, copies: no GPU\n" in text
    assert "waived: aes_gcm: no OpenSSL\n" in text
    assert "failed: graphs: RuntimeError: [bold]no[/bold]\n" in text


def test_the_table_of_a_difference_shows_the_toll_and_the_ratio():
    off = reading("copy", 55.7, "GB/s", direction="h2d", bytes=256 << 20)
    on = dataclasses.replace(off, value=5.57)
    text = printed(table.print_differences, [Difference(off, on)], ("off", "on"))
    assert row(text, "256 MiB") == ["copy", "h2d, 256 MiB", "GB/s", "55.70", "5.57", "-50.13", "none", "0.100x"]


def test_nothing_is_cut_on_a_narrow_terminal():
    one = reading("graph_launch_pipelined", 987_654.3, interval=(987_654.3, 987_654.3), bytes=256 << 20, kernel_us=1000)
    for function, arguments in (
        (table.print_tolls, [record("emulated", one, tolls={"name": "b300"})]),
        (table.print_differences, [[Difference(one, one)], ("off", "on")]),
    ):
        console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
        function(*arguments, console)
        assert "…" not in console.file.getvalue()


def test_no_two_published_values_claim_the_same_place():
    places = [(entry.name, entry.hardware, tuple(entry.conditions.items())) for entry in PUBLISHED]
    assert len(set(places)) == len(places)
    assert published_beside(reading("copy", 1.0, direction="h2d", memory="pinned", bytes=1 << 20), "H100") == ""
