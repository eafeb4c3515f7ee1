"""What looks like a secret stays out of files and off the terminal. One rule, for names and for values.

By name: of variables, parameters and keys (`is_secret_name`). By value: tokens whose form gives them away, passwords in
addresses, private keys, and what this environment's secret variables hold, wherever it turns up.

A request that holds a secret is to be refused (`secret_paths`), because ranks read it from files; what only reports is
redacted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

REDACTED = "[redacted]"
_IN_VARIABLE = re.compile(
    r"TOKEN(?!IZ)|SECRET|(?<![A-Z])PASS(?![A-Z])|SSHPASS|PASSW|PASSPHRASE|_PWD$|CREDENTIAL|KEY(?!MAP|BOARD)"
    r"|AUTH(?!ORS?(_|$))|COOKIE"
)
_IN_WORD = re.compile(r"secret|passw|passphrase|credential|cookie|apikey")
_AUTH = re.compile(r"^o?auth(?!or(s|ed)?$)")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_VOCABULARY = frozenset(
    ("pad", "eos", "bos", "unk", "sep", "cls", "mask", "image", "video", "audio", "boi", "eoi", "boa", "eoa", "turn")
)
"""Words before `token` that make it one of a vocabulary."""
_SECRET_KEYS = frozenset(
    (
        *("access", "account", "api", "client", "deploy", "encryption", "hmac", "license", "master", "openai"),
        *("private", "refresh", "service", "session", "signing", "ssh", "storage", "wandb"),
    )
)
_SHORTEST = 8
"""Characters from which on a variable's value is looked for elsewhere: shorter ones are parts of other words."""
_LEAST = 100_000
"""Numbers from which on one can be a secret: smaller ones are counts."""
_KNOWN = re.compile(
    r"\b(?:(?:hf|gh[opsur]|github_pat|wandb_v\d|npm|r8|gsk|[rs]k_live)_\w{20,}|(?:sk|gl\w{2,6}|nvapi|pypi)-[\w-]{20,}"
    r"|dckr_pat_[\w-]{20,}|hvs\.[\w-]{20,}|(?:xox[abeprs]|xapp)-[\w-]{10,}|A[KS]IA[A-Z0-9]{16}|AIza[\w-]{35}|ya29\.[\w-]{20,}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}(?:\.[\w-]+)?)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=://)[^/\s@]+(?=@)|(?<=hooks\.slack\.com/services/)[\w/]+"
    r"|(?i:(?<=\bbearer )|(?<=\bbasic ))[\w.~+/=-]{8,}",
    re.DOTALL,
)
_NAME = re.compile(  # name=value, name: value, "name": "value", --name value
    r"""(?<![\w.-])(?P<name>[\w.-]+)["']?\s*[=:]\s*(?!//)|(?<!\S)(?P<option>--[\w-]+)\s+(?=[^\s-])"""
)
_SCHEME = re.compile(r"[ \t]+[\w.~+/=-]{8,}")
"""What follows the first word of an authorization, which may be the kind of the second."""
_VALUE = re.compile(r""""[^"]*"|'[^']*'|(?![{\[(])[^\s"'&,;]+""")


def is_secret_name(name: str) -> bool:
    """Whether what goes by this name is to be kept to itself."""
    if name.isupper():
        return bool(_IN_VARIABLE.search(name))
    words = _words(name)
    *_, before, last = words
    if _is_unmistakable(words) or any(map(_AUTH.search, words)):
        return True
    if last == "pwd":  # alone, the working directory
        return bool(before)
    if last in ("psk", "sig", "signature"):  # of a network, of an address that opens to whoever has it
        return True
    return last.endswith(("token", "passwd", "pass")) and before not in _VOCABULARY | {"forward", "backward"}


def _words(name: str) -> list[str]:
    return ["", "", *(word.lower() for word in _WORD.findall(name))]


def _is_unmistakable(words: list[str]) -> bool:
    """Whether what goes by these words is a secret also where it is no text. Under other names of secrets lists and
    numbers are words of a vocabulary, columns, sections, counts."""
    *_, before, last = words
    is_of_a_service = before in _SECRET_KEYS and last in ("key", "keys", "token", "tokens")
    return is_of_a_service or any(map(_IN_WORD.search, words))


def redacted(node: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """The same tree or text without secrets: those by name or form, and those of `environment`."""
    held = {value for name, value in environment.items() if is_secret_name(name) and len(value) >= _SHORTEST}
    return _redacted(node, sorted(held, key=len, reverse=True))


def secret_paths(node: Any, path: str) -> Iterator[str]:
    """Dotted names, beginning with `path`, of what `redacted` would change in a tree."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            place = f"{path}.{name}"
            yield from [place] if _is_secret(str(name), value) else secret_paths(value, place)
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from secret_paths(value, f"{path}[{index}]")
    elif redacted(node) != node:
        yield path


def redact_file(path: Path) -> None:
    """Rewrite a log without secrets, if it has any."""
    text = path.read_bytes().decode(errors="surrogateescape")
    clean = redacted(text)
    if clean != text:
        path.write_bytes(clean.encode(errors="surrogateescape"))


def _redacted(node: Any, held: list[str]) -> Any:
    if isinstance(node, Mapping):
        return {
            name: REDACTED if _is_secret(str(name), value) else _redacted(value, held) for name, value in node.items()
        }
    if isinstance(node, (list, tuple)):
        return type(node)(_redacted(value, held) for value in node)
    if not isinstance(node, str):
        return node
    for value in held:
        node = node.replace(value, REDACTED)
    return _without_named(_KNOWN.sub(REDACTED, node))


def _is_secret(name: str, value: Any) -> bool:
    is_named = is_secret_name(name) if isinstance(value, str) else _is_unmistakable(_words(name))
    return is_named and _can_be_secret(value)


def _can_be_secret(value: Any) -> bool:
    """A word of a vocabulary, as <image>, cannot, nor what is redacted already, a switch, or a small number."""
    if isinstance(value, Mapping):
        return any(map(_can_be_secret, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_can_be_secret, value))
    if isinstance(value, str):
        return bool(value) and not value.startswith(("<", "["))
    return isinstance(value, (int, float)) and abs(value) >= _LEAST


def _without_named(text: str) -> str:
    """The values of secret names taken out; one may stand inside the value of another name."""
    kept, at = [], 0
    for found in _NAME.finditer(text):
        value = _VALUE.match(text, found.end())
        if value and found.start() >= at and is_secret_name(found["name"] or found["option"]):
            quote = value[0][0] if value[0][0] in "'\"" else ""
            kept += [text[at : found.end()], quote, REDACTED, quote]
            at = value.end()
            scheme = _SCHEME.match(text, at) if (found["name"] or "").lower().endswith("authorization") else None
            at = scheme.end() if scheme else at
    return "".join(kept) + text[at:]
