"""The tables of the evidence say what the records beside them hold."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

from cctrain.campaign.ledger import read, standings

EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence"


def test_the_main_jobs_table_is_that_of_its_records():
    script = [sys.executable, str(EVIDENCE / "main_job_table.py")]
    table = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    assert len(table.splitlines()) > 5
    assert table in (EVIDENCE / "README.md").read_text()


def test_the_killed_campaigns_ledger_holds_what_is_said_of_it():
    events, damaged = read(EVIDENCE / "campaign" / "campaign-tiny.jsonl")
    assert Counter(event["event"] for event in events) == {"opened": 6, "begin": 11, "end": 11}
    outcomes = Counter((event["outcome"], event["seconds"] is None) for event in events if event["event"] == "end")
    assert outcomes == {("complete", False): 6, ("complete", True): 2, ("interrupted", True): 3}
    assert sum(bool(one.run) for one in standings(events).values()) == 8
    assert not damaged
