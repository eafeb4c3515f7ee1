"""What all that ask NVML share: a session, the visible GPUs, and an answer or none."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from typing import Any

import pynvml


@contextlib.contextmanager
def session() -> Iterator[None]:
    """NVML from here to the end of the block. Raises NVMLError where there is no driver to ask."""
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def visible_handles() -> list[Any]:
    """The visible GPUs in CUDA's order. Raises NVMLError where one cannot be had."""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if names[0].startswith(("GPU-", "MIG-")):
        return [_named(name) for name in names if name]
    return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in visible_indices(pynvml.nvmlDeviceGetCount())]


def _named(name: str) -> Any:
    """By its UUID, of which CUDA takes the beginning, too, and NVML does not."""
    with contextlib.suppress(pynvml.NVMLError):
        return pynvml.nvmlDeviceGetHandleByUUID(name)
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    meant = [handle for handle in handles if str(pynvml.nvmlDeviceGetUUID(handle)).startswith(name)]
    if len(meant) != 1:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
    return meant[0]


def visible_indices(count: int) -> list[int]:
    """Indices that CUDA_VISIBLE_DEVICES leaves: those before the first that does not exist, as CUDA reads it."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return list(range(count))
    entries = [entry.strip() for entry in value.split(",") if entry.strip()]
    known = itertools.takewhile(lambda entry: entry.isdigit() and int(entry) < count, entries)
    return list(map(int, known))


def answer(function: str, *arguments: Any) -> Any:
    """What the NVML function returns; None where the driver or the binding does not say."""
    with contextlib.suppress(pynvml.NVMLError, AttributeError):
        return getattr(pynvml, function)(*arguments)
    return None
