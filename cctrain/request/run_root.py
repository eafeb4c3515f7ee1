"""run_root on a command line that is not composed here: of a job's ranks, and of a campaign's trials."""

from __future__ import annotations

import re
from pathlib import Path

from cctrain.errors import RequestError


def plain_path(value: str, where: str) -> Path:
    """The path that `value` is for Hydra, with quotes or without. Raises RequestError for one that it would resolve."""
    quoted = re.fullmatch(r"(['\"])(.*)\1", value)
    path = re.sub(r"\\(['\"])", r"\1", quoted[2]) if quoted else value
    if "$" in path:
        raise RequestError(f"run_root={path}: {where} allowed is a plain path")
    return Path(path).expanduser()


def in_hydra(path: Path) -> str:
    """What Hydra reads as `path`, whatever is in it."""
    text = str(path)
    if re.fullmatch(r"[\w./~-]+", text):
        return text
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"
