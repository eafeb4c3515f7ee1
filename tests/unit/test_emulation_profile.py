"""Toll profiles: what the shipped ones are made of, what a toll of a copy is, and which files are refused."""

import itertools
import json
import math
import os

import pytest

from cctrain.emulation.profile import (
    CLASSES,
    FLAGS,
    KIND,
    RATIOS,
    SCALARS,
    TABLES,
    TOLLS,
    copy_toll_us,
    load_profile,
    parse_profile,
)
from cctrain.errors import RequestError
from cctrain.packaged import CONF
from cctrain.tolls.published import PUBLISHED

SHIPPED = sorted(path.stem for path in (CONF / "tolls").glob("*.yaml"))


# The shipped profiles


def test_there_are_three_profiles():
    assert SHIPPED == ["b300", "h100", "hopper"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_loads_and_names_a_source_for_every_toll(name):
    profile = load_profile(name)
    assert profile.name == name
    assert tuple(profile.tolls) == TOLLS
    assert all(len(toll.source) > 10 for toll in profile.tolls.values())
    assert profile.notes
    assert profile.tolls["host_ratio"].interval == (1.05, 1.15)


def published(name, hardware, **conditions):
    """The CC-off and CC-on values as printed; a span is the middle that the profile takes."""
    (text,) = {
        entry.text
        for entry in PUBLISHED
        if (entry.name, entry.hardware) == (name, hardware) and conditions.items() <= entry.conditions.items()
    }
    return text


def off_on(text):
    off, _, on = text.partition(" -> ")
    low, _, high = on.partition("-")
    return float(off), round(math.sqrt(float(low) * float(high)), 1) if high else float(on)


def ratio(text):
    return float(text.removesuffix("x"))


def span(text):
    low, high = text.removeprefix("+").split("-")
    return float(low), float(high)


def us(num_bytes, off_gb_per_s, on_gb_per_s):
    return num_bytes / 1e3 * (1 / on_gb_per_s - 1 / off_gb_per_s)


LAUNCH = off_on(published("launch_pipelined", "B300"))
WAIT = off_on(published("launch_wait", "B300"))
PINNED = off_on(published("copy", "B300", memory="pinned"))
PAGEABLE = off_on(published("copy", "B300", memory="pageable"))
FIXED_US = {"h2d_pinned": 21.9 - 2.05, "h2d_pageable": 36.8 - 8.7, "d2h_pinned": 21.5 - 1.94}
"""ISPASS'25, 64 bytes, H100."""
SIZE = 256 << 20


def close(value):
    return pytest.approx(value, rel=1e-4)


def test_b300_is_what_the_seed_post_publishes():
    profile = load_profile("b300")
    launch = LAUNCH[1] - LAUNCH[0]
    assert profile.number("launch_us") == profile.number("graph_launch_us") == close(launch)
    assert profile.number("wait_us") == close(WAIT[1] - WAIT[0] - launch)
    assert profile.points("copy_h2d_pinned_us") == points(FIXED_US["h2d_pinned"], us(SIZE, *PINNED))
    assert profile.points("copy_d2h_pinned_us") == points(FIXED_US["d2h_pinned"], us(SIZE, *PINNED))
    for name in ("copy_h2d_pageable_us", "copy_d2h_pageable_us"):
        assert profile.points(name) == points(FIXED_US["h2d_pageable"], us(SIZE, *PAGEABLE))
    assert profile.tolls["collective_us"].interval == span(published("all_reduce", "B300", bytes=1024))
    assert profile.number("collective_us") == sum(profile.tolls["collective_us"].interval) / 2
    assert profile.number("matmul_ratio") == ratio(published("matmul", "B300"))


def points(fixed_us, of_size_us):
    return ((64, close(fixed_us)), (SIZE, close(fixed_us + of_size_us)))


def test_hopper_is_the_seed_posts_ratios_on_b300s_figures():
    profile = load_profile("hopper")
    launch = (ratio(published("launch_pipelined", "Hopper")) - 1) * LAUNCH[0]
    assert profile.number("launch_us") == profile.number("graph_launch_us") == close(launch)
    assert profile.number("wait_us") == close((ratio(published("launch_wait", "Hopper")) - 1) * WAIT[0] - launch)
    bandwidth = (PINNED[0], PINNED[0] * ratio(published("copy", "Hopper", memory="pinned")))
    assert profile.points("copy_h2d_pinned_us") == points(FIXED_US["h2d_pinned"], us(SIZE, *bandwidth))
    assert profile.points("copy_d2h_pinned_us") == points(FIXED_US["d2h_pinned"], us(SIZE, *bandwidth))
    for name in ("copy_h2d_pageable_us", "copy_d2h_pageable_us"):
        assert profile.points(name) == load_profile("b300").points(name)
    assert profile.tolls["collective_us"].interval == span(published("all_reduce", "Hopper", bytes=1024))
    assert profile.number("collective_us") == sum(profile.tolls["collective_us"].interval) / 2


def test_h100_is_what_ispass_publishes():
    profile = load_profile("h100")
    off, on = off_on(published("launch_call", "H100"))
    assert profile.number("launch_us") == profile.number("graph_launch_us") == close(on - off)

    def bulk(direction, memory, num_bytes):
        rates = published("copy", "H100", direction=direction, memory=memory, bytes=num_bytes)
        return num_bytes, close(us(num_bytes, *off_on(rates)))

    small = (65536, close(us(65536, 18.7, 1.25))), (1 << 20, close(us(1 << 20, 39.9, 2.63)))
    pinned = (64, close(FIXED_US["h2d_pinned"])), *small, *(bulk("h2d", "pinned", size) for size in (64 << 20, 1 << 30))
    assert profile.points("copy_h2d_pinned_us") == pinned
    pageable = (64, close(FIXED_US["h2d_pageable"])), bulk("h2d", "pageable", 1 << 30)
    assert profile.points("copy_h2d_pageable_us") == profile.points("copy_d2h_pageable_us") == pageable
    assert profile.points("copy_d2h_pinned_us") == (
        (64, close(FIXED_US["d2h_pinned"])),
        bulk("d2h", "pinned", 1 << 30),
    )
    assert profile.classes() == ("launch", "graph_launch", "copy", "host")


# What a profile says


def profile_with(**values):
    return parse_profile(content(**values))


def content(**values):
    tolls = {name: {"value": value, "interval": None, "source": "made up"} for name, value in values.items()}
    return {"kind": KIND, "schema_version": 1, "name": "mine", "tolls": tolls}


def test_a_toll_that_a_profile_leaves_out_is_not_known_and_nothing_is_paid():
    profile = profile_with(launch_us=None)
    assert all(profile.tolls[name].value is None for name in TOLLS)
    assert {profile.number(name) for name in SCALARS} == {0.0}
    assert {profile.number(name) for name in RATIOS} == {1.0}
    assert {profile.points(name) for name in TABLES} == {()}
    assert {profile.blocks(name) for name in FLAGS} == {False}
    assert profile.classes() == ()


def test_classes_are_those_with_something_to_pay():
    paid = {
        "launch_us": 1,
        "graph_launch_us": 0,
        "d2h_pinned_blocks": True,
        "copy_h2d_pinned_us": [[0, 0]],
        "host_ratio": 1,
        "matmul_ratio": 0.5,
    }
    assert profile_with(**paid).classes() == ("launch", "copy")
    assert profile_with(copy_h2d_pinned_us=[[0, 0], [1, 2]], host_ratio=1.1).classes() == ("copy", "host")


def test_a_class_alone_leaves_nothing_to_pay_for_the_others():
    profile = load_profile("b300")
    assert (
        profile.of_classes(profile.classes()).classes()
        == profile.classes()
        == tuple(n for n in CLASSES if n != "alloc")
    )
    for name in profile.classes():
        alone = profile.of_classes([name])
        assert alone.classes() == (name,)
        assert all(alone.tolls[toll] == profile.tolls[toll] for toll in CLASSES[name])


@pytest.mark.parametrize("name", SHIPPED)
def test_a_profile_travels_as_json(name):
    profile = load_profile(name)
    again = parse_profile(json.loads(json.dumps(profile.to_dict())))
    assert again == profile
    assert again.sha256 == profile.sha256


def test_the_hash_is_of_the_numbers_not_of_the_file(tmp_path):
    packed = tmp_path / "b300.json"
    packed.write_text(json.dumps(load_profile("b300").to_dict() | {"name": "another", "notes": [], "made_of": {}}))
    assert load_profile(str(packed)).sha256 == load_profile("b300").sha256
    hashes = {profile_with(**values).sha256 for values in ({}, {"launch_us": 0}, {"launch_us": 1}, {"wait_us": 1})}
    assert len(hashes) == 4
    assert profile_with(launch_us=1).sha256 == profile_with(launch_us=1.0).sha256


@pytest.mark.parametrize(
    ("table", "num_bytes", "expected"),
    [
        ([], 64, 0),
        ([(64, 20.0)], 0, 20),
        ([(64, 20.0)], 1 << 30, 20),
        ([(64, 20.0), (1064, 120.0)], 4, 20),
        ([(64, 20.0), (1064, 120.0)], 564, 70),
        ([(64, 20.0), (1064, 120.0)], 1064, 120),
        ([(64, 20.0), (1064, 120.0)], 2064, 220),
        ([(0, 0.0), (10, 10.0), (20, 40.0)], 10, 10),
        ([(0, 0.0), (10, 10.0), (20, 40.0)], 15, 25),
        ([(0, 0.0), (10, 10.0), (20, 40.0)], 30, 70),
        ([(0, 10.0), (10, 5.0)], 15, 2.5),
        ([(0, 10.0), (10, 5.0)], 30, 0),
    ],
)
def test_a_copys_toll_goes_straight_from_point_to_point(table, num_bytes, expected):
    assert copy_toll_us(table, num_bytes) == expected


# Files of others


HEAD = f"kind: {KIND}\nschema_version: 1\nname: mine\n"


def file(tmp_path, text, name="mine.yaml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def toll(name, text):
    return f"{HEAD}tolls:\n  {name}: {{{text}}}\n"


def launch(value, rest="source: x"):
    return toll("launch_us", f"value: {value}, {rest}")


def table(value):
    return toll("copy_h2d_pinned_us", f"value: {value}, source: x")


def test_a_profile_of_your_own_may_be_short(tmp_path):
    profile = load_profile(file(tmp_path, launch("1e1", 'interval: [5, 15], source: "a guess"')))
    assert (profile.number("launch_us"), profile.tolls["launch_us"].interval) == (10.0, (5.0, 15.0))


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "because"),
    [
        ("", "it is empty"),
        ("null", "the file is null"),
        ("[1]", "the file is"),
        ("kind: tolls", "kind is tolls, not cctrain emulation profile, which `tolls --diff` writes"),
        ("kind: [", "this is neither YAML nor JSON: "),
        ("name: a: b", "line 1: this is neither YAML nor JSON: mapping values are not allowed here"),
        (HEAD.replace("1", "2"), "schema_version is 2.0, this cctrain reads 1"),
        (HEAD, "tolls is null"),
        (HEAD.replace("mine", '"\\e[2J"') + "tolls: {}", "name is"),
        (HEAD.replace("mine", "x" * 500) + "tolls: {}", "name is"),
        (HEAD.replace("mine", "5") + "tolls: {}", "name is 5.0"),
        (HEAD + "tolls: {}\nextra: 1", "the file holds extra"),
        (HEAD + "tolls: {}\ntolls: {}", "tolls is given twice"),
        (HEAD + "tolls: {}\nnotes: text", "notes is text"),
        (HEAD + 'tolls: {}\nnotes: ["\\x07"]', "a note is"),
        (HEAD + "tolls: {}\nmade_of: 3", "made_of is 3.0"),
        (HEAD + "tolls: {1: {}}", "tolls is"),
        (HEAD + "tolls: {? [a] : 1}", "a key is no word"),
        (HEAD + "tolls: {launch: {value: 1, source: x}}", "Did you mean launch_us?"),
        (HEAD + "tolls: {launch_us: 18.6}", "launch_us is 18.6"),
        (launch("1", "interval: null"), "source of launch_us is null"),
        (launch("1", "source: ''"), "source of launch_us is"),
        (launch("1", "sauce: x"), "launch_us holds sauce"),
        (launch("true"), "value of launch_us is true"),
        (launch("'18.6'"), "value of launch_us is the text 18.6"),
        (launch("-1"), "value of launch_us is -1.0, allowed is a number from 0 to 1e+06"),
        (launch("1e7"), "value of launch_us is 10000000.0"),
        (launch("1e999"), "value of launch_us is Infinity"),
        (launch("9" * 5000), "value of launch_us is Infinity"),
        (launch(".nan"), "value of launch_us is the text .nan"),
        (launch(".inf"), "value of launch_us is the text .inf"),
        (launch("1:30"), "value of launch_us is the text 1:30"),
        (launch("0x10"), "value of launch_us is the text 0x10"),
        (launch("[1]"), "value of launch_us is [1.0]"),
        (launch("1", "interval: [2, 3], source: x"), "does not hold its value"),
        (launch("1", "interval: [3, 0], source: x"), "does not hold its value"),
        (launch("null", "interval: [0, 1], source: x"), "does not hold its value"),
        (launch("1", "interval: 1, source: x"), "interval of launch_us is 1.0"),
        (launch("1", "interval: [a, b], source: x"), "interval of launch_us is the text a"),
        (toll("host_ratio", "value: 0.9, source: x"), "a number from 1 to 10"),
        (toll("host_ratio", "value: 11, source: x"), "a number from 1 to 10"),
        (toll("h2d_pinned_blocks", "value: 1, source: x"), "allowed is true or false"),
        (toll("h2d_pinned_blocks", "value: yes, source: x"), "allowed is true or false"),
        (table("5"), "not a list of 1 to 16 pairs"),
        (table("[]"), "not a list of 1 to 16 pairs"),
        (table(str([[size, 1] for size in range(17)])), "not a list of 1 to 16 pairs"),
        (table("[[1, 2, 3]]"), "not a pair"),
        (table("[[1.5, 2]]"), "bytes of copy_h2d_pinned_us is 1.5"),
        (table("[[-1, 2]]"), "bytes of copy_h2d_pinned_us is -1.0"),
        (table("[[1e30, 2]]"), "bytes of copy_h2d_pinned_us is 1e+30"),
        (table("[[1, -2]]"), "microseconds of copy_h2d_pinned_us is -2.0"),
        (table("[[1, true]]"), "microseconds of copy_h2d_pinned_us is true"),
        (table("[[2, 1], [2, 1]]"), "do not rise"),
        (toll("copy_h2d_pinned_us", "value: [[1, 1]], interval: [0, 1], source: x"), "tables and flags have none"),
        (HEAD + "tolls: !!python/object/apply:os.system [true]", "no aliases and no tags"),
        (HEAD + "tolls: !!timestamp x", "no aliases and no tags"),
        (BOMB, "no aliases and no tags"),
        (HEAD + "tolls: &t {made_of: *t}", "no aliases and no tags"),
        (HEAD + "tolls: {<<: {launch_us: null}}", "tolls holds <<"),
        (HEAD + "tolls: " + "[" * 60_000, "nested too deeply"),
        (HEAD + "tolls: " + "{a: " * 15_000, "nested too deeply"),
        (HEAD + "---\ntolls: {}", "line"),
        (HEAD + "\ttolls: {}", "line"),
        (HEAD.encode() + b"\xff\xfe", "no text in UTF-8, from byte 61 on"),
        (HEAD + "tolls: \x00", "neither YAML nor JSON"),
        (" " * (1 << 20), "larger than 64 KiB"),
    ],
)
def test_a_wrong_or_hostile_profile_is_refused_in_one_line_that_names_the_file(tmp_path, text, because):
    path = file(tmp_path, text)
    with pytest.raises(RequestError) as caught:
        load_profile(path)
    assert because in str(caught.value)
    assert path in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700
    assert caught.value.exit_code == 2


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo.yaml")  # reading it would wait for ever
    (tmp_path / "folder.yaml").mkdir()
    for name in ("absent.yaml", "fifo.yaml", "folder.yaml", "absent\0.yaml"):
        with pytest.raises(RequestError, match="toll profile"):
            load_profile(str(tmp_path / name))
    with pytest.raises(RequestError, match="home directory"):
        load_profile("~nobody-of-this-name/x.yaml")


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(RequestError, match=r"no toll profile b30: .*takes b300, h100, hopper.*Did you mean b300\?"):
        load_profile("b30")
    with pytest.raises(RequestError, match="no toll profile"):
        load_profile("")
