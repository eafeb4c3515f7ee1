"""Whether this is a confidential guest, and of which kind: from its devices and its CPU's flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_SIGNS = {"tdx": ("tdx_guest", "dev/tdx_guest"), "sev-snp": ("sev_snp", "dev/sev-guest")}
"""A flag in /proc/cpuinfo, and a device, which a container need not see."""


def observe(root: Path = Path("/")) -> dict[str, Any]:
    """`kind`: tdx, sev-snp or none, or None where nothing could be read; `seen`: what says so; `has_reports`: whether
    the kernel hands out attestation reports of the guest."""
    flags = _cpu_flags(root)
    seen: dict[str, list[str]] = {kind: [] for kind in _SIGNS}
    for kind, (flag, device) in _SIGNS.items():
        if flag in flags and "hypervisor" in flags:  # a host's CPU has the flag of what it can offer, too
            seen[kind].append(f"/proc/cpuinfo: {flag}")
        if (root / device).exists():
            seen[kind].append(f"/{device}")
    found = next((kind for kind, signs in seen.items() if signs), None)
    return {
        "kind": found or ("none" if flags else None),
        "seen": seen[found] if found else [],
        "has_reports": (root / "sys/kernel/config/tsm/report").is_dir(),
    }


def _cpu_flags(root: Path) -> set[str]:
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
