"""NCCL's own word on CC, from the first rank's log: with NCCL_DEBUG=INFO it gives it with each communicator."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_LINE = re.compile(r"\bNCCL INFO .*?\bCC (On|Off),(?: Multi-GPU CC (On|Off),)? workFifoBytes (\d+)")


def nccl_cc_line(log_text: str) -> dict[str, Any] | None:
    """`cc` (on or off; newer NCCL counts PPCIE and NVLE as on) and `work_fifo_bytes`, 0 with CC; None where NCCL was
    not used or not asked."""
    found = _LINE.search(log_text)
    if not found:
        return None
    return {"cc": "on" if "On" in (found[1], found[2]) else "off", "work_fifo_bytes": int(found[3])}


def contradiction(nccl: Mapping[str, Any] | None, mode: str, facts: Mapping[str, bool | None]) -> str | None:
    """A sentence where NCCL's word is not the record's `mode`, and neither of the `facts` (see platform/cc.py) that not
    every NCCL counts as CC accounts for it."""
    if nccl is None or mode == "unknown":
        return None
    observed = "on" if mode == "on" else "off"
    if nccl["cc"] == observed or facts.get("ppcie" if observed == "on" else "nvle"):
        return None
    return (
        f"NCCL says that CC is {nccl['cc']} (logs/rank0.log), the driver that it is {observed}: do not rely on the mode"
    )
