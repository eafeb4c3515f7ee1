"""GPUs through NVML: which, how many, and the mode of confidential computing the driver reports."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pynvml


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """The GPUs visible to this process; `names` is empty where there is none."""

    names: tuple[str, ...]
    memory_gib: tuple[float, ...]
    driver: str | None
    cc: dict[str, Any]
    """environment, cc_feature, devtools, multi_gpu (0 none, 1 PPCIE, 2 NVLE) and ready as NVML numbers; or `missing`:
    why they could not be read, with `is_absent` true where that means there is nothing to read."""


def observe() -> Gpus:
    """Read NVML once. A machine without a driver has no GPUs and no CC to speak of."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        absent = isinstance(error, (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded))
        return Gpus(names=(), memory_gib=(), driver=None, cc={"missing": f"NVML: {error}", "is_absent": absent})
    try:
        return _read()
    except pynvml.NVMLError as error:
        return Gpus(names=(), memory_gib=(), driver=None, cc={"missing": f"NVML: {error}", "is_absent": False})


def _read() -> Gpus:
    with _shut_down():
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in visible_indices(pynvml.nvmlDeviceGetCount())]
        return Gpus(
            names=tuple(_text(pynvml.nvmlDeviceGetName(handle)) for handle in handles),
            memory_gib=tuple(round(pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30, 1) for handle in handles),
            driver=_text(pynvml.nvmlSystemGetDriverVersion()),
            cc=_cc_settings(),
        )


@contextlib.contextmanager
def _shut_down() -> Iterator[None]:
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def visible_indices(count: int) -> list[int]:
    """Indices that CUDA_VISIBLE_DEVICES leaves; names (UUIDs, MIG) are counted, not looked up."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return list(range(count))
    entries = [entry.strip() for entry in value.split(",") if entry.strip()]
    hidden = next((index for index, entry in enumerate(entries) if entry.startswith("-")), None)
    entries = entries[:hidden]  # CUDA stops at the first that does not exist
    if all(entry.isdigit() for entry in entries):
        return [int(entry) for entry in entries if int(entry) < count]
    return list(range(min(len(entries), count)))


def _cc_settings() -> dict[str, Any]:
    settings = pynvml.c_nvmlSystemConfComputeSettings_v1_t()
    try:
        code = pynvml.nvmlSystemGetConfComputeSettings(ctypes.byref(settings))
        if code:  # this binding returns the code where others raise
            raise pynvml.NVMLError(code)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound) as error:
        return {"missing": f"nvmlSystemGetConfComputeSettings: {error}", "is_absent": True}
    except pynvml.NVMLError as error:
        return {"missing": f"nvmlSystemGetConfComputeSettings: {error}", "is_absent": False}
    return {
        "environment": settings.environment,
        "cc_feature": settings.ccFeature,
        "devtools": settings.devToolsMode,
        "multi_gpu": settings.multiGpuMode,
        "ready": _ready_state(),
    }


def _ready_state() -> int | None:
    try:
        return int(pynvml.nvmlSystemGetConfComputeGpusReadyState())
    except pynvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
