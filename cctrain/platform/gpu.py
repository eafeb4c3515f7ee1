"""GPUs through NVML: which, how many, how fast they may go, and what the driver says of confidential computing."""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynvml

from cctrain.platform import topology
from cctrain.platform.nvml import answer, session, visible_handles

_NOT_THERE = (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound)
"""A driver that knows nothing of confidential computing, or not of this part, has none to speak of."""
_CPU_CAPS = ("none", "sev", "tdx", "sev-snp", "snp-vtom")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a GPU is set to; None where the driver does not say."""

    bus_id: str | None
    sm_clock_mhz: dict[str, int | None]
    """current, max, application."""
    memory_clock_mhz: dict[str, int | None]
    power_limit_w: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """The GPUs visible to this process; `names` is empty where there is none."""

    names: tuple[str, ...]
    memory_gib: tuple[float, ...]
    driver: str | None
    cc: dict[str, Any]
    """`source` (the NVML function that said so), environment (0 none, 1 simulated, 2 production), cc_feature, devtools,
    multi_gpu (0 none, 1 PPCIE, 2 NVLE; None where the driver is too old to know) and ready as NVML numbers, `cpu_caps`
    in words, and of each GPU `gpus`: protected_memory_gib, is_nvlink_encrypted. Or `missing`: why they could not be
    read, with `is_absent` true where that means there is nothing to read."""
    cuda: str | None = None
    """The newest CUDA that the driver supports."""
    devices: tuple[Device, ...] = ()
    topology: dict[str, Any] = field(default_factory=dict)
    """See platform/topology.py."""


def models(gpus: Gpus, *, is_cpu: bool) -> list[str]:
    """Of the GPUs that a run trains on, as its record's identity has them."""
    return ["cpu"] if is_cpu else sorted(set(gpus.names))


def observe(root: Path = Path("/")) -> Gpus:
    """Read NVML once. A machine without a driver has no GPUs and no CC to speak of; not so a container that was given
    GPUs and not NVML."""
    try:
        with session():
            return _read()
    except pynvml.NVMLError as error:
        missing, is_absent = f"NVML: {error}", isinstance(error, pynvml.NVMLError_DriverNotLoaded)
        if isinstance(error, pynvml.NVMLError_LibraryNotFound):
            gpus = sorted(path.name for path in (root / "dev").glob("nvidia[0-9]*"))
            is_absent = not gpus
            if gpus:
                missing += (
                    f", but there is /dev/{gpus[0]}: a container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility"
                )
        return Gpus(names=(), memory_gib=(), driver=None, cc={"missing": missing, "is_absent": is_absent})


def _read() -> Gpus:
    handles = visible_handles()
    version = answer("nvmlSystemGetCudaDriverVersion")
    return Gpus(
        names=tuple(pynvml.nvmlDeviceGetName(handle) for handle in handles),
        memory_gib=tuple(round(pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30, 1) for handle in handles),
        driver=pynvml.nvmlSystemGetDriverVersion(),
        cc=_cc(handles),
        cuda=f"{version // 1000}.{version % 1000 // 10}" if version else None,
        devices=tuple(_device(handle) for handle in handles),
        topology=topology.observe(handles),
    )


def _device(handle: Any) -> Device:
    def clocks(clock: int, application: int) -> dict[str, int | None]:
        return {
            "current": answer("nvmlDeviceGetClockInfo", handle, clock),
            "max": answer("nvmlDeviceGetMaxClockInfo", handle, clock),
            "application": answer("nvmlDeviceGetApplicationsClock", handle, application),
        }

    limit_mw = answer("nvmlDeviceGetEnforcedPowerLimit", handle)
    return Device(
        bus_id=topology.bus_id(answer("nvmlDeviceGetPciInfo", handle)),
        sm_clock_mhz=clocks(pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_GRAPHICS),
        memory_clock_mhz=clocks(pynvml.NVML_CLOCK_MEM, pynvml.NVML_CLOCK_MEM),
        power_limit_w=limit_mw / 1000 if limit_mw else None,
    )


def _cc(handles: list[Any]) -> dict[str, Any]:
    try:
        source, settings = _settings()
    except pynvml.NVMLError as error:
        why = f"nvmlSystemGetConfComputeSettings: {error}"
        return {"missing": why, "is_absent": isinstance(error, _NOT_THERE)}
    unread: list[str] = []
    ready = _read_or_note(unread, "nvmlSystemGetConfComputeGpusReadyState")
    gpus = [_cc_of_one(handle, unread) for handle in handles]
    caps = answer("nvmlSystemGetConfComputeCapabilities")
    return {
        **({"missing": unread[0], "is_absent": False} if unread else {}),
        "source": source,
        "environment": settings.environment,
        "cc_feature": settings.ccFeature,
        "devtools": settings.devToolsMode,
        "multi_gpu": getattr(settings, "multiGpuMode", None),
        "ready": ready,
        "cpu_caps": _CPU_CAPS[caps.cpuCaps] if caps and caps.cpuCaps < len(_CPU_CAPS) else None,
        "gpus": gpus,
    }


def _read_or_note(unread: list[str], function: str, *arguments: Any) -> Any:
    """What the NVML function returns; None where the driver knows no answer, or fails, which `unread` then says."""
    try:
        return getattr(pynvml, function)(*arguments)
    except pynvml.NVMLError as error:
        if not isinstance(error, (*_NOT_THERE, pynvml.NVMLError_InvalidArgument)):  # the latter of a part of a GPU, MIG
            unread.append(f"{function}: {error}")
        return None


def _settings() -> tuple[str, Any]:
    """The system's settings, and the function they are from. Drivers before 550 have the older one, without the mode of
    several GPUs, which they had not either."""
    settings = pynvml.c_nvmlSystemConfComputeSettings_v1_t()
    try:
        code = pynvml.nvmlSystemGetConfComputeSettings(ctypes.byref(settings))
    except pynvml.NVMLError_FunctionNotFound:
        return "nvmlSystemGetConfComputeState", pynvml.nvmlSystemGetConfComputeState()
    if code:  # this binding returns the code where others raise
        raise pynvml.NVMLError(code)
    return "nvmlSystemGetConfComputeSettings", settings


def _cc_of_one(handle: Any, unread: list[str]) -> dict[str, Any]:
    memory = _read_or_note(unread, "nvmlDeviceGetConfComputeMemSizeInfo", handle)
    return {
        "protected_memory_gib": round(memory.protectedMemSizeKib / 2**20, 1) if memory else None,
        "is_nvlink_encrypted": _is_nvlink_encrypted(handle),
    }


def _is_nvlink_encrypted(handle: Any) -> bool | None:
    for version in ("v2", "v1"):
        with contextlib.suppress(pynvml.NVMLError, AttributeError):  # the driver lacks it, or the binding does
            info = getattr(pynvml, f"c_nvmlNvLinkInfo_{version}_t")()
            pynvml.nvmlDeviceGetNvLinkInfo(handle, ctypes.byref(info))
            return bool(info.isNvleEnabled)
    return None
