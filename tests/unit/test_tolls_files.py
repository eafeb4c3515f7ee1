"""Tolls without torch: the file, the difference, the profile and the command line."""

import dataclasses
import json
import os

import pytest

from cctrain.commands import tolls as verb
from cctrain.emulation.profile import ASSUMED, load_profile
from cctrain.errors import RequestError
from cctrain.records import to_json
from cctrain.tolls.diff import Difference, check_comparable, differences, who_pays
from cctrain.tolls.profile import control_warning, emulation_profile
from cctrain.tolls.record import read_tolls
from tests.toll_records import IDENTITY, both, reading, record


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else to_json(content))
        return path

    return write


# The file


def test_a_record_reads_back_as_it_was_written(write):
    written = record("on", reading("copy", 54.7, "GB/s", (54.0, 55.0), direction="h2d", bytes=64), reading("x", 0.0))
    assert read_tolls(write("tolls.json", written)) == written


GOOD = dataclasses.asdict(record("on", reading("launch", 1.0, interval=(1.0, 2.0))))


def changed(**keys):
    return json.dumps(GOOD | keys)


def with_reading(**keys):
    return changed(readings=[GOOD["readings"][0] | keys])


@pytest.mark.parametrize(
    ("content", "because"),
    [
        ("", "it is empty"),
        ("[1,\n2", "it is no JSON, from line 2, column 2 on"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "the file is [], not an object"),
        ("{}", "kind is null"),
        ('{"kind": "tolls", "schema_version": NaN}', "NaN"),
        (changed(kind="cctrain emulation profile"), "kind is cctrain emulation profile"),
        (changed(schema_version=3), "schema_version is 3, this cctrain reads 2"),
        (changed(mode="sometimes"), "mode is sometimes"),
        (changed(readings={}), "readings is {}"),
        (changed(readings=[1]), "a reading is 1"),
        (changed(readings=GOOD["readings"] * 2), "twice"),
        (changed(identity={"gpu": ["B300"]}), 'gpu in identity is ["B300"]'),
        (changed(identity={"gpu": "\x1b[2J"}), "not a line of text"),
        (with_reading(name="x" * 1000), "not a line of text"),
        (with_reading(name=None), "name is null"),
        (with_reading(value="1"), "value of launch is the text 1, allowed"),
        (with_reading(value=True), "value of launch is true"),
        (with_reading(value=-1), "value of launch is -1"),
        (with_reading(value=10**300), "value of launch is 1000"),
        (with_reading(value=1.5).replace("1.5", "1e999"), "value of launch is Infinity"),
        (with_reading(value=1.5).replace("1.5", "9" * 5000), "is not a file"),
        (with_reading(interval=[1]), "interval of launch is [1]"),
        (with_reading(interval=["a", "b"]), "interval of launch is the text a, allowed"),
        (with_reading(conditions=[]), "conditions of launch is []"),
        (with_reading(conditions={"bytes": 1.5}), "bytes in conditions of launch is 1.5"),
        (" " * (5 << 20), "larger than 4 MiB"),
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line(write, content, because):
    path = write("hostile.json", content)
    with pytest.raises(RequestError) as caught:
        read_tolls(path)
    assert because in str(caught.value)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")  # reading it would wait for ever
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("absent", "fifo", "binary", "."):
        with pytest.raises(RequestError):
            read_tolls(tmp_path / name)


# The difference


def test_a_toll_is_on_minus_off_and_its_interval_adds_the_squares():
    off = reading("launch", 7.0, interval=(6.0, 7.4))
    toll = Difference(off, reading("launch", 26.0, interval=(25.7, 29.0)))
    assert toll.toll == 19.0
    assert toll.ratio == pytest.approx(26 / 7)
    assert toll.interval == pytest.approx((19.0 - 0.5, 19.0 + 10**0.5))
    assert not toll.is_noise


def test_a_toll_within_the_noise_is_called_noise_and_one_without_interval_is_not():
    off = reading("launch", 7.0, interval=(6.5, 7.5))
    assert Difference(off, reading("launch", 7.1, interval=(6.6, 7.6))).is_noise
    lone = Difference(off, reading("launch", 7.1))
    assert lone.interval is None
    assert not lone.is_noise


def test_readings_are_matched_by_name_unit_and_conditions():
    off = record(
        "off", reading("copy", 1.0, bytes=64), reading("copy", 2.0, bytes=128), reading("matmul", 1.0, "TFLOP/s")
    )
    on = record("on", reading("matmul", 1.0, "us"), reading("copy", 20.0, bytes=128))
    (toll,) = differences(off, on)
    assert (toll.off.value, toll.on.value) == (2.0, 20.0)
    with pytest.raises(RequestError, match="no reading in common"):
        differences(off, record("on", reading("other", 1.0)))


@pytest.mark.parametrize("key", ["gpu", "num_gpus", "driver", "cpu", "torch", "cctrain"])
def test_machines_that_differ_are_refused_by_name_unless_allowed(key):
    off, on = record("off"), record("on", identity={key: "other"})
    with pytest.raises(RequestError, match=rf"differ in {key} \({IDENTITY[key]} and other\); --allow {key} "):
        check_comparable(off, on, [])
    check_comparable(off, on, [key])


@pytest.mark.parametrize("modes", [("on", "off"), ("off", "off"), ("unknown", "on"), ("off", "unknown")])
def test_files_whose_modes_are_not_off_and_on_are_refused(modes):
    off, on = (record(mode) for mode in modes)
    with pytest.raises(RequestError, match=f"these are {modes[0]} and {modes[1]}"):
        check_comparable(off, on, ["gpu"])
    check_comparable(off, on, ["mode"])


def test_no_difference_is_taken_of_emulated_readings_whatever_is_allowed():
    with pytest.raises(RequestError, match="these are off and emulated"):
        check_comparable(record("off"), record("emulated", tolls={"name": "b300"}), ["mode"])


def test_all_that_differs_is_said_at_once():
    off, on = record("off"), record("off", identity={"gpu": "H200", "torch": "2.13"})
    with pytest.raises(RequestError, match="--allow mode gpu torch takes them all the same"):
        check_comparable(off, on, [])


# The profile

B300 = (
    ("launch_pipelined", 7.4, 26.0, "us", {"via": "torch"}),
    ("launch_pipelined", 2.0, 3.0, "us", {"via": "driver", "args": 1}),
    ("launch_wait", 14.0, 55.0, "us", {"via": "torch"}),
    ("graph_launch_pipelined", 8.0, 7.5, "us", {"kernels": 1}),
    ("copy", 16.0, 77.4, "us", {"direction": "h2d", "memory": "pinned", "bytes": 64}),
    ("copy", 43.0, 5.0, "GB/s", {"direction": "h2d", "memory": "pinned", "bytes": 64 << 20}),
    ("copy", 55.7, 6.0, "GB/s", {"direction": "h2d", "memory": "pinned", "bytes": 1 << 30}),
    ("copy_issue", 13.9, 1390.0, "us", {"direction": "h2d", "memory": "pinned", "bytes": 4, "work_us": 1400}),
    ("copy_issue", 13.9, 20.0, "us", {"direction": "h2d", "memory": "pinned", "bytes": 1 << 20, "work_us": 1400}),
    ("copy_issue", 13.9, 1390.0, "us", {"direction": "d2h", "memory": "pinned", "bytes": 4, "work_us": 1400}),
    ("copy_issue", 13.9, 20.0, "us", {"direction": "d2h", "memory": "pageable", "bytes": 4, "work_us": 1400}),
    ("alloc", 100.0, 570.0, "us", {"where": "host", "bytes": 1 << 20}),
    ("alloc", 9000.0, 9999.0, "us", {"where": "host", "bytes": 64 << 20}),
    ("all_reduce", 20.0, 50.0, "us", {"launch": "eager", "bytes": 1024}),
    ("all_reduce", 10.0, 22.0, "us", {"launch": "graph", "bytes": 1024}),
    ("host_python", 40.0, 44.0, "ns", {}),
    ("matmul", 790.0, 788.0, "TFLOP/s", {}),
)


def profile_of(*triples):
    off, on = both(*triples)
    return emulation_profile("b300", off, on, differences(off, on))


def test_a_profile_holds_what_an_emulator_injects():
    numbers = {name: number["value"] for name, number in profile_of(*B300)["tolls"].items()}
    expected = {
        "launch_us": 26 - 7.4 - 0.1 * (7.4 - 2),  # of its own host code host_ratio charges the rest
        "graph_launch_us": 0.0,
        "wait_us": (55 - 14) - (26 - 7.4),
        "h2d_pinned_blocks": False,
        "d2h_pinned_blocks": True,
        "d2h_pageable_blocks": False,
        "alloc_host_us": 470.0,
        "collective_us": 12.0,
        "host_ratio": 1.1,
        "matmul_ratio": 788 / 790,
    }
    assert {name: numbers[name] for name in expected} == pytest.approx(expected)
    table = numbers["copy_h2d_pinned_us"]
    of_wait = (55 - 14) - (26 - 7.4)
    assert [num_bytes for num_bytes, _ in table] == [64, 64 << 20, 1 << 30]
    assert table[0][1] == pytest.approx((77.4 - 16) - of_wait)
    assert table[2][1] == pytest.approx((1 << 30) / 1e3 * (1 / 6.0 - 1 / 55.7) - of_wait)
    unknown = {name for name, value in numbers.items() if value is None}
    assert unknown == numbers.keys() - expected.keys() - {"copy_h2d_pinned_us"}


def test_a_launchs_toll_is_the_whole_difference_where_its_own_host_code_is_not_known():
    launch = profile_of(*(reading for reading in B300 if reading[4].get("via") != "driver"))["tolls"]["launch_us"]
    assert launch["value"] == pytest.approx(26 - 7.4)


def test_what_a_difference_makes_is_what_an_emulated_run_loads(tmp_path):
    made = profile_of(*B300)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(made))
    loaded = load_profile(str(path))
    assert {name: toll["value"] for name, toll in loaded.to_dict()["tolls"].items()} == {
        name: number["value"] for name, number in made["tolls"].items()
    }
    assert loaded.classes() == ("launch", "wait", "copy", "alloc", "collective", "host")


def test_noise_below_zero_is_nothing_to_pay():
    noisy = (("launch_pipelined", 7.4, 7.0, "us", {"via": "torch"}), ("host_python", 40.0, 39.0, "ns", {}))
    off, on = both(*noisy)
    off, on = (
        dataclasses.replace(each, readings=tuple(dataclasses.replace(r, interval=(6.9, 7.5)) for r in each.readings))
        for each in (off, on)
    )
    tolls = emulation_profile("noise", off, on, differences(off, on))["tolls"]
    assert tolls["launch_us"]["value"] == 0
    assert tolls["launch_us"]["interval"][0] == 0
    assert tolls["launch_us"]["source"].endswith("; -0.4 taken as 0")
    assert tolls["host_ratio"] == {
        "value": 1.0,
        "interval": None,
        "source": "host_python (): 40 -> 39 ns; 0.975 taken as 1",
    }


def test_a_difference_too_large_to_inject_is_refused():
    with pytest.raises(RequestError, match="value of launch_us is 2000000"):
        profile_of(("launch_pipelined", 7.4, 2_000_007.4, "us", {"via": "torch"}))


def test_every_number_of_a_profile_names_its_source():
    profile = profile_of(*B300)
    launch = "[launch_pipelined (via torch): 7.4 -> 26 us]"
    less = "less 0.54 us of slower host code around the call, which host_ratio charges"
    assert profile["tolls"]["launch_us"]["source"] == f"{launch}; {less}"
    assert profile["tolls"]["wait_us"]["source"] == f"[launch_wait (via torch): 14 -> 55 us] - {launch}"
    assert profile["tolls"]["graph_launch_us"]["source"].endswith("; -0.5 taken as 0")
    assert profile["tolls"]["alloc_device_us"] == {"value": None, "interval": None, "source": "not in both files"}
    assert profile["made_of"]["on"] == {"mode": "on", "measured_at": "2026-11-21", "identity": IDENTITY}


def test_a_control_that_moved_is_pointed_out():
    assert control_warning(profile_of(*B300)) is None
    assert "matmul runs at 0.900" in control_warning(profile_of(("matmul", 100.0, 90.0, "TFLOP/s", {})))
    assert control_warning(profile_of(B300[0])) is None


@pytest.mark.parametrize(
    ("behind", "found"),
    [
        ((4.0, 1.0, 0.4), "the host pays it and work hides it"),
        ((18.0, 18.1, 18.2), "the GPU's front end pays it"),
        ((18.0, 12.0, 7.0), "neither bears out nor refutes"),
    ],
)
def test_who_pays_for_a_launch_follows_from_what_shows_behind_the_longest_work(behind, found):
    busy = [
        ("launch_busy", float(us), us + toll, "us", {"via": "driver", "kernel_us": us})
        for us, toll in zip((20, 50, 200), behind, strict=True)
    ]
    said = who_pays(differences(*both(("launch_pipelined", 7.4, 26.0, "us", {"via": "torch"}), *busy)))
    assert found in said
    assert ASSUMED[0] in said
    assert f"{behind[2]:.1f} us behind 200 us" in said


def test_nobody_is_said_to_pay_where_work_or_the_toll_of_a_launch_is_not_known():
    launch, busy = (
        ("launch_pipelined", 7.4, 7.4, "us", {"via": "torch"}),
        ("launch_busy", 20.0, 20.0, "us", {"kernel_us": 20}),
    )
    assert who_pays(differences(*both(launch))) is None
    assert who_pays(differences(*both(launch, busy))) is None
    dearer = ("launch_pipelined", 7.4, 26.0, "us", {"via": "torch"})
    assert who_pays(differences(*both(dearer, ("launch_busy", 20.0, 38.0, "us", {"via": "driver"})))) is None


# The command line


@pytest.mark.parametrize(
    ("arguments", "because"),
    [
        (["--only", "launches"], "--only launches: allowed is host"),
        (["--only", "launches"], "Did you mean launch?"),
        (["--allow", "gpus", "--diff", "a", "b"], "Did you mean gpu?"),
        (["--diff", "a"], "--diff needs OFF ON"),
        (["--diff", "a", "b", "--only", "host"], "give one or the other"),
        (["--diff", "a", "b", "--tolls", "b300"], "give one or the other"),
        (["--allow", "gpu"], "go with --diff"),
        (["--name", "b300"], "go with --diff"),
        (["--out", "/no/such/directory/file"], "no file can be written there"),
        (["--out", "."], "no file can be written there"),
        (["recipe=tiny"], "unrecognized arguments: recipe=tiny"),
        (["--diff", "absent.json", "absent.json"], "absent.json cannot be read"),
    ],
)
def test_a_wrong_command_line_is_refused_with_what_to_change(arguments, because):
    with pytest.raises(RequestError) as caught:
        verb.run(arguments)
    assert because in str(caught.value)


def test_a_difference_is_printed_and_written_as_a_profile(write, tmp_path, capsys):
    off, on = both(*B300, ("event_record", 1.0, 2.0, "us", {}))
    on = dataclasses.replace(on, readings=on.readings[:-1])
    out = tmp_path / "profile.json"
    files = [str(write("off.json", off)), str(write("b300.json", on))]
    assert verb.run(["--diff", *files, "--out", str(out)]) == 0
    output = capsys.readouterr()
    last = json.loads(output.out.splitlines()[-1])
    assert last == {"out": str(out), **json.loads(out.read_text())}
    assert (last["kind"], last["name"]) == ("cctrain emulation profile", "b300")
    assert "launch_pipelined" in output.out
    assert "1 readings are in one of the files only" in output.err


def test_a_difference_never_replaces_its_own_files(write):
    off, on = both(*B300)
    files = [str(write("off.json", off)), str(write("on.json", on))]
    with pytest.raises(RequestError, match="would replace one of the two files"):
        verb.run(["--diff", *files, "--out", files[1]])
    assert read_tolls(write("again.json", on)).mode == "on"
