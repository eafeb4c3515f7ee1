"""The command line of the verbs that take --flags: its errors are the user's to mend, in one line."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from cctrain.errors import RequestError
from cctrain.nearest import did_you_mean

_UNKNOWN = "unrecognized arguments: "
_IN_OUR_WORDS = {
    r"argument (\S+): invalid float value: '(.*)'": "{} {}: allowed is a number",
    r"argument (\S+): invalid choice: '(.*?)' \(choose from '?(.*?)'?\)": "{} {}: allowed is {}",
    r"argument (\S+): ignored explicit argument '(.*)'": "{}={}: no value is allowed",
    r"argument (\S+): not allowed with argument (\S+)": "{} and {}: give one of them",
}
"""argparse's errors."""


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
            meant = meant if flag in flags or word.startswith("-") else ""
            message += f". Allowed is {', '.join(flags)}.{meant}"
        for pattern, words in _IN_OUR_WORDS.items():
            found = re.fullmatch(pattern, message)
            message = words.format(*found.groups()).replace("', '", ", ") if found else message
        if needed := re.fullmatch(r"the following arguments are required: (.*)", message):
            message = "; ".join(map(self._missing, needed[1].split(", ")))
        without = re.match(r"argument (\S+): expected ", message)
        if without:
            message = f"{without[1]} needs {self._metavar_of(without[1])}"
        raise RequestError(f"{self._verb}: {message}")

    def _missing(self, name: str) -> str:
        names = ((*one.option_strings, one.metavar, one.dest) for one in self._actions)
        allowed = next(one.help for one, known in zip(self._actions, names, strict=True) if name in known)
        return f"{name} missing: allowed is {allowed}" if allowed else f"{name} missing"

    def _metavar_of(self, flag: str) -> str:
        metavar = next(action.metavar for action in self._actions if flag in action.option_strings)
        return " ".join(metavar) if isinstance(metavar, tuple) else metavar or "a value"
