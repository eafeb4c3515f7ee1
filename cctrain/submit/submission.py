"""What is handed to a scheduler: a command, and what it reads."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

from cctrain.errors import RequestError


@dataclass(frozen=True, slots=True)
class Submission:
    """A command that submits a job, and the text of the job."""

    command: list[str]
    text: str
    """The script or manifest that is submitted, for people to read."""
    stdin: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def submit(self) -> str:
        """Run the command. Returns what it printed; raises RequestError where it is missing or refuses."""
        try:
            done = subprocess.run(
                self.command,
                input=self.stdin,
                env={**os.environ, **self.environment},
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError as error:
            raise RequestError(f"there is no {self.command[0]} here; look at the job with dry_run=true") from error
        if done.returncode:
            raise RequestError(f"{self.command[0]} refused the job: {done.stderr.strip()}")
        return done.stdout.strip()


def settings_of_the_job(arguments: list[str]) -> list[str]:
    """`arguments` without those that say where to run: inside the job the ranks are started already."""
    keys = [argument.partition("=")[0].lstrip("+") for argument in arguments]
    kept = zip(arguments, keys, strict=True)
    return [argument for argument, key in kept if key.partition(".")[0] != "launch" and key != "dry_run"]
