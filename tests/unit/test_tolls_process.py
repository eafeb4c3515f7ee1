"""The process that measures tolls: followed from outside, and its own side, with fake families."""

import dataclasses
import json

import pytest

from cctrain.tolls import child, families
from cctrain.tolls.record import Reading

SAY = "import json, os, sys, time\ndef say(**line): open(sys.argv[1], 'a').write(json.dumps(line) + '\\n')\n"
MEASURE = """
for family in sys.argv[2:]:
    say(event="begin", family=family)
    if family == "raises":
        say(event="failed", family=family, why="ValueError: bad")
        sys.exit(1)
    if family == "crashes":
        print("the last words", flush=True)
        os.kill(os.getpid(), 11)
    if family == "hangs":
        time.sleep(600)
    if family == "leaves":
        sys.exit(0)
    if family == "waived":
        say(event="waived", family=family, why="no GPU")
        continue
    reading = {"name": family, "unit": "us", "value": 1, "interval": None, "num_blocks": 7, "conditions": {}}
    say(event="measured", family=family, readings=[reading])
"""


def followed(*names, script=SAY + MEASURE, deadline_s=60.0):
    outcome, pids = child.Outcome(), []

    def command(left, events):
        pids.append(list(left))
        return [child.sys.executable, "-I", "-S", "-c", script, str(events), *left]

    child.follow(names, command, outcome, lambda family: None, deadline_s)
    return outcome, pids


def test_one_process_measures_all_that_goes_well():
    outcome, starts = followed("one", "waived", "two")
    assert [reading.name for reading in outcome.readings] == ["one", "two"]
    assert outcome.waived == {"waived": "no GPU"}
    assert outcome.failed == {}
    assert starts == [["one", "waived", "two"]]


@pytest.mark.parametrize(
    ("bad", "because"),
    [
        ("raises", "ValueError: bad"),
        ("crashes", "killed (Segmentation fault)"),
        ("hangs", "nothing came for 2 s"),
        ("leaves", "ended without measuring"),
    ],
)
def test_a_family_that_fails_is_named_and_the_others_are_measured(bad, because):
    outcome, starts = followed("one", bad, "two", **({"deadline_s": 2.0} if bad == "hangs" else {}))
    assert [reading.name for reading in outcome.readings] == ["one", "two"]
    assert list(outcome.failed) == [bad]
    assert because in outcome.failed[bad]
    assert starts == [["one", bad, "two"], ["two"]]
    assert ("the last words" in outcome.log) == (bad == "crashes")


def test_a_process_that_never_comes_to_a_family_fails_them_all_and_is_not_started_again():
    outcome, starts = followed("one", "two", script="import sys; sys.exit(3)")
    assert outcome.failed == dict.fromkeys(["one", "two"], "its process ended with 3")
    assert len(starts) == 1


def test_each_family_is_measured_by_three_processes_and_what_is_waived_or_failed_by_no_further_one():
    starts, shown = [], set()

    def command(left, events):
        starts.append(list(left))
        return [child.sys.executable, "-I", "-S", "-c", SAY + MEASURE, str(events), *left]

    outcome = child.measure(
        ["one", "waived", "raises", "two"], 0, lambda *progress: shown.add(progress), command=command
    )
    assert starts == [["one", "waived", "raises", "two"], ["two"], ["one", "two"], ["one", "two"]]
    assert [(reading.name, reading.process_values) for reading in outcome.readings] == [
        ("one", (1.0,) * 3),
        ("two", (1.0,) * 3),
    ]
    assert {process for process, _ in shown} == {0, 1, 2}


def test_no_secret_comes_out_of_a_process_that_fails(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "correct-horse")
    say = 'say(event="begin", family="one"); say(event="failed", family="one", why="401 for correct-horse")\n'
    outcome, _ = followed("one", script=f"{SAY}print('token=correct-horse', flush=True)\n{say}sys.exit(1)")
    assert outcome.failed == {"one": "401 for [redacted]"}
    assert outcome.log == "token=[redacted]\n"


# The worker


READING = Reading(name="launch", unit="us", value=1.5, interval=(1.0, 2.0), num_blocks=7, conditions={"args": 16})


class FakeFamily:
    def __init__(self, why=None, error=None):
        self._why, self._error = why, error

    def can_run(self):
        return self._why

    def measure(self, switch=None):
        self.switch = switch
        if self._error:
            raise self._error
        return [READING]


def worked(tmp_path, rank=0, **fakes):
    from cctrain.samples import SampleFile
    from cctrain.tolls.worker import measure_families

    path = tmp_path / "events.jsonl"
    code = measure_families([(name, lambda fake=fake: fake) for name, fake in fakes.items()], SampleFile(path), rank)
    return code, [json.loads(line) for line in path.read_text().splitlines()]


def test_a_worker_says_what_it_measures_and_what_is_waived(tmp_path):
    code, events = worked(tmp_path, good=FakeFamily(), absent=FakeFamily(why="no GPU"))
    assert code == 0
    assert [(event["event"], event["family"]) for event in events] == [
        *(("begin", "good"), ("measured", "good")),
        *(("begin", "absent"), ("waived", "absent")),
    ]
    assert events[1]["readings"] == [json.loads(json.dumps(dataclasses.asdict(READING)))]
    assert events[-1]["why"] == "no GPU"


def test_a_worker_ends_with_the_family_that_raises(tmp_path, capsys):
    code, events = worked(tmp_path, bad=FakeFamily(error=RuntimeError("CUDA error\nand more")), good=FakeFamily())
    assert code == 1
    assert events[-1] == {"event": "failed", "family": "bad", "why": "RuntimeError: CUDA error"}
    assert "Traceback" in capsys.readouterr().err


def test_of_several_ranks_only_the_first_speaks_but_each_says_why_it_failed(tmp_path):
    assert worked(tmp_path, 1, good=FakeFamily()) == (0, [])
    code, events = worked(tmp_path, 1, bad=FakeFamily(error=MemoryError()))
    assert code == 1
    assert [event["event"] for event in events] == ["failed"]


def test_what_calls_no_cuda_is_measured_without_a_switch_of_tolls(tmp_path):
    from cctrain.samples import SampleFile
    from cctrain.tolls.worker import measure_families

    host, launch = FakeFamily(), FakeFamily()
    named = [("host", lambda: host), ("launch", lambda: launch)]
    assert measure_families(named, SampleFile(tmp_path / "events.jsonl"), 0, print) == 0
    assert (host.switch, launch.switch) == (None, print)


def test_every_family_is_a_module(request):
    package = request.config.rootpath / "cctrain" / "tolls"
    assert {name for name in families.ALL if not (package / f"{name}.py").is_file()} == set()
