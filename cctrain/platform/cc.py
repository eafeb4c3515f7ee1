"""The mode of confidential computing: observed, never assumed.

Three facts, never one flag: bounce-buffer CC (`cc_feature`), PPCIE (`multi_gpu` 1, Hopper's mode of several GPUs: it
reports cc_feature 0 and is on all the same), and encrypted NVLink (NVLE, `multi_gpu` 2), which alone is not CC.
"""

from __future__ import annotations

from typing import Any

from cctrain.config import CcMode
from cctrain.errors import PlatformError

_TOOL = "nvidia_gpu_tools.py --devices gpus"
_SET = f"{_TOOL} --set-cc-mode={{}} --reset-after-cc-mode-switch"
_SET_PPCIE = f"{_TOOL} --set-ppcie-mode={{}} --reset-after-ppcie-mode-switch"
"""Of NVIDIA's gpu-admin-tools, run by root on the host, while no guest has the GPUs."""


def observed_mode(expected: CcMode, cc: dict[str, Any]) -> str:
    """The record's mode, "off", "on", "emulated" or "unknown", for the settings in `platform.gpu.Gpus.cc`.

    Raises PlatformError where the machine is not as expected, or in a state that no figure should be taken in.
    """
    if expected is CcMode.unverified:
        return "unknown"
    why_not = problem(cc)
    if why_not:
        else_run = "" if expected is CcMode.emulated else ". cc=unverified runs all the same and marks the record"
        raise PlatformError(f"cc={expected.value}: {why_not}{else_run}")
    if expected is CcMode.emulated:
        if is_on(cc):
            raise PlatformError(
                f"cc=emulated, but this machine pays the real tolls already: its mode is on ({_read(cc)}). Run with "
                f"cc=on, or have the host run {_change(cc, 'off')}"
            )
        return "emulated"
    seen = "on" if is_on(cc) else "off"
    if expected is CcMode.on and cc.get("is_absent"):
        raise PlatformError(
            f"cc=on, but there is no GPU here that knows of confidential computing, or a driver too old to say so "
            f"({_read(cc)}). Run with cc=off or cc=auto, or without a confidential machine with cc=emulated tolls=b300"
        )
    if expected in (CcMode.off, CcMode.on) and expected.value != seen:
        change = _change(cc, expected.value)
        if expected is CcMode.on:
            change += f" (eight Hoppers together: {_SET_PPCIE.format('on')}), then boot a TDX or SNP guest"
        raise PlatformError(
            f"cc={expected.value}, but this machine's mode is {seen} ({_read(cc)}). Run with cc={seen} or cc=auto, or "
            f"have the host run {change}"
        )
    return seen


def _change(cc: dict[str, Any], mode: str) -> str:
    return (_SET_PPCIE if facts(cc)["ppcie"] else _SET).format(mode)


def check_countable(cc: dict[str, Any]) -> None:
    """Raises PlatformError where measure.crossings=true cannot be had: nothing hooks the driver's calls with CC on."""
    why_not = problem(cc) or (f"CC is on ({_read(cc)})" if is_on(cc) else None)
    if why_not:
        raise PlatformError(f"measure.crossings=true counts where CC is known to be off, and here {why_not}")


def facts(cc: dict[str, Any]) -> dict[str, bool | None]:
    """`bounce_buffer`, `ppcie` and `nvle`; None where it could not be read."""
    if "missing" in cc:
        return dict.fromkeys(("bounce_buffer", "ppcie", "nvle"))
    multi_gpu = cc.get("multi_gpu")
    is_encrypted = any(gpu["is_nvlink_encrypted"] for gpu in cc.get("gpus", ()))
    return {
        "bounce_buffer": bool(cc["cc_feature"]),
        "ppcie": None if multi_gpu is None else multi_gpu == 1,
        "nvle": is_encrypted or (None if multi_gpu is None else multi_gpu == 2),
    }


def is_on(cc: dict[str, Any]) -> bool:
    """Whether crossings between CPU and GPU are encrypted."""
    return bool(facts(cc)["bounce_buffer"] or facts(cc)["ppcie"])


def seen_mode(cc: dict[str, Any]) -> str:
    """off or on as it is seen, unknown where no figure should be taken."""
    return "unknown" if problem(cc) else "on" if is_on(cc) else "off"


def problem(cc: dict[str, Any]) -> str | None:
    """Why no figure should be taken on this machine, with what mends it; None where one may."""
    if "missing" in cc:
        return None if cc["is_absent"] else f"the mode of confidential computing cannot be read ({cc['missing']})"
    if cc.get("devtools") or cc.get("environment") == 1:
        return (
            f"the GPUs are in CC devtools mode, which is for debugging and not confidential ({_read(cc)}): have the "
            f"host run {_change(cc, 'on')}, or =off"
        )
    different = _difference(cc.get("gpus", []))
    if different:
        return (
            f"the GPUs are in different modes ({different}): have the host run {_change(cc, 'on')}, or =off, or leave "
            "the odd ones out with CUDA_VISIBLE_DEVICES"
        )
    if is_on(cc) and cc.get("ready") == 0:
        return (
            "the GPUs are not ready to take work (NVML's nvmlSystemGetConfComputeGpusReadyState: 0): once they are "
            "attested, run nvidia-smi conf-compute -srs 1"
        )
    return None


def _difference(gpus: list[dict[str, Any]]) -> str | None:
    """What tells the GPUs' modes apart, as NVML says it of each: CC protects memory, or it does not."""
    protected = [gpu["protected_memory_gib"] for gpu in gpus]
    if len({bool(gib) for gib in protected if gib is not None}) > 1:
        listed = ", ".join(f"GPU {index}: {gib} GiB" for index, gib in enumerate(protected))
        return f"protected memory by NVML's nvmlDeviceGetConfComputeMemSizeInfo, {listed}"
    encrypted = [gpu["is_nvlink_encrypted"] for gpu in gpus]
    if len(set(encrypted) - {None}) > 1:
        listed = ", ".join(f"GPU {index}: {'on' if each else 'off'}" for index, each in enumerate(encrypted))
        return f"encrypted NVLink by NVML's nvmlDeviceGetNvLinkInfo, {listed}"
    return None


def _read(cc: dict[str, Any]) -> str:
    """What was read, and where."""
    if "missing" in cc:
        return str(cc["missing"])
    names = ("environment", "cc_feature", "devtools", "multi_gpu")
    return f"NVML's {cc.get('source')}: " + ", ".join(f"{name}={cc.get(name)}" for name in names)
