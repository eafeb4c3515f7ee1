"""The HTML report: everything in it, nothing from outside, and whatever a record holds stays text."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest
from make_records import emulated_record, one_pair, run_record, write

from cctrain.comparison.compare import compare
from cctrain.comparison.groups import Options
from cctrain.emulation.profile import emulated_note
from cctrain.load import read_runs
from cctrain.records import to_json
from cctrain.report import html, plots
from cctrain.report.platforms import platforms

SCRIPT = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>"


class Reader(HTMLParser):
    """Collects tags with their attributes, and checks that they nest."""

    void = ("meta", "link", "br", "img", "path", "use")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def answer(tmp_path, **options):
    return compare(read_runs([tmp_path]), Options(**options))


def planted(node, count):
    """The tree with a script in every value that is a string, but the few that must be what they are."""
    if isinstance(node, dict):
        kept = ("mode", "status", "started_at", "sha256")
        return {key: value if key in kept else planted(value, count) for key, value in node.items()}
    if isinstance(node, list):
        return [planted(value, count) for value in node]
    if isinstance(node, str):
        count.append(node)
        return f"{node}{SCRIPT}"
    return node


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    records = [run_record("off", 1, num_steps=40), run_record("on", 2, num_steps=40), emulated_record(3, num_steps=96)]
    for number, record in enumerate(records):
        content = json.loads(to_json(record))
        count = []
        content = planted(content, count)
        content["run_id"] = f"{number}{SCRIPT}"
        content["platform"][SCRIPT] = {SCRIPT: [SCRIPT]}
        content["identity"][f"a{SCRIPT}"] = SCRIPT
        if content["tolls"]:
            content["tolls"]["content"]["notes"] = [SCRIPT]
            content["tolls"]["content"]["tolls"][SCRIPT] = {"value": SCRIPT, "source": SCRIPT}
        for step in content["steps"]:
            step["phases_s"][f"forward{SCRIPT}"] = 0.01
        assert len(count) > 20
        path = root / f"run{number}.json"
        path.write_text(json.dumps(content))
    return html.page(answer(root))


def test_a_script_in_every_string_of_a_record_stays_text(hostile):
    page = Reader(hostile)
    assert not page.open
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "iframe", "object", "embed", "foreignobject", "form", "base"}
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "alert('x')" in "".join(page.text)


def test_the_page_needs_no_network(hostile):
    for tag, attributes in Reader(hostile).tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            value = attributes.get(name) or ""
            assert value.startswith(("#", "data:")) or not value, (tag, name, value)
    assert not re.search(r"@import|url\((?!#)", hostile)
    assert "default-src 'none'" in hostile


def test_every_id_is_there_once_and_what_is_referred_to_exists(hostile):
    page = Reader(hostile)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = {attributes["xlink:href"][1:] for _, attributes in page.tags if "xlink:href" in attributes}
    referred |= set(re.findall(r"url\(#([^)]+)\)", hostile))
    assert referred <= set(ids)


def test_the_verdict_comes_first_then_all_that_it_rests_on(tmp_path):
    for number in range(2):
        write(tmp_path, run_record("off", 2 * number, num_steps=40))
        write(tmp_path, run_record("on", 2 * number + 1, num_steps=40, step_time_s=0.28))
    write(tmp_path, emulated_record(9, num_steps=96))
    text = " ".join("".join(Reader(html.page(answer(tmp_path))).text).split())
    marks = [
        "CC costs 28",
        "emulated, not measured under CC",
        "Throughput kept",
        "Step times",
        "How long steps take",
        "Phases of a step",
        "Where the loss comes from",
        "What emulated means",
        "launch tolls are paid by the thread that calls",
        "Tolls of the profile b300",
        "7.4 -> 26",
        "Machines",
        "What differs",
        "guest.kind",
        "The commands that made the runs",
        "python -m cctrain recipe=llama8b_peft cc=on",
        "How to read this",
    ]
    places = [text.find(mark) for mark in marks]
    assert -1 not in places, marks[places.index(-1)]
    assert places == sorted(places)


def test_what_is_signed_for_one_run_is_no_difference_between_machines(tmp_path):
    for number, mode in enumerate(("off", "on")):
        record = run_record(mode, number, step_time_s=0.28)
        attested = {"nonce": f"cafe{number}", "gpus": [{"report": "QUJD" * 2000}], "missing": None}
        write(tmp_path, dataclasses.replace(record, platform={**record.platform, "attestation": attested}))
    text = html.page(answer(tmp_path))
    assert "cafe0" not in text
    assert "QUJDQUJD" not in text
    assert "attestation.missing" in text


def test_what_is_unknown_or_of_a_moment_is_no_difference_between_machines(tmp_path):
    loaded, clock = {"off": None, "on": {"torch": "2.11"}}, {"off": 345, "on": 1980}
    for mode in ("off", "on"):
        gpus = {"devices": [{"sm_clock_mhz": {"current": clock[mode], "max": 1980}}]}
        platform = {"versions": {"loaded": loaded[mode]}, "gpus": gpus, "guest": {"kind": mode}, "swiotlb": None}
        write(tmp_path, run_record(mode, clock[mode], platform=platform, step_time_s=0.28))
    _, rows = platforms(answer(tmp_path))
    of_platform = {row.name: (row.kind, row.values) for row in rows if not row.name.startswith("identity")}
    assert of_platform == {
        "guest.kind": ("unlike", ("off", "on")),
        "versions.loaded.torch": ("partly", ("null", "2.11")),
        "gpus.devices": ("alike", ('[{"sm_clock_mhz": {"max": 1980}}]',) * 2),
        "swiotlb": ("alike", ("null", "null")),
    }
    text = "".join(Reader(html.page(answer(tmp_path))).text)
    assert text.index("guest.kind") < text.index("What is known of some only (1)") < text.index("loaded.torch")


def test_the_seed_post_and_what_was_allowed_are_shown(tmp_path):
    one_pair(tmp_path)
    text = "".join(Reader(html.page(answer(tmp_path, allow=("steady", "identity.versions.torch")))).text)
    assert "The seed post lost 29.7 % with this recipe on 8 x B300" in text
    assert "--allow identity.versions.torch: identity.versions.torch differs: 2.13.0 (" in text
    assert "change of level" in text
    assert "which is assumed" in text


def test_only_runs_that_are_compared_are_counted_so(tmp_path):
    killed = run_record("off", 0, status="partial", failure="the process that followed the run was killed")
    for record in (killed, emulated_record(1), emulated_record(2)):
        write(tmp_path, record)
    text = "".join(Reader(html.page(answer(tmp_path))).text)
    assert "1 comparison of 2 runs on NVIDIA H200" in text
    assert "; 1 other in no comparison" in text


def test_records_without_phases_and_without_machines_make_a_page(tmp_path):
    for number, mode in enumerate(("off", "on")):
        content = json.loads(to_json(run_record(mode, number, num_steps=30, platform={}, command=())))
        for step in content["steps"]:
            step["phases_s"] = None
        (tmp_path / f"{mode}.json").write_text(json.dumps(content))
    text = "".join(Reader(html.page(answer(tmp_path))).text)
    assert "Phases" not in text
    assert "not recorded" in text


def test_slides_of_emulated_runs_say_what_they_rest_on_and_others_do_not(tmp_path):
    for number, mode in enumerate(("off", "on")):
        write(tmp_path / "measured", run_record(mode, number))
    shown = plots.pictures(answer(tmp_path / "measured")).values()
    assert {one.slide_note for group in shown for one in group} == {None}
    write(tmp_path / "emulated", emulated_record(1))
    on_cpu = emulated_record(2)
    write(tmp_path / "cpu", dataclasses.replace(on_cpu, identity={**on_cpu.identity, "gpu": ["cpu"]}))
    for name, is_cpu in (("emulated", False), ("cpu", True)):
        shown = plots.pictures(answer(tmp_path / name)).values()
        assert {one.slide_note for group in shown for one in group} == {emulated_note(is_cpu=is_cpu)}


def test_figures_are_written_for_slides(tmp_path):
    from PIL import Image

    for number, mode in enumerate(("off", "on")):
        write(tmp_path / "runs", run_record(mode, number, num_steps=30))
    paths = plots.write_pngs(answer(tmp_path / "runs"), tmp_path)
    assert [path.name.partition("_0_")[0] for path in paths] == ["keep_ratio.png", "steps", "distribution", "phases"]
    for path in paths:
        with Image.open(path) as image:
            assert image.size == (1920, 1080)
