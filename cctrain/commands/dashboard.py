"""The verb dashboard: a W&B workspace and a Report over the runs of a project.

    python -m cctrain dashboard                             of project cctrain, saved to W&B where there is a login
    python -m cctrain dashboard --project P --entity E      of another
    python -m cctrain dashboard --out dashboard.json        as a JSON file, whether there is a login or not

Keep ratio by recipe, step time by mode, loss against batch, tolls: of what `track=wandb` and `compare --track wandb`
have logged. Without a login, and without --out, it is written to cctrain-dashboard.json. The local dashboard of
`track=trackio` needs nothing built: `trackio show --project P` opens it.

The last line of stdout is one JSON object: `file`, `workspace` and `report` (addresses), null where there is none. Exit
code: 0 saved or written, 2 the request is wrong, 4 W&B has a login and did not take it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

from cctrain import rundir
from cctrain.commands.flags import Parser
from cctrain.errors import RequestError, RunError
from cctrain.redaction import redacted
from cctrain.sinks.sink import DEFAULT_PROJECT

_FILE = Path("cctrain-dashboard.json")


def run(arguments: list[str]) -> int:
    """Build, write, save. Returns the exit code; raises RequestError."""
    parser = Parser("dashboard", __doc__)
    parser.add_argument("--project", metavar="P", help="W&B project (WANDB_PROJECT, else cctrain)")
    parser.add_argument("--entity", metavar="E", help="W&B user or team (WANDB_ENTITY, else the login's)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write it as JSON too")
    flags = parser.parse_args(arguments)
    project = flags.project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT
    entity = flags.entity or os.environ.get("WANDB_ENTITY")
    for flag, name in (("--project", project), ("--entity", entity)):
        if name is not None and not re.fullmatch(r"[\w. -]{1,100}", name):
            raise RequestError(f"dashboard: {flag} {name}: allowed are letters, digits, spaces and any of . _ -")
    from cctrain.sinks import dashboard

    dashboard.check_installed()
    try:
        login = dashboard.default_entity()
        built = dashboard.build(project, entity or login)
        saved = built.save() if login else (None, None)
        why = None
    except Exception as error:  # noqa: BLE001 - whatever W&B's server or client says no with
        built, saved = dashboard.build(project, entity), (None, None)
        why = redacted(f"W&B did not take the dashboard: {str(error).partition(chr(10))[0]} ({type(error).__name__})")
    file = flags.out or (None if any(saved) else _FILE)
    if file:
        try:
            rundir.write_json(file, built.to_json())
        except OSError as error:
            raise RequestError(f"dashboard: --out {file}: no file can be written there ({error.strerror})") from error
        print(f"dashboard: {file}")
    if why:
        print(f"cctrain: {why}", file=sys.stderr)
    elif not any(saved):
        print("note: no login to W&B (`wandb login`, or WANDB_API_KEY), so it was not saved there", file=sys.stderr)
    for name, address in zip(("workspace", "report"), saved, strict=True):
        if address:
            print(f"{name}: {address}")
    code = RunError.exit_code if why else 0
    facts = {"file": str(file) if file else None, "workspace": saved[0], "report": saved[1], "error": why}
    print(json.dumps({**facts, "exit_code": code}))
    return code
