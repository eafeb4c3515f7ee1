"""The tables of the evidence say what the records beside them hold."""

import subprocess
import sys
from pathlib import Path

EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence"


def test_the_main_jobs_table_is_that_of_its_records():
    script = [sys.executable, str(EVIDENCE / "main_job_table.py")]
    table = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    assert len(table.splitlines()) > 5
    assert table in (EVIDENCE / "README.md").read_text()
