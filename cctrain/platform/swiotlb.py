"""SWIOTLB, the guest's shared memory that CC's bounces go through: how large, how full."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_SLAB_BYTES = 2048
_FILES = {"size_bytes": "io_tlb_nslabs", "used_bytes": "io_tlb_used", "peak_used_bytes": "io_tlb_used_hiwater"}


def observe(root: Path = Path("/")) -> dict[str, Any]:
    """Sizes from debugfs, None where only root may read it, and the kernel's `parameter` swiotlb=, None without one."""
    sizes: dict[str, Any] = {name: _bytes(root / "sys/kernel/debug/swiotlb" / file) for name, file in _FILES.items()}
    return {**sizes, "parameter": _parameter(root)}


def _bytes(path: Path) -> int | None:
    try:
        slabs = int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return slabs * _SLAB_BYTES if slabs < 1 << 63 else None  # Linux before 6.9 may count below zero


def _parameter(root: Path) -> str | None:
    try:
        command_line = (root / "proc/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"(?<!\S)swiotlb=(\S+)", command_line)
    return found[1] if found else None
