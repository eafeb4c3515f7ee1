"""The command line of the verbs that take --flags: its errors are the user's to mend, in one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from cctrain.errors import RequestError
from cctrain.nearest import did_you_mean

_UNKNOWN = "unrecognized arguments: "


class Parser(argparse.ArgumentParser):
    """Of `python -m cctrain VERB`, with the module's docstring as its help."""

    def __init__(self, verb: str, description: str | None) -> None:
        super().__init__(
            prog=f"python -m cctrain {verb}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._verb = verb

    def error(self, message: str) -> NoReturn:
        """Raise RequestError instead of ending the process."""
        if message.startswith(_UNKNOWN):
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            word = message.removeprefix(_UNKNOWN).partition(" ")[0].partition("=")[0]
            flag = "--" + word.lstrip("-")
            meant = f" Did you mean {flag}?" if flag in flags else did_you_mean(flag, flags)
            message += f". Allowed is {', '.join(flags)}.{meant}"
        raise RequestError(f"{self._verb}: {message}")
