"""The mode of confidential computing: observed, never assumed.

Bounce-buffer CC (`cc_feature`) and PPCIE (`multi_gpu` 1, Hopper's multi-GPU mode) are separate facts: a PPCIE machine
reports cc_feature 0 and is on all the same. Encrypted NVLink alone (`multi_gpu` 2) is not CC.
"""

from __future__ import annotations

from typing import Any

from cctrain.config import CcMode
from cctrain.errors import PlatformError

_WHERE = "NVML's nvmlSystemGetConfComputeSettings"


def observed_mode(expected: CcMode, cc: dict[str, Any]) -> str:
    """The record's mode, "off", "on" or "unknown", for the settings in `platform.gpu.Gpus.cc`.

    Raises PlatformError where the machine is not as expected, or in a state that no figure should be taken in.
    """
    if expected is CcMode.unverified:
        return "unknown"
    if "missing" in cc and not cc["is_absent"]:
        raise PlatformError(
            f"cc={expected.value}: the mode of confidential computing cannot be read ({cc['missing']}). "
            "cc=unverified runs all the same and marks the record"
        )
    is_on = bool(cc.get("cc_feature")) or cc.get("multi_gpu") == 1
    if cc.get("devtools"):
        raise PlatformError(
            f"cc={expected.value}: the GPUs are in CC devtools mode ({_WHERE}), which is slower and not confidential: "
            "the host sets --set-cc-mode=on or off with nvidia_gpu_tools.py; cc=unverified runs all the same"
        )
    if is_on and cc.get("ready") == 0:
        raise PlatformError(
            f"cc={expected.value}: the GPUs are not ready to run (nvidia-smi conf-compute -grs); after attestation set "
            "them ready with nvidia-smi conf-compute -srs 1"
        )
    seen = "on" if is_on else "off"
    if expected in (CcMode.off, CcMode.on) and expected.value != seen:
        read = f"cc_feature={cc.get('cc_feature', 'absent')}, multi_gpu={cc.get('multi_gpu', 'absent')}"
        raise PlatformError(
            f"cc={expected.value}, but this machine's mode is {seen} ({_WHERE}: {cc.get('missing', read)}). "
            f"Run with cc={seen} or cc=auto, or have the host set --set-cc-mode={expected.value} with "
            "nvidia_gpu_tools.py and start a confidential guest"
        )
    return seen
