"""TDISP (TEE-I/O), which would spare CC its bounces: from what the kernel's TSM core shows of devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def observe(root: Path = Path("/")) -> dict[str, Any]:
    """`state`: none (the kernel knows of no TSM), available, connected or bound, the furthest that a device has come;
    `tsm`: the TSMs; `devices`: by PCI address, what their attributes `connect` and `bound` say."""
    tsm = sorted(path.name for path in (root / "sys/class/tsm").glob("tsm*"))
    devices = {}
    for folder in sorted((root / "sys/bus/pci/devices").glob("*/tsm")):
        devices[folder.parent.name] = {name: _read(folder / name) for name in ("connect", "bound")}
    state = "available" if tsm or devices else "none"
    for attribute, further in (("connect", "connected"), ("bound", "bound")):
        if any(device[attribute] for device in devices.values()):
            state = further
    return {"state": state, "tsm": tsm, "devices": devices}


def _read(path: Path) -> str | None:
    """The attribute's text; None for one that is empty or not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None
